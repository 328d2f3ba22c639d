"""Python code in a process of its own, to be stopped by signals."""

import os
import signal
from contextlib import contextmanager

from tests.support import processes, waiting
from tests.support.processes import PIPE, ROOT

STOP = """
import os, signal, sys, time
from pyclassify import signals

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


@contextmanager
def running(code):
    """Start code in a session of its own; it says "ready" when it can be stopped.

    Python is started: without torch that takes less than to fork what has imported it.
    """
    process = processes.start("-c", STOP + code, fresh=True, cwd=ROOT, stdout=PIPE)
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def rest(process):
    """Wait for the end, and give the lines said after "ready"."""
    process.wait(waiting.scale(60))
    return process.stdout.read().splitlines()
