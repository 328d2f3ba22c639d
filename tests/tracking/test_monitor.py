"""The monitor: the description of an end, and a KILLED run that `mlflow run` marks as FAILED."""

import os
import signal
import subprocess
import sys
import time

import pytest
from mlflow.entities import RunStatus

from pyclassify.tracking import monitor
from tests.support.phrases import mentions
from tests.support.waiting import wait_until


def test_killed_run_is_killed_again_after_mlflow_run_set_failed(store, adopted_run_id):
    store.set_terminated(adopted_run_id, "FAILED")

    monitor.enforce_final_status(store, adopted_run_id, "KILLED", parent=-1)
    assert store.get_run(adopted_run_id).info.status == "KILLED"


def test_enforcing_without_another_status_ends_after_its_timeout(
    store, adopted_run_id, monkeypatch
):
    monkeypatch.setattr(monitor, "TIMEOUT_SECONDS", 0.2)
    store.set_terminated(adopted_run_id, "KILLED")

    started = time.monotonic()
    monitor.enforce_final_status(store, adopted_run_id, "KILLED", parent=-1)
    assert time.monotonic() - started > 0.2
    assert store.get_run(adopted_run_id).info.status == "KILLED"


def test_mlflow_run_still_overwrites_a_status():
    # Once this fails, MLflow is fixed, and enforce_final_status can be removed.
    assert not RunStatus.is_terminated("KILLED")


DUMP = [
    "Fatal Python error: Segmentation fault",
    "",
    "Thread 0x1 (most recent call first):",
    '  File "threading.py", line 331 in wait',
    "",
    "Current thread 0x2 (most recent call first):",
    '  File "loader.py", line 12 in read',
    '  File "main.py", line 1 in <module>',
]


@pytest.mark.parametrize(
    ("exit_code", "dump", "expected"),
    [
        (-9, (), ("FAILED", "SIGKILL (often the out-of-memory killer)")),
        (-15, (), ("KILLED", "SIGTERM")),
        (-6, DUMP, ("FAILED", 'SIGABRT in "loader.py", line 12 in read')),
        (None, DUMP, ("FAILED", 'SIGSEGV in "loader.py", line 12 in read')),
        (-11, (), ("FAILED", "SIGSEGV")),
        (-63, (), ("FAILED", "signal 63")),
        (3, (), ("FAILED", "exit code 3")),
    ],
)
def test_describe_end_names_the_signal_and_the_place(exit_code, dump, expected):
    assert monitor.describe_end(exit_code, dump) == expected


def test_describe_end_of_an_unknown_end_names_what_it_may_be():
    status, reason = monitor.describe_end(None)

    assert status == "FAILED"
    assert mentions(reason, "SIGKILL", "os._exit", "no final status")


@pytest.mark.skipif(sys.platform != "linux", reason="proc(5) is Linux's")
def test_zombie_status_is_read_before_the_parent_reads_it():
    process = subprocess.Popen(["sleep", "100"])
    assert monitor._read_zombie_status(process.pid) is None

    process.send_signal(signal.SIGABRT)
    wait_until(lambda: monitor._read_zombie_status(process.pid) is not None, "the end of sleep")

    status = monitor._read_zombie_status(process.pid)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGABRT
    assert process.wait() == -signal.SIGABRT
    assert monitor._read_zombie_status(process.pid) is None
