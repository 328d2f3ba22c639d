"""Tracking stores of the tests' own: a database each, which the environment names."""

import shutil
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pytest

from pyclassify.tracking import run

# What a training before may have left, or a shell has set.
FOREIGN = ("MLFLOW_RUN_ID", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")


@contextmanager
def new_store(empty_store, folder):
    """Copy the empty database to FOLDER/mlflow.db and have the environment name it; a client.

    `tested` is the experiment that runs go to. The run of this process, if the test has left one
    open, is ended.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    uri = f"sqlite:///{shutil.copy(empty_store, Path(folder, 'mlflow.db'))}"
    with using(mlflow.MlflowClient(uri)) as client:
        try:
            yield client
        finally:
            run.end_run("FINISHED")


@contextmanager
def using(client):
    """Have the environment name a client's store, whatever trainings set in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in FOREIGN:
            patch.setenv(name, "")  # which has it restored afterwards, whoever sets it
            patch.delenv(name)
        patch.setenv("MLFLOW_TRACKING_URI", "")
        mlflow.set_tracking_uri(None)  # which may take the variable away
        patch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "tested")
        try:
            yield client
        finally:
            mlflow.set_tracking_uri(None)


def experiment_id(client):
    return client.get_experiment_by_name("tested").experiment_id


def list_runs(client):
    """The runs of the experiment `tested`, the newest first."""
    return list(client.search_runs([experiment_id(client)]))
