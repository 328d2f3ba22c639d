"""The run of a process: its name and its final status."""

import errno
import threading

import mlflow
import pytest

from pyclassify.spool import records, spooled_run
from pyclassify.spool.spooled_run import SpooledRun
from pyclassify.tracking import run
from tests.support import processes
from tests.support.spooled import limit_file_size, points
from tests.support.stores import list_runs
from tests.support.waiting import wait_until


def upload(spooled_run):
    """Wait until the server has what was written of a run."""
    assert spooled_run.upload_thread.wait_until_uploaded(300)


def test_run_on_a_full_disk_raises_when_a_checkpoint_is_saved(spool):
    written = SpooledRun(spool.folder)
    with limit_file_size(0):
        with pytest.warns(UserWarning, match="in memory"):
            written.client.log_metric(spool.run_id, "loss", 0.5, step=1)
        with pytest.raises(OSError, match=f"{spool.folder} can't be written"):
            written.sync()
    with pytest.warns(UserWarning, match="written again"):
        written.sync()
    written.release()

    written.sync()  # it is over, and has nothing to keep
    assert points(spool.client, spool.run_id, "loss") == [(1, 0.5)]


def test_disk_error_after_success_is_a_warning_and_the_run_stays_finished(store):
    def fill_disk(uploaded):
        raise OSError(errno.ENOSPC, "No space left on device")

    started = run.start_run(None, None, None)
    run.call_after_success(fill_disk)
    with pytest.warns(UserWarning, match="could not remove checkpoints .+ No space left"):
        run.end_run("FINISHED")

    assert store.get_run(started.run_id).info.status == "FINISHED"
    assert run.describe_failures() == ""


def test_name_run_replaces_a_random_name(store):
    started = run.start_run(None, None, None)
    run.name_run("AlexNet-CIFAR10-seed0")
    upload(started)

    assert store.get_run(started.run_id).info.run_name == "AlexNet-CIFAR10-seed0"


def test_name_run_leaves_a_persons_name(store):
    started = run.start_run(None, "my best", None)
    run.name_run("AlexNet-CIFAR10-seed0")
    upload(started)

    assert store.get_run(started.run_id).info.run_name == "my best"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_end_run_of_an_adopted_run_sets_its_status_without_a_start(status, store, adopted_run_id):
    run.adopt_run()
    run.end_run(status)

    assert store.get_run(adopted_run_id).info.status == status


def test_first_final_status_counts_from_another_thread(store):
    started = run.start_run(None, None, None)
    marker = threading.Thread(target=run.set_final_status, args=("KILLED",))
    marker.start()
    marker.join()
    run.end_run("FINISHED")

    assert store.get_run(started.run_id).info.status == "KILLED"
    assert mlflow.active_run() is None


@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_stop_in_a_slurm_job_leaves_the_status_to_its_script(
    status, store, adopted_run_id, monkeypatch
):
    monkeypatch.setenv("PYCLASSIFY_STATUS_BY_SLURM", adopted_run_id)
    upload(run.start_run(None, None, None))
    store.update_run(adopted_run_id, status=status)  # as the script may do at any time
    run.end_run("KILLED")

    assert store.get_run(adopted_run_id).info.status == status
    assert store.get_run(adopted_run_id).info.end_time is None
    assert mlflow.active_run() is None


def test_next_run_in_the_same_process_gets_its_own_status(store):
    for status in ("KILLED", "FINISHED"):
        started = run.start_run(None, None, None)
        run.end_run(status)

        assert store.get_run(started.run_id).info.status == status


def fail():
    raise ZeroDivisionError("division by zero")


def test_warn_on_error_of_an_optional_result_warns_with_action_and_reason(recwarn):
    assert run.warn_on_error("plot the figures", fail) is None

    (warning,) = recwarn
    assert str(warning.message) == (
        "could not plot the figures (ZeroDivisionError: division by zero); the run continues "
        "without this result"
    )
    assert run.describe_failures() == ""


def test_warn_on_error_of_a_required_result_fails_the_run_at_its_end(store):
    started = run.start_run(None, None, None)
    with pytest.warns(UserWarning, match="could not log the model .*; the run will be FAILED"):
        run.warn_on_error("log the model", fail, is_required=True)
    run.end_run("FINISHED")

    ended = store.get_run(started.run_id)
    assert ended.info.status == "FAILED"
    reason = "could not log the model (ZeroDivisionError: division by zero)"
    assert ended.data.tags["status_reason"] == run.describe_failures() == reason


def test_import_of_run_loads_neither_torch_nor_mlflow():
    code = "import sys, pyclassify.tracking.run; print({'torch', 'mlflow'} & set(sys.modules))"
    process = processes.run("-c", code, cwd=processes.ROOT, fresh=True, check=True)

    assert process.stdout == "set()\n"


def test_run_that_cannot_be_opened_nor_ended_is_ended_by_its_monitor(store, monkeypatch):
    def fail(*args):
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(records, "create_from_server", fail)
    monkeypatch.setattr(spooled_run, "_fail_new_run", fail)

    with pytest.raises(ConnectionError):
        run.start_run("tested", None, {})

    wait_until(lambda: list_runs(store)[0].info.end_time, "the monitor to end the run")
    (ended,) = list_runs(store)
    assert ended.info.status == "FAILED"
    assert "the server is gone" in ended.data.tags["status_reason"]
