"""The processes of a launcher: the first one, processors, rendezvous and file broadcast."""

import os
import socket
import subprocess
import sys

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment

from pyclassify.utils import launcher
from pyclassify.utils.launcher import (
    choose_rendezvous,
    count_cores,
    count_workers,
    is_rank_zero,
    publish_run,
    wait_for_value,
)


@pytest.fixture
def machine(monkeypatch):
    """Set the number of cores of this process, and of its job on this node."""
    if sys.platform != "linux":
        pytest.skip("only Linux has the CPU affinity of a process")

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


def test_choose_rendezvous_differs_for_each_seed(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29500")

    others = [int(choose_rendezvous(place)["MASTER_PORT"]) for place in range(1, 9)]
    assert choose_rendezvous(0) == {}
    assert len({29500, *others}) == 9
    assert all(10_000 <= port < 30_000 for port in others)


def test_choose_rendezvous_in_a_slurm_job_starts_at_lightnings_port(monkeypatch):
    job = {"SLURM_JOB_ID": "1234567", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "")  # which restores it afterwards
    del os.environ["MASTER_PORT"]

    by_job = choose_rendezvous(1)
    SLURMEnvironment().main_port  # noqa: B018 - it leaves MASTER_PORT in the environment
    assert by_job == choose_rendezvous(1) != {}


def test_choose_rendezvous_without_launcher_is_empty(monkeypatch):
    for name in ("MASTER_PORT", "SLURM_JOB_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)

    assert choose_rendezvous(1) == {}


def test_wait_for_value_of_a_silent_process_times_out(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "PUBLISH_TIMEOUT_SECONDS", 0.2)

    with pytest.raises(TimeoutError, match=r"after 0 s .*rank 0"):
        wait_for_value(tmp_path)


def test_publish_run_removes_old_files_of_agents_that_have_exited(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "now")
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = socket.gethostname()
    old, recent, running = (
        tmp_path / f".torchrun-{name}-{host}-{pid}"
        for name, pid in [("old", ended.pid), ("recent", ended.pid), ("running", os.getpid())]
    )
    for path in (old, recent, running):
        path.write_text("0" * 32)
    for path in (old, running):
        os.utime(path, (0, 0))

    publish_run(tmp_path / "spool", "1" * 32)

    own = tmp_path / f".torchrun-now-{host}-{os.getppid()}"
    assert {*tmp_path.glob(".torchrun-*")} == {own, recent, running}
    assert own.read_text() == "1" * 32
