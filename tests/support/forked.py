"""Processes that the fork server forks, where code or Lightning would start new interpreters."""

import os
import sys
from functools import cache

from tests.support import forking_python, processes
from tests.support.ports import free_port


def run_ranks(file, *arguments, ranks=2):
    """Run a script as torchrun does, one process for each rank, to the end of all.

    A rank is told by the environment, so that Lightning starts no process itself.

    Raises:
        AssertionError: One has failed; with what all have written.
    """
    variables = {**os.environ, "PYTHONPATH": str(processes.ROOT), "MASTER_ADDR": "127.0.0.1"}
    variables |= {"MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "tested"}
    variables |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
    started = [
        processes.start(
            file,
            *arguments,
            env={**variables, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=processes.PIPE,
            stderr=processes.STDOUT,
        )
        for rank in range(ranks)
    ]
    try:
        written = [each.communicate()[0] for each in started]
    finally:
        for each in started:
            each.kill()
    assert [each.returncode for each in started] == [0] * ranks, "\n".join(written)


def fork_python(monkeypatch):
    """Have what is started as `[sys.executable, "-m", ...]` fork, and what that starts in turn."""
    _start_server()
    monkeypatch.setattr(sys, "executable", forking_python.program())


@cache
def _start_server():
    """Start the server while `sys.executable` is Python, which it is started by."""
    processes.run("-c", "", check=True)
