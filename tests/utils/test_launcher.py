"""What the variables of launchers say: the first process, and each process's processors."""

import os
import sys

import pytest

from pyclassify.utils.launcher import count_cores, count_workers, is_rank_zero


@pytest.fixture
def machine(monkeypatch):
    """Leave this process so many processors, of a job's on this node."""
    if sys.platform != "linux":
        pytest.skip("only Linux tells a process's own processors")

    def leave(own, of_job=None):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(own)))
        monkeypatch.delenv("SLURM_CPUS_ON_NODE", raising=False)
        if of_job is not None:
            monkeypatch.setenv("SLURM_CPUS_ON_NODE", str(of_job))

    return leave


@pytest.mark.parametrize(
    ("own", "of_job", "processes", "expected"),
    [
        (8, None, 1, 8),
        (8, None, 2, 4),
        (2, None, 4, 1),
        (16, 16, 4, 4),  # a job whose processes are not bound
        (4, 16, 4, 4),  # srun has bound each to its own
        (16, 16, 1, 16),
        (128, 4, 1, 4),  # SLURM confines nothing
        (128, 4, 2, 2),
    ],
)
def test_processes_share_what_is_not_bound_to_one(own, of_job, processes, expected, machine):
    machine(own, of_job)

    assert count_cores(processes) == expected


@pytest.mark.parametrize(("own", "expected"), [(1, 1), (2, 1), (4, 3), (9, 8), (128, 8)])
def test_workers_leave_a_processor_to_training(own, expected, machine):
    machine(own)

    assert count_workers(1) == expected


@pytest.mark.parametrize(
    ("variables", "is_first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "1"}, False),
        # started by Lightning in a shell that srun gave
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
    ],
)
def test_is_rank_zero_reads_the_variables_of_launchers(variables, is_first, monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert is_rank_zero() is is_first
