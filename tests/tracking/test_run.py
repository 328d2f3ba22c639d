"""One run, its parameters and its true status, in a store of its own."""

import shutil
import sys
import threading
import time

import mlflow
import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException

from pyclassify.spool.spooled_run import SpooledRun
from pyclassify.spool.uploader import Uploader
from pyclassify.tracking import final_status, run
from pyclassify.tracking.logger import RunLogger
from pyclassify.utils import launcher
from tests.support import processes
from tests.support.spooled import answering, files_of_at_most, points
from tests.support.stores import using


def deliver(written):
    """Wait until the server has what was written of a run."""
    assert written.delivery.ask(300)


def all_runs(store):
    return store.search_runs([each.experiment_id for each in store.search_experiments()])


@pytest.fixture
def given(store, monkeypatch):
    """A run as `mlflow run` makes it and hands it over."""
    experiment = store.get_experiment_by_name("tested")
    made = store.create_run(experiment.experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    return made.info.run_id


def test_given_run_is_adopted(store, given):
    logger = RunLogger(experiment_name="another")
    logger.log_metrics({"val_loss": 0.5}, step=3)
    deliver(logger.spooled_run)

    assert logger.run_id == given
    assert [each.info.run_id for each in all_runs(store)] == [given]
    assert store.get_metric_history(given, "val_loss")[0].step == 3


def test_own_run_goes_to_the_experiment_that_was_named(store, monkeypatch):
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # which has it restored afterwards
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    logger = RunLogger(experiment_name="another")
    logger.log_metrics({"val_loss": 0.5}, step=3)

    made = store.get_run(logger.run_id)
    assert store.get_experiment(made.info.experiment_id).name == "another"


def test_own_run_in_a_spool_goes_to_its_experiment_when_it_is_delivered(spool, monkeypatch):
    with using(spool.there):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"spool://{spool.root}")
        logger = RunLogger(experiment_name="another", run_name="mine")
        logger.log_metrics({"val_loss": 0.5}, step=3)
        run.end_run("FINISHED")
    Uploader(spool.root / logger.run_id, spool.there).deliver()

    experiment = spool.there.get_experiment_by_name("another")
    (made,) = spool.there.search_runs([experiment.experiment_id])
    assert (made.info.run_name, made.info.status) == ("mine", "FINISHED")
    assert made.data.metrics == {"val_loss": 0.5}


