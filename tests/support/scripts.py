"""Python code in a process of its own, to be stopped by signals."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

STOP = """
import os, signal, sys, time
from pyclassify import signals

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
"""


@contextmanager
def running(code):
    """Start code in a session of its own; it says "ready" when it can be stopped."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOP + code],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def rest(process):
    """Wait for the end, and give the lines said after "ready"."""
    process.wait(10)
    return process.stdout.read().splitlines()
