"""A tracking server that is killed, or away for a whole training: all arrives, and once."""

import contextlib
import shutil
import socket
import threading
import time
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Metric

from pyclassify.cli import main
from pyclassify.tracking import run
from pyclassify.tracking.logger import RunLogger
from pyclassify.tracking.spool import registry, target
from pyclassify.tracking.spool.courier import SPOOL_TAG, Courier
from pyclassify.tracking.spool.delivery import HASTE, PATIENCE
from tests.support.restarting_server import Server
from tests.support.spooled import begin_again, points
from tests.support.waiting import wait_until


@pytest.fixture
def store(empty_store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tested")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    registry.register()
    yield Path(shutil.copy(empty_store, tmp_path))
    run.end("FINISHED")
    mlflow.set_tracking_uri(None)


@contextlib.contextmanager
def serving(store):
    """The server of a store, in a process of its own, and its client."""
    server = Server(store, store.parent / "artifacts")
    try:
        server.tell("there")
        yield server, mlflow.MlflowClient(f"http://127.0.0.1:{server.port}")
    finally:
        with contextlib.suppress(BrokenPipeError):
            server.stop()


def test_server_that_is_killed_during_a_delivery_has_all_of_it_once(store):
    root, steps = store.parent / "spool", range(20_000)
    with serving(store) as (server, there):
        experiment = there.get_experiment_by_name("tested").experiment_id
        run_id = there.create_run(experiment).info.run_id
        folder = target.prepare(root, there, run_id)
        spool = mlflow.MlflowClient(f"spool://{root}")
        for start in steps[::1000]:
            batch = [Metric("loss", step / 8, step, step) for step in range(start, start + 1000)]
            spool.log_batch(run_id, batch)
        courier = Courier(folder, there)
        delivery = threading.Thread(target=_until_it_dies, args=(courier,))
        delivery.start()
        wait_until((folder / "delivered.json").exists, 30)
        server.process.kill()
        delivery.join(30)
        assert not courier.is_done()

    database = mlflow.MlflowClient(f"sqlite:///{store}")
    Courier(folder, database).deliver()
    assert points(database, run_id, "loss") == [(step, step / 8) for step in steps]
    begin_again(folder)


def _until_it_dies(courier):
    with contextlib.suppress(mlflow.MlflowException):
        courier.deliver()


def test_training_whose_server_is_away_from_start_to_end_arrives_by_sync(
    store, monkeypatch, capsys
):
    with serving(store) as (server, there):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", there.tracking_uri)
        server.tell("away")
        with pytest.warns(UserWarning, match="can't be reached .nothing listens there.; what is"):
            run_id = log_a_run()
        assert f"reached: pyclassify sync {store.parent}/runs/spool/{run_id}\n" in (
            capsys.readouterr().err
        )
        assert main(["sync"]) == 1
        assert f"{run_id}: nothing delivered: nothing listens there\n" in capsys.readouterr().err

        server.tell("there")
        assert main(["sync"]) == 0
        experiment = there.get_experiment_by_name("tested").experiment_id
        (made,) = there.search_runs([experiment])
        assert (made.info.status, made.data.metrics) == ("FINISHED", {"val_loss": 0.5})
        assert made.data.tags[SPOOL_TAG] == run_id
        assert f"{run_id} as run {made.info.run_id}: " in capsys.readouterr().out


def log_a_run():
    logger = RunLogger()
    logger.log_metrics({"val_loss": 0.5}, step=3)
    run.end("FINISHED")
    return logger.run_id


def test_server_that_comes_back_gets_what_was_logged_meanwhile(store, monkeypatch):
    monkeypatch.setattr("pyclassify.tracking.spool.delivery.PERIOD", 0.1)
    with serving(store) as (server, there):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", there.tracking_uri)
        logger = RunLogger()
        logger.log_metrics({"val_loss": 0.5}, step=3)
        with pytest.warns(
            UserWarning,
            match="takes nothing .(nothing listens there|it broke off the connection).;",
        ):
            log_while_away(server, logger)
        server.tell("there")
        run.end("FINISHED")

        made = there.get_run(logger.run_id)
        assert made.info.status == "FINISHED"
        assert points(there, logger.run_id, "val_loss")[-1] == (99, 0.25)
        assert made.data.tags["attempts"] == "1"


def log_while_away(server, logger):
    server.tell("away")
    logger.log_metrics({"val_loss": 0.25}, step=99)
    wait_until(lambda: logger.written.is_away(), 20)


def test_server_that_never_answers_costs_a_training_its_patience_once(store, monkeypatch):
    for name, seconds in {"spool.delivery.REFRESH": 0.2, "opening.STOP_SECONDS": 0.5}.items():
        monkeypatch.setattr(f"pyclassify.tracking.{name}", seconds)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", PATIENCE["MLFLOW_HTTP_REQUEST_TIMEOUT"])
    monkeypatch.setitem(HASTE, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        logger = RunLogger()
        with pytest.warns(UserWarning, match="it does not answer in time"):
            logger.log_metrics({"val_loss": 0.5}, step=3)
        run.end("KILLED")

    assert time.monotonic() - started < 10
    assert logger.written.delivery.unsent()[0] > 0