def test_server_that_refuses_its_user_ends_a_training_before_it_begins(
    store, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    with answering(403) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(MlflowException) as refused:
            RunLogger().log_metrics({"val_loss": 0.5}, step=3)

    assert refused.value.error_code == "PERMISSION_DENIED"
    assert not (tmp_path / "runs").exists()


def test_log_that_finds_no_room_is_told_to_who_saves_a_checkpoint(spool):
    written = SpooledRun(spool.folder)
    with files_of_at_most(0):
        with pytest.warns(UserWarning, match="in memory"):
            written.client.log_metric(spool.run_id, "loss", 0.5, step=1)
        with pytest.raises(OSError, match=f"{spool.folder} can't be written"):
            written.keep()
    with pytest.warns(UserWarning, match="written again"):
        written.keep()
    written.let_go()

    written.keep()  # it is over, and has nothing to keep
    assert points(spool.client, spool.run_id, "loss") == [(1, 0.5)]


@pytest.mark.parametrize("value", [0.81, 1e-4, 2.5e-38, 3.0, 12345.678, float("inf")])
def test_what_torch_has_in_32_bits_is_kept_as_a_person_would_write_it(value, store):
    narrow = torch.tensor(value).item()
    logger = RunLogger()
    logger.log_metrics({"val_loss": narrow, "exact": 1 / 3}, step=0)
    deliver(logger.spooled_run)

    kept = store.get_run(logger.run_id).data.metrics
    assert kept["val_loss"] == min(value, sys.float_info.max)  # as MLflow keeps what is infinite
    assert torch.tensor(kept["val_loss"]).item() == narrow
    assert kept["exact"] == 1 / 3


def test_own_run_is_made_without_one(store):
    logger = RunLogger(run_name="first", tags={"course": "computing"})

    assert all_runs(store) == []
    logger.log_metrics({"val_loss": 0.5}, step=0)
    (made,) = all_runs(store)
    assert made.info.run_id == logger.run_id
    assert made.info.run_name == "first"
    assert made.data.tags["course"] == "computing"
    assert made.info.status == "RUNNING"


def test_tracking_uri_is_read_when_the_logger_is_made_not_imported(store, tmp_path):
    elsewhere = f"sqlite:///{shutil.copy(tmp_path / 'mlflow.db', tmp_path / 'elsewhere.db')}"
    mlflow.set_tracking_uri(elsewhere)

    RunLogger().log_metrics({"val_loss": 0.5}, step=0)
    assert len(all_runs(mlflow.MlflowClient(elsewhere))) == 1


def test_other_ranks_neither_make_nor_touch_a_run(store, given, monkeypatch):
    with monkeypatch.context() as other:
        other.setenv("RANK", "1")
        other.setattr(rank_zero_only, "rank", 1)
        logger = RunLogger()
        logger.log_metrics({"val_loss": 0.5}, step=0)
        run.adopt_run()
        run.end_run("FAILED")
        assert logger.run_id is None

    assert store.get_run(given).info.status == "RUNNING"


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
def test_first_process_is_told_by_what_launchers_set(variables, is_first, monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert launcher.is_rank_zero() is is_first


def test_what_a_callback_logs_by_mlflow_itself_goes_to_the_same_run(store):
    logger = RunLogger()
    logger.log_metrics({"val_loss": 0.5}, step=0)
    mlflow.log_metric("mine", 1)
    deliver(logger.spooled_run)

    assert store.get_run(logger.run_id).data.metrics == {"val_loss": 0.5, "mine": 1}


def test_random_name_gives_way_to_one_that_says_something(store):
    made = run.start_run(None, None, None)
    run.name_run("AlexNet-CIFAR10-seed0")
    deliver(made)

    assert store.get_run(made.run_id).info.run_name == "AlexNet-CIFAR10-seed0"


def test_name_that_a_person_gave_stays(store):
    made = run.start_run(None, "my best", None)
    run.name_run("AlexNet-CIFAR10-seed0")
    deliver(made)

    assert store.get_run(made.run_id).info.run_name == "my best"


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_run_that_was_given_but_never_started_gets_its_status(status, store, given):
    run.adopt_run()
    run.end_run(status)

    assert store.get_run(given).info.status == status


def test_status_marked_in_another_thread_is_the_one_that_counts(store):
    made = run.start_run(None, None, None)
    marker = threading.Thread(target=run.set_final_status, args=("KILLED",))
    marker.start()
    marker.join()
    run.end_run("FINISHED")

    assert store.get_run(made.run_id).info.status == "KILLED"
    assert mlflow.active_run() is None


@pytest.mark.parametrize("status", ["RUNNING", "FAILED"])
def test_stop_in_a_slurm_job_leaves_the_status_to_the_script_of_the_job(
    status, store, given, monkeypatch
):
    monkeypatch.setenv("PYCLASSIFY_STATUS_BY_SLURM", given)
    deliver(run.start_run(None, None, None))
    store.update_run(given, status=status)  # as the script may do at any time
    run.end_run("KILLED")

    assert store.get_run(given).info.status == status
    assert store.get_run(given).info.end_time is None
    assert mlflow.active_run() is None


def test_next_run_in_the_same_process_has_a_status_of_its_own(store):
    for status in ("KILLED", "FINISHED"):
        made = run.start_run(None, None, None)
        run.end_run(status)

        assert store.get_run(made.run_id).info.status == status


def test_stopped_run_is_killed_again_after_mlflow_run_called_it_failed(store, given):
    store.set_terminated(given, "FAILED")

    final_status.enforce_final_status(given, "KILLED", parent=-1)
    assert store.get_run(given).info.status == "KILLED"


def test_insisting_ends_where_nobody_objects(store, given, monkeypatch):
    monkeypatch.setattr(final_status, "TIMEOUT_SECONDS", 0.2)
    store.set_terminated(given, "KILLED")

    started = time.monotonic()
    final_status.enforce_final_status(given, "KILLED", parent=-1)
    assert time.monotonic() - started > 0.2
    assert store.get_run(given).info.status == "KILLED"


def test_mlflow_run_still_overwrites_a_status():
    # Once this fails, MLflow is mended and pyclassify/tracking/final_status.py can go.
    assert not RunStatus.is_terminated("KILLED")


def test_loading_what_ends_a_run_loads_neither_torch_nor_mlflow():
    code = "import sys, pyclassify.tracking.run; print({'torch', 'mlflow'} & set(sys.modules))"
    said = processes.run("-c", code, cwd=processes.ROOT, fresh=True, check=True)

    assert said.stdout == "set()\n"
