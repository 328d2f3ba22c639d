"""A group's server takes over what one person had in sqlite, by the page's commands."""

import contextlib
import shutil
import sqlite3
from types import SimpleNamespace

import mlflow
import pytest

from tests.support import service_content
from tests.support.service import ADMIN, database, need, rows, sign_in, started

pytestmark = pytest.mark.service


def one_persons(empty_store, folder):
    """A client of the database that MLflow makes in a folder where nothing is yet."""
    path = shutil.copy(empty_store, folder)
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        made.execute("DELETE FROM experiments WHERE experiment_id != 0")
        made.execute("UPDATE experiments SET artifact_location = ?", [f"{folder}/mlruns/0"])
    return mlflow.MlflowClient(f"sqlite:///{path}")


@pytest.fixture(scope="module")
def moved(empty_store, tmp_path_factory):
    """The service after the move: all `before` and `after`, and what the page's check `said`."""
    need("pgloader", "rclone", "sqlite3")
    folder = tmp_path_factory.mktemp("one person")
    with contextlib.chdir(folder):  # where MLflow makes `mlruns`, for the files
        mine = one_persons(empty_store, folder)
        service_content.fill(mine, folder / "made")
    before = service_content.tell(mine, folder)
    with started() as service, pytest.MonkeyPatch.context() as patch:
        service.run("move-records", SOURCE=str(folder))
        service.run("rclone", "move-files", SOURCE=str(folder))
        said = service.run("rclone", "move-check", SOURCE=str(folder))
        service.start_server()
        sign_in(patch, service, ADMIN)
        there = mlflow.MlflowClient(service.uri)
        after = service_content.tell(there, folder)
        yield SimpleNamespace(
            service=service, there=there, folder=folder, before=before, after=after, said=said
        )


@pytest.mark.parametrize(
    "kind", ["experiments", "runs", "files", "models", "versions", "served", "logged models"]
)
def test_all_that_there_was_is_on_the_server(moved, kind):
    assert moved.after[kind] == moved.before[kind]


def test_check_counts_what_was_moved(moved):
    assert moved.said.splitlines() == [
        "experiments|3",
        "runs|3",
        f"metrics|{3 * (service_content.EPOCHS + len(service_content.VALUES))}",
        "params|9",
        "tags|8",
        "datasets|3",
        "inputs|3",
        "registered_models|1",
        "model_versions|2",
        "registered_model_aliases|1",
        "logged_models|1",
    ]


def test_new_run_goes_into_the_experiment_that_was_moved(moved):
    experiment = moved.there.get_experiment_by_name("net").experiment_id
    run_id = service_content.make_run(moved.there, experiment, moved.folder)
    assert moved.there.get_run(run_id).info.artifact_uri.startswith("mlflow-artifacts:/")
    assert len(moved.there.get_metric_history(run_id, "train_loss")) == service_content.EPOCHS


def test_server_that_has_runs_is_not_replaced(moved):
    before = rows(database(moved.service))
    with pytest.raises(RuntimeError, match="mlflow has runs"):
        moved.service.run("move-records", SOURCE=str(moved.folder))
    assert rows(database(moved.service)) == before
