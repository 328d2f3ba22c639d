"""End what a test run's daemons leave, however the test run ends.

    python sweep.py FOLDER

A process of its own waits here for the end of its stdin, which the test run holds open: it comes
when the daemons are stopped, and when the test run is killed. It then kills all that was started
with the folder as its mark and what those started (daemons, jobs, their tasks), and removes the
folder.
"""

import contextlib
import os
import shutil
import sys
import time
from pathlib import Path

import psutil

MARK = "SWEPT_WITH"


def marked(name, value):
    """Processes which started with a variable, and all that they started."""
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value:
                found.update((each.pid, each) for each in [process, *process.children(True)])
    return list(found.values())


def kill(name, value):
    """Kill until there is none, as a process may start another while it is being killed."""
    while processes := marked(name, value):
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
    kill(MARK, str(folder))
    for link in folder.glob("cgroup/*"):
        remove_cgroups(link.resolve())
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
