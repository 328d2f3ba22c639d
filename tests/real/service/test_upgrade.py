"""What an earlier MLflow kept is this one's, after the upgrade that the page tells of.

The databases in data are what MLflow 3.16.1 made of `service_content.fill` with 20 EPOCHS.
"""

import os
import sqlite3
import subprocess
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from tests.support import service_content
from tests.support.service import (
    columns_of,
    commands,
    database,
    need,
    rows,
    started_database,
    write_forking_programs,
)

pytestmark = pytest.mark.service
DATA = Path(__file__).parent / "data"
VERSION = "alembic_version"  # the table whose one row an upgrade replaces


@pytest.fixture(scope="module")
def one_persons(tmp_path_factory):
    """The address of an old database in sqlite, and how to upgrade it."""
    folder = tmp_path_factory.mktemp("old")
    with sqlite3.connect(folder / "mlflow.db") as old:
        old.executescript((DATA / "mlflow-3.16.1-sqlite.sql").read_text())
    old.close()
    command = ["bash", "-euo", "pipefail", "-c", commands("upgrade-alone")]
    env = {**os.environ, "PATH": write_forking_programs(folder / "bin")}
    return f"sqlite:///{folder}/mlflow.db", lambda: subprocess.run(
        command, cwd=folder, env=env, check=True
    )


@pytest.fixture(scope="module")
def a_groups():
    """The address of an old database in PostgreSQL, and how to upgrade it."""
    need("psql")
    with started_database() as service:
        dump = DATA / "mlflow-3.16.1-postgresql.sql"
        service.daemons.run("psql", "--quiet", "-vON_ERROR_STOP=1", f"--file={dump}")
        yield database(service), lambda: service.run("upgrade")


@pytest.fixture(scope="module", params=["one_persons", "a_groups"])
def upgraded(request):
    """An upgraded database's address, and the rows and the columns that it had before."""
    uri, upgrade = request.getfixturevalue(request.param)
    before = {table: found for table, found in rows(uri).items() if found}
    columns = {table: names for table, names in columns_of(uri).items() if table in before}
    upgrade()
    return SimpleNamespace(uri=uri, columns=columns, before=before)


def test_upgrade_keeps_every_row(upgraded):
    after = rows(upgraded.uri, upgraded.columns)
    assert after.pop(VERSION) != upgraded.before.pop(VERSION)
    assert after == upgraded.before


def test_upgraded_database_has_the_columns_of_a_new_one(upgraded, empty_store):
    assert columns_of(upgraded.uri) == columns_of(f"sqlite:///{empty_store}")


def test_upgraded_runs_are_read_with_their_history(upgraded):
    client = mlflow.MlflowClient(upgraded.uri)
    champion = client.get_model_version_by_alias("net", "champion")
    losses = client.get_metric_history(champion.run_id, "train_loss")
    assert [each.value for each in losses] == [1 / (1 + step) for step in range(20)]
    assert client.get_run(champion.run_id).data.params["note"] == service_content.TEXT


def test_upgraded_database_takes_new_runs(upgraded):
    client = mlflow.MlflowClient(upgraded.uri)
    run_id = client.create_run(client.get_experiment_by_name("net").experiment_id).info.run_id
    client.log_metric(run_id, "train_loss", 0.5)
    client.set_terminated(run_id)
    assert client.get_run(run_id).data.metrics == {"train_loss": 0.5}
