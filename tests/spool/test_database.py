"""Several processes may open a new database, and create an experiment in it, at one moment."""

import sys
import time
from importlib.metadata import entry_points

import mlflow
import pytest

from pyclassify.spool import database
from pyclassify.tracking import search
from tests.support.first_use import run_at_once

IMPORTS = """
import mlflow
import mlflow.store.tracking.sqlalchemy_store
from pyclassify.spool.experiments import open_experiment
from pyclassify.spool.store import register_scheme

register_scheme()
"""
OPEN = 'print("experiment", open_experiment(mlflow.MlflowClient("sqlite:///new.db"), "new"))'


def test_open_tracking_store_by_several_first_processes_makes_one_database(tmp_path):
    written = run_at_once(IMPORTS, OPEN, tmp_path)

    assert {text.splitlines()[-1] for text in written} == {"experiment 1"}
    assert not list(tmp_path.glob(".*"))  # the lock is removed


def test_open_tracking_store_waits_for_another_process(tmp_path, monkeypatch):
    path, seconds = tmp_path / "new.db", []
    monkeypatch.setattr(database, "_LOCK_TIMEOUT_SECONDS", 0.2)

    with database._lock_file(path):
        start = time.monotonic()
        with database._lock_file(path):  # whose holder hangs: the second continues without the lock
            seconds.append(time.monotonic() - start)

    assert seconds[0] >= 0.2


def test_open_tracking_store_in_a_folder_that_can_not_be_written_takes_no_lock(tmp_path):
    lock = tmp_path / ".there.db.lock"
    lock.mkdir()  # which not even root can open

    with database._lock_file(tmp_path / "there.db"):
        pass

    assert lock.is_dir()


def test_open_store_finds_a_database_by_a_quoted_address(tmp_path, monkeypatch):
    (tmp_path / "my runs.db").touch()
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: f"sqlite:///{tmp_path}/my%20runs.db")

    assert isinstance(search.open_store(), mlflow.MlflowClient)


@pytest.mark.parametrize("name", [":memory:", "file:gone/there.db?mode=ro&uri=true"])
def test_open_tracking_store_of_an_address_without_a_path_makes_no_file(
    name, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    with database._lock_database(f"sqlite:///{name}"):
        made = list(tmp_path.iterdir())

    assert made == []


@pytest.mark.parametrize("name", ["folder", "file/new.db"])
def test_open_tracking_store_of_an_invalid_file_raises_at_once(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    start = time.monotonic()

    with pytest.raises(mlflow.MlflowException, match=name.partition("/")[0]):
        database.open_tracking_store(f"sqlite:///{tmp_path}/{name}")

    assert time.monotonic() - start < 30  # MLflow retries for 100 s


@pytest.mark.parametrize("kind", ["tracking", "registry"])
def test_plain_mlflow_opens_sqlite_through_the_lock(kind):
    group = {"tracking": "mlflow.tracking_store", "registry": "mlflow.model_registry_store"}[kind]

    values = {point.name: point.value for point in entry_points(group=group)}

    assert values["sqlite"] == f"pyclassify.spool.database:open_{kind}_store"


def test_open_tracking_store_of_an_unreachable_server_raises_at_once():
    database.register_databases()
    start = time.monotonic()

    with pytest.raises(mlflow.MlflowException, match="Connection refused") as error:
        mlflow.MlflowClient("postgresql+psycopg2://ada:lovelace@127.0.0.1:1/runs").get_experiment(0)

    assert error.value.error_code == "TEMPORARILY_UNAVAILABLE"  # so that a training continues
    assert time.monotonic() - start < 60  # MLflow retries for 100 s


def test_database_is_opened_without_filelock(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "filelock", None)  # only MLflow is installed

    with database._lock_file(tmp_path / "mlflow.db"):
        assert list(tmp_path.iterdir()) == []
