"""`pyclassify clear`: local files are removed only if the server has all of the run."""

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from pyclassify.runs import clear as module
from pyclassify.spool import lock, records
from tests.support.phrases import mentions
from tests.support.spooled import ACQUIRE
from tests.support.stores import list_runs, using
from tests.support.trainings import SHAPES, refusal, train_beside


@pytest.fixture(scope="module")
def trained(module_store):
    """A training, whose folder is only read."""
    done = train_beside(module_store, f"{SHAPES} --trainer.logger.system_metrics=false")
    return Path(module_store.tracking_uri.removeprefix("sqlite:///")).parent, done.run


@pytest.fixture
def run(trained, module_store, tmp_path, monkeypatch):
    """A copy of the folder of the training, with its run at the server."""
    folder, run = trained
    shutil.copytree(folder / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    with using(module_store):
        yield run
        module_store.set_terminated(run.info.run_id, "FINISHED", run.info.end_time)


@pytest.fixture
def clear(run, command):
    """Run `pyclassify clear` with some options: see `command`."""
    return lambda options="": command(f"clear {options}")


def find_files():
    return [path for path in Path("runs").rglob("*") if path.is_file()]


def spool_of(run):
    return Path("runs/spool", run.info.run_id)


def test_finished_run_is_removed_and_stays_at_the_server(clear, run):
    done = clear()

    assert (done.code, done.err, find_files()) == (0, "", [])
    line, total = done.out.splitlines()
    assert line.startswith(f"removed       {run.info.run_id[:8]}  ")
    assert line.endswith(run.info.run_name)
    assert mentions(total, "removed", "kept 0 kB")
    assert mlflow.get_run(run.info.run_id).info.status == "FINISHED"
    assert mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/weights/best.ckpt")


def test_dry_run_removes_nothing(clear):
    before = find_files()

    assert clear("--dry-run").out.startswith("would remove  ")
    assert find_files() == before


@pytest.mark.parametrize(("age", "is_kept"), [("1d", True), ("0d", False)])
def test_run_is_kept_until_it_is_older(clear, age, is_kept):
    done = clear(f"--older {age}")

    assert bool(find_files()) is is_kept
    assert ("ended less than 1d ago" in done.out) is is_kept


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_run_that_can_be_resumed_is_kept_unless_asked_for(clear, run, status):
    mlflow.MlflowClient().set_terminated(run.info.run_id, status)

    kept = clear()

    assert mentions(kept.out, status, f"pyclassify resume {run.info.run_id[:8]}", "--unfinished")
    assert find_files()
    clear("--unfinished")
    assert find_files() == []


def test_running_run_is_kept(clear, run):
    mlflow.MlflowClient().update_run(run.info.run_id, status="RUNNING")

    assert "the run is RUNNING" in clear("--unfinished").out
    assert find_files()


def test_run_that_is_written_is_kept(clear, run):
    lock.acquire(spool_of(run))
    try:
        assert "locked by process" in clear().out
    finally:
        lock.release(spool_of(run))
    assert find_files()


@pytest.mark.parametrize("moment", ["_check_run", "_remove"])
def test_no_process_can_write_to_a_run_while_it_is_removed(moment, clear, run, monkeypatch):
    original, writers = getattr(module, moment), []

    def start_writer(*args):
        writers.append(subprocess.run([sys.executable, "-c", acquire], check=False))
        return original(*args)

    acquire = ACQUIRE.format(folder=str(spool_of(run).absolute()))
    monkeypatch.setattr(module, moment, start_writer)

    done = clear()

    assert [writer.returncode for writer in writers] == [1]
    assert (done.code, find_files()) == (0, [])


def test_run_that_another_process_has_locked_meanwhile_is_kept(clear, run, monkeypatch):
    with (spool_of(run) / lock.LOCK_FILE).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(lock, "find_holder", lambda folder: "")

        assert "is locked by" in clear().out
    assert find_files()


def test_run_with_something_to_upload_is_kept(clear, run):
    (spool_of(run) / records.DONE_FILE).unlink()

    assert f"pyclassify sync runs/spool/{run.info.run_id}" in clear().out
    assert find_files()


def test_run_with_rejected_records_is_kept(clear, run):
    (spool_of(run) / records.REJECTED_FILE).write_text("{}\n")

    assert "rejected.records" in clear().out
    assert find_files()


def test_run_that_another_server_has_is_kept(clear, run, store):
    with using(store):
        assert "does not have this run" in clear().out
    assert list_runs(store) == []
    assert find_files()


def test_run_of_a_server_that_is_away_is_kept_and_exits_1(clear, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    done = clear()

    assert done.code == 1
    assert "refused" in done.out
    assert find_files()


def test_run_whose_weights_are_nowhere_else_is_kept(clear, run):
    weights = Path(run.info.artifact_uri.removeprefix("file://"), "weights")
    shutil.move(weights, weights.with_name("hidden"))
    try:
        assert "neither its weights nor a model" in clear().out
    finally:
        shutil.move(weights.with_name("hidden"), weights)
    assert find_files()


def test_run_without_checkpoints_needs_no_weights_at_the_server(clear, run):
    shutil.rmtree(Path("runs", run.info.experiment_id, run.info.run_id, "checkpoints"))
    weights = Path(run.info.artifact_uri.removeprefix("file://"), "weights")
    shutil.move(weights, weights.with_name("hidden"))
    try:
        assert clear().out.startswith("removed ")
    finally:
        shutil.move(weights.with_name("hidden"), weights)
    assert [path for path in find_files() if path.suffix == ".ckpt"] == []


def test_folder_without_a_log_is_kept(clear, run):
    shutil.rmtree(spool_of(run))

    assert "is missing" in clear().out
    assert find_files()


@pytest.mark.parametrize(
    ("options", "code", "phrase"),
    [("--older soon", 2, "invalid --older: 'soon'"), ("nowhere", 1, "nowhere is not a directory")],
)
def test_invalid_command_line_is_refused(clear, options, code, phrase):
    assert phrase in refusal(clear(options), code)
