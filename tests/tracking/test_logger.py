"""The logger: which run it logs to, and what a run does without what can't be logged."""

import re
import shutil
import sys

import mlflow
import pytest
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from mlflow.exceptions import MlflowException

from pyclassify.cli.main import main
from pyclassify.spool.uploader import Uploader
from pyclassify.tracking import run
from pyclassify.tracking.logger import RunLogger
from tests.support.phrases import mentions
from tests.support.spooled import responding_with
from tests.support.stores import using
from tests.support.trainings import QUIET, SHAPES


def deliver(written):
    """Wait until the server has what was written of a run."""
    assert written.upload_thread.wait_until_uploaded(300)


def all_runs(store):
    return store.search_runs(
        [experiment.experiment_id for experiment in store.search_experiments()]
    )


def test_logger_with_a_run_of_mlflow_run_logs_to_it(store, adopted_run_id):
    logger = RunLogger(experiment_name="another")
    logger.log_metrics({"val_loss": 0.5}, step=3)
    deliver(logger.spooled_run)

    assert logger.run_id == adopted_run_id
    assert [found.info.run_id for found in all_runs(store)] == [adopted_run_id]
    assert store.get_metric_history(adopted_run_id, "val_loss")[0].step == 3


def test_logger_with_an_experiment_name_creates_the_run_there(store, monkeypatch):
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "")  # which has it restored afterwards
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    logger = RunLogger(experiment_name="another")
    logger.log_metrics({"val_loss": 0.5}, step=3)

    created = store.get_run(logger.run_id)
    assert store.get_experiment(created.info.experiment_id).name == "another"


def test_logger_with_a_spool_as_store_uploads_to_the_experiment_later(spool, monkeypatch):
    with using(spool.there):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"spool://{spool.root}")
        logger = RunLogger(experiment_name="another", run_name="mine")
        logger.log_metrics({"val_loss": 0.5}, step=3)
        run.end_run("FINISHED")
    Uploader(spool.root / logger.run_id, spool.there).upload()

    experiment = spool.there.get_experiment_by_name("another")
    (created,) = spool.there.search_runs([experiment.experiment_id])
    assert (created.info.run_name, created.info.status) == ("mine", "FINISHED")
    assert created.data.metrics == {"val_loss": 0.5}


def test_logger_without_permission_raises_and_writes_no_spool(store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    with responding_with(403) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        with pytest.raises(MlflowException) as refused:
            RunLogger().log_metrics({"val_loss": 0.5}, step=3)

    assert refused.value.error_code == "PERMISSION_DENIED"
    assert not [*tmp_path.glob("runs/spool/*")]


@pytest.mark.parametrize("value", [0.81, 1e-4, 2.5e-38, 3.0, 12345.678, float("inf")])
def test_log_metrics_of_a_float32_logs_its_shortest_decimal(value, store):
    narrow = torch.tensor(value).item()
    logger = RunLogger()
    logger.log_metrics({"val_loss": narrow, "exact": 1 / 3}, step=0)
    deliver(logger.spooled_run)

    metrics = store.get_run(logger.run_id).data.metrics
    assert metrics["val_loss"] == min(value, sys.float_info.max)  # as MLflow keeps what is infinite
    assert torch.tensor(metrics["val_loss"]).item() == narrow
    assert metrics["exact"] == 1 / 3


def test_logger_without_a_run_creates_one_at_the_first_metric(store):
    logger = RunLogger(run_name="first", tags={"course": "computing"})

    assert all_runs(store) == []
    logger.log_metrics({"val_loss": 0.5}, step=0)
    (created,) = all_runs(store)
    assert created.info.run_id == logger.run_id
    assert created.info.run_name == "first"
    assert created.data.tags["course"] == "computing"
    assert created.info.status == "RUNNING"


def test_tracking_uri_is_read_when_the_logger_is_created(store, tmp_path):
    elsewhere = f"sqlite:///{shutil.copy(tmp_path / 'mlflow.db', tmp_path / 'elsewhere.db')}"
    mlflow.set_tracking_uri(elsewhere)

    RunLogger().log_metrics({"val_loss": 0.5}, step=0)
    assert len(all_runs(mlflow.MlflowClient(elsewhere))) == 1


def test_logger_of_another_rank_leaves_runs_alone(store, adopted_run_id, monkeypatch):
    with monkeypatch.context() as other:
        other.setenv("RANK", "1")
        other.setattr(rank_zero_only, "rank", 1)
        logger = RunLogger()
        logger.log_metrics({"val_loss": 0.5}, step=0)
        run.adopt_run()
        run.end_run("FAILED")
        assert logger.run_id is None

    assert store.get_run(adopted_run_id).info.status == "RUNNING"


def test_metric_logged_by_mlflow_itself_goes_to_the_same_run(store):
    logger = RunLogger()
    logger.log_metrics({"val_loss": 0.5}, step=0)
    mlflow.log_metric("mine", 1)
    deliver(logger.spooled_run)

    assert store.get_run(logger.run_id).data.metrics == {"val_loss": 0.5, "mine": 1}


def test_training_without_an_artifact_store_finishes_and_syncs_later(
    cli, tmp_path, monkeypatch, recwarn
):
    blocked = tmp_path / "blocked"
    blocked.touch()  # no folder can be made below a file, not even by root
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("full disk", f"{blocked}/artifacts")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "full disk")

    done = cli(f"train {SHAPES}")
    (run,) = client.search_runs([experiment])

    assert done.code == 0
    assert run.info.status == "FINISHED"
    assert {"train_loss", "val_accuracy", "test_accuracy"} < run.data.metrics.keys()
    assert run.data.params["model/learning_rate"] == "0.0001"
    messages = {str(warning.message) for warning in recwarn}
    (message,) = {text for text in messages if "file upload failed" in text}
    assert "Not a directory" in message
    last = done.err.splitlines()[-1]
    assert mentions(last, run.info.run_id, "not completely uploaded")
    assert re.search(r": config.yaml, .+ and \d+ more\. ", last)

    blocked.unlink()
    assert main(last.split("pyclassify ")[-1].split()) == 0
    paths = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "predictions.json", "confusion_matrix.png", "capsule"} < paths


def test_training_with_unlabeled_test_images_finishes_with_a_warning(cli, recwarn):
    parts = "--model=tests.support.networks.Unlabelled --data=tests.support.networks.Data"
    (run,) = cli(f"train {parts} --max_epochs=1 {QUIET}").runs

    assert run.info.status == "FINISHED"
    message = " ".join(str(warning.message) for warning in recwarn)
    assert "count the results by class" in message
