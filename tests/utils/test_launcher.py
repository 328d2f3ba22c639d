"""How many processors a process may take, by what its surroundings say."""

import os
import sys

import pytest

from pyclassify.utils.launcher import count_cores, count_workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's own")


@pytest.fixture
def machine(monkeypatch):
    """Leave this process so many processors, of a job's on this node."""

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
