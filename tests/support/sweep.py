"""End what a test run's daemons leave, however the test run ends.

    python sweep.py FOLDER

A process of its own waits here for the end of its stdin, which the test run holds open: it comes
when the daemons are stopped, and when the test run is killed. It then kills all that has a file of
the folder open (daemons and what they started, which have their logs), and removes the folder.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil

SECONDS = 60  # after which it gives up


def using(path):
    """Processes which have a file open that is `path` or in it, and all that they started."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(Path(each.path).is_relative_to(path) for each in process.open_files()):
                found.update((each.pid, each) for each in [process, *process.children(True)])
    return list(found.values())


def kill(path):
    """Kill until there is none, as a process may start another while it is being killed."""
    while processes := using(path):
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.05)


def remove_cgroups(parent):
    """Remove those which killed processes leave, once the last has ended."""
    while parent.exists():
        for folder, _, _ in os.walk(parent, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        time.sleep(0.05)


def main():
    folder = Path(sys.argv[1])
    sys.stdin.read()
    signal.alarm(SECONDS)
    kill(folder)
    for link in folder.glob("cgroup/*"):
        remove_cgroups(link.resolve())
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
