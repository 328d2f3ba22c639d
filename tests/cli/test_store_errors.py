"""What a store refuses is one line of ours, in each command, and leaves no run behind."""

import contextlib
import shutil
import sqlite3

import mlflow
import pytest

from tests.support.phrases import mentions
from tests.support.servers import serve_page
from tests.support.trainings import ERROR, SHAPES

PAGE = "<html><head><title>Sign in</title></head><body>" + "padding " * 500 + "</body></html>"
RUN_ID = "0" * 32


@contextlib.contextmanager
def folder_of_an_older_mlflow(folder, empty_store):
    (folder / "mlruns" / "0").mkdir(parents=True)
    (folder / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\nname: Default\n")
    yield None


@contextlib.contextmanager
def database_of_another_schema(folder, empty_store):
    shutil.copy(empty_store, folder / "other.db")
    with contextlib.closing(sqlite3.connect(folder / "other.db")) as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
        database.commit()
    yield f"sqlite:///{folder}/other.db"


@contextlib.contextmanager
def damaged_database(folder, empty_store):
    (folder / "other.db").write_bytes(b"hello world" * 1000)
    yield f"sqlite:///{folder}/other.db"


@contextlib.contextmanager
def folder_in_place_of_a_database(folder, empty_store):
    (folder / "other.db").mkdir()
    yield f"sqlite:///{folder}/other.db"


@contextlib.contextmanager
def empty_answers(folder, empty_store):
    with serve_page(200, "{}") as uri:
        yield uri


def address(uri):
    return lambda folder, empty_store: contextlib.nullcontext(uri)


def page(status, redirect=None):
    return lambda folder, empty_store: serve_page(status, PAGE, redirect)


STORES = {
    "older mlflow": (
        folder_of_an_older_mlflow,
        ["mlruns", "mlflow migrate-filestore --source", "MLFLOW_TRACKING_URI=sqlite:///mlflow.db"],
    ),
    "another schema": (database_of_another_schema, ["ffffffffffff", "mlflow db upgrade sqlite:"]),
    "damaged": (damaged_database, ["other.db", "damaged", "MLFLOW_TRACKING_URI"]),
    "folder": (
        folder_in_place_of_a_database,
        ["other.db", "is a directory", "MLFLOW_TRACKING_URI"],
    ),
    "scheme": (address("htp://server:5000"), ["htp://server:5000", "http://HOST:PORT"]),
    "slashes": (address("sqlite://mlflow.db"), ["sqlite://mlflow.db", "sqlite:///relative.db"]),
    "driver": (
        address("mysql+nodriver://ada:lovelace@127.0.0.1:1/runs"),
        ["mysql+nodriver://***@127.0.0.1:1/runs", "nodriver"],
    ),
    "401": (page(401), ["authentication failed", 401, "Sign in", "MLFLOW_TRACKING_USERNAME"]),
    "403": (page(403), ["permission denied", 403, "Sign in"]),
    "404": (page(404), [404, "not an MLflow server", "MLFLOW_TRACKING_URI"]),
    "login": (page(200, "/login"), ["page", "Sign in", "not an MLflow server"]),
    "empty": (empty_answers, ["127.0.0.1", "MLflow server", "MLFLOW_TRACKING_URI"]),
}


@pytest.fixture(params=STORES)
def bad_store(request, cli, monkeypatch, tmp_path, empty_store):
    """What the error names, where MLFLOW_TRACKING_URI is a store that refuses."""
    open_store, facts = STORES[request.param]
    with open_store(tmp_path, empty_store) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri or "")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        mlflow.set_tracking_uri(None)
        if uri is None:
            monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield facts


def is_one_line(done, facts, code=1):
    assert done.code == code
    lines = [line for line in done.err.splitlines() if "Warning" not in line]
    assert [line for line in lines if line.startswith(ERROR)] == lines[-1:], done.err
    assert "Traceback" not in done.err
    assert "lovelace" not in done.err
    assert len(lines[-1]) < 800
    return mentions(lines[-1], *facts)


def test_fit_with_a_store_that_refuses_is_one_line(cli, bad_store):
    assert is_one_line(cli(f"fit {SHAPES}"), bad_store)


@pytest.mark.parametrize(
    "command", ["compare --experiment tested", f"resume {RUN_ID}", f"rerun {RUN_ID}"]
)
@pytest.mark.parametrize("name", ["damaged", "401", "login", "older mlflow"])
def test_command_with_a_store_that_refuses_is_one_line(
    name, command, cli, monkeypatch, tmp_path, empty_store
):
    open_store, facts = STORES[name]
    with open_store(tmp_path, empty_store) as uri:
        mlflow.set_tracking_uri(None)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri or f"file://{tmp_path}/mlruns")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

        done = cli(command)

    assert is_one_line(done, facts)


def test_promote_with_a_server_that_refuses_is_one_line(cli, monkeypatch):
    with serve_page(403, PAGE) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        done = cli("promote alexnet 1")

    assert is_one_line(done, ["registry", "permission denied", "MLFLOW_REGISTRY_URI"])


def test_fit_in_a_deleted_experiment_names_the_command_that_restores_it(cli, store):
    experiment_id = store.create_experiment("gone")
    store.delete_experiment(experiment_id)

    done = cli(f"fit {SHAPES} --trainer.logger.experiment_name gone")

    restore = f"mlflow experiments restore --experiment-id {experiment_id}"
    assert is_one_line(done, ["'gone' is deleted", restore])
    assert store.search_runs([experiment_id]) == []


@pytest.mark.parametrize("experiment_id", ["4711", "abc"])
def test_fit_in_an_experiment_that_is_not_there_is_one_line(experiment_id, cli, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)

    done = cli(f"fit {SHAPES}")

    assert is_one_line(done, [f"{experiment_id!r}", "mlflow experiments search"])
    assert done.runs == []


def test_fit_as_a_run_that_is_not_there_is_one_line(cli, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", RUN_ID)

    assert is_one_line(cli(f"fit {SHAPES}"), [RUN_ID, "MLFLOW_RUN_ID"])


def test_fit_as_a_deleted_run_names_the_command_that_restores_it(cli, store, monkeypatch):
    run_id = store.create_run(store.get_experiment_by_name("tested").experiment_id).info.run_id
    store.delete_run(run_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)

    done = cli(f"fit {SHAPES}")

    assert is_one_line(done, [run_id, f"mlflow runs restore --run-id {run_id}"])


@pytest.mark.parametrize("option", ["run_name", "experiment_name"])
def test_fit_with_a_name_of_600_letters_is_one_line_and_makes_no_run(option, cli):
    done = cli(f"fit {SHAPES} --trainer.logger.{option} {'n' * 600}")

    assert is_one_line(done, [600, f"--trainer.logger.{option}"], code=2)
    assert done.runs == []
