"""A tracking server that is killed or unreachable: each record is uploaded exactly once."""

import contextlib
import socket
import threading

import mlflow
import pytest
from mlflow.entities import Metric

from pyclassify.cli.main import main
from pyclassify.spool import records
from pyclassify.spool import store as registry
from pyclassify.spool.uploader import SPOOL_TAG, Uploader
from pyclassify.tracking import run
from pyclassify.tracking.logger import RunLogger
from pyclassify.utils.mlflow_settings import REQUEST_LIMITS, SHORT_REQUEST_LIMITS
from tests.support import waiting
from tests.support.phrases import mentions
from tests.support.restarting_server import Server
from tests.support.spooled import close_spool, limit_file_size, points
from tests.support.waiting import wait_until

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


@pytest.fixture
def database(store, tmp_path, monkeypatch):
    """The path of a new database for a server."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.chdir(tmp_path)
    registry.register_scheme()
    return tmp_path / "mlflow.db"


@contextlib.contextmanager
def serving(database):
    """The server of a database, in its own process, and a client of it."""
    server = Server(database, database.parent / "artifacts")
    try:
        server.set_available(True)
        yield server, mlflow.MlflowClient(f"http://127.0.0.1:{server.port}")
    finally:
        server.stop()


def test_server_killed_during_an_upload_has_each_record_once(database, store):
    root, steps = database.parent / "spool", range(20_000)
    with serving(database) as (server, there):
        experiment = there.get_experiment_by_name("tested").experiment_id
        run_id = there.create_run(experiment).info.run_id
        folder = records.create_from_server(root, there, run_id)
        spool = mlflow.MlflowClient(f"spool://{root}")
        for start in steps[::1000]:
            batch = [Metric("loss", step / 8, step, step) for step in range(start, start + 1000)]
            spool.log_batch(run_id, batch)
        uploader, begun, killed = Uploader(folder, there), threading.Event(), threading.Event()
        upload_thread = threading.Thread(target=_until_it_dies, args=(uploader, begun, killed))
        upload_thread.start()
        try:
            assert begun.wait(waiting.scale(30))
            server.process.kill()
            server.process.wait()
        finally:
            killed.set()
        upload_thread.join(waiting.scale(30))
        assert not uploader.is_done()

    Uploader(folder, store).upload()
    assert points(store, run_id, "loss") == [(step, step / 8) for step in steps]
    close_spool(folder)


def _until_it_dies(uploader, begun, killed):
    """Upload; wait after the second batch, so that the server is dead for the third."""

    def on_progress(_):
        if begun.is_set():
            killed.wait()
        begun.set()

    with contextlib.suppress(mlflow.MlflowException):
        uploader.upload(on_progress)


def test_training_without_its_server_is_uploaded_by_sync(database, monkeypatch, capsys):
    with serving(database) as (server, there):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", there.tracking_uri)
        server.set_available(False)
        with pytest.warns(UserWarning, match=r"can't be reached .connection refused"):
            run_id = log_a_run()
        folder = database.parent / "runs" / "spool" / run_id
        error = capsys.readouterr().err
        assert mentions(error, run_id, "connection refused", "bytes of records")
        assert error.endswith(f"pyclassify sync {folder}\n")  # the form of this message
        assert main(["sync"]) == 1
        assert mentions(capsys.readouterr().err, run_id, "upload failed", "connection refused")

        server.set_available(True)
        assert main(["sync"]) == 0
        experiment = there.get_experiment_by_name("tested").experiment_id
        (made,) = there.search_runs([experiment])
        assert (made.info.status, made.data.metrics) == ("FINISHED", {"val_loss": 0.5})
        assert made.data.tags[SPOOL_TAG] == run_id
        assert f"{run_id} as run {made.info.run_id}: " in capsys.readouterr().out


def log_a_run():
    logger = RunLogger()
    logger.log_metrics({"val_loss": 0.5}, step=3)
    run.end_run("FINISHED")
    return logger.run_id


def test_server_that_comes_back_gets_what_was_logged_meanwhile(database, monkeypatch):
    monkeypatch.setattr("pyclassify.spool.upload_thread.UPLOAD_SECONDS", 0.1)
    with serving(database) as (server, there):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", there.tracking_uri)
        logger = RunLogger()
        logger.log_metrics({"val_loss": 0.5}, step=3)
        failure = r"upload failed .(connection refused|connection closed)"
        with pytest.warns(UserWarning, match=failure):
            log_while_away(server, logger)
        server.set_available(True)
        run.end_run("FINISHED")

        made = there.get_run(logger.run_id)
        assert made.info.status == "FINISHED"
        assert points(there, logger.run_id, "val_loss")[-1] == (99, 0.25)
        assert made.data.tags["attempts"] == "1"


@pytest.fixture
def full_disk(database, monkeypatch):
    """A server, its client, a logger with an open run, and the size that its segment has."""
    monkeypatch.setattr("pyclassify.spool.spooled_run.STOP_TIMEOUT_SECONDS", 0.5)
    with serving(database) as (server, there):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", there.tracking_uri)
        logger = RunLogger()
        batch = [Metric("loss", step / 8, step, step) for step in range(1000)]
        logger.experiment.log_batch(logger.run_id, batch)
        assert logger.spooled_run.upload_thread.wait_until_uploaded(waiting.scale(30))
        yield server, there, logger, records.count_bytes(logger.spooled_run.folder)


def test_records_on_a_full_disk_are_uploaded_from_memory(full_disk):
    _, there, logger, size = full_disk
    with limit_file_size(size), pytest.warns(UserWarning, match="in memory"):
        log_and_end(logger, "FINISHED")

    assert points(there, logger.run_id, "val_loss") == [(4, 0.25)]
    assert there.get_run(logger.run_id).info.status == "FINISHED"


def test_records_without_disk_and_server_are_reported_as_lost(full_disk, capsys):
    server, _, logger, size = full_disk
    server.set_available(False)
    with limit_file_size(size), pytest.warns(UserWarning, match="in memory"):
        log_and_end(logger, "KILLED")

    error = capsys.readouterr().err
    command = f"pyclassify sync {logger.spooled_run.folder}"
    assert mentions(error, logger.run_id, "connection refused", command)
    assert mentions(error, "2 records", "lost")


def log_and_end(logger, status):
    logger.log_metrics({"val_loss": 0.25}, step=4)
    run.end_run(status)


def test_second_attempt_without_a_server_continues_the_spool_of_the_first(database, monkeypatch):
    monkeypatch.setattr("pyclassify.spool.spooled_run.STOP_TIMEOUT_SECONDS", 0.2)
    with serving(database) as (server, there):
        experiment = there.get_experiment_by_name("tested").experiment_id
        run_id = there.create_run(experiment).info.run_id
        monkeypatch.setenv("MLFLOW_TRACKING_URI", there.tracking_uri)
        server.set_available(False)
        for step in (3, 4):
            monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
            logger = RunLogger()
            with pytest.warns(UserWarning, match="can't be reached"):
                logger.log_metrics({"val_loss": step / 8}, step=step)
            run.end_run("KILLED")
            # Otherwise it would upload beside sync.
            logger.spooled_run.upload_thread.join(waiting.scale(10))

        server.set_available(True)
        assert main(["sync"]) == 0
        made = there.get_run(run_id)
        assert (made.info.status, made.data.tags["attempts"]) == ("KILLED", "2")
        assert points(there, run_id, "val_loss") == [(3, 3 / 8), (4, 4 / 8)]


def log_while_away(server, logger):
    server.set_available(False)
    logger.log_metrics({"val_loss": 0.25}, step=99)
    wait_until(logger.spooled_run.is_offline, "the upload thread to miss the server")


def test_server_that_never_answers_costs_a_training_one_timeout(database, monkeypatch):
    timeouts = {
        "upload_thread.REFRESH_TIMEOUT_SECONDS": 0.2,
        "spooled_run.STOP_TIMEOUT_SECONDS": 0.5,
    }
    for name, seconds in timeouts.items():
        monkeypatch.setattr(f"pyclassify.spool.{name}", seconds)
    # A call with MLflow's own timeout would never return.
    monkeypatch.setitem(REQUEST_LIMITS, TIMEOUT, "100000")
    monkeypatch.setenv(TIMEOUT, REQUEST_LIMITS[TIMEOUT])
    monkeypatch.setitem(SHORT_REQUEST_LIMITS, TIMEOUT, "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        logger = RunLogger()
        with pytest.warns(UserWarning, match="request timed out"):
            logger.log_metrics({"val_loss": 0.5}, step=3)
        run.end_run("KILLED")
        assert logger.spooled_run.upload_thread.find_unsent()[0] > 0
        assert count_connections(silent) <= 2  # one with a short timeout, and the upload thread's


def count_connections(server):
    """Count the connections to a server, and close them."""
    server.setblocking(False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            count += 1
    return count
