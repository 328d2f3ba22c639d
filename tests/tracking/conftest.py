"""Fixtures of the tests of tracking."""

import pytest


@pytest.fixture
def adopted_run_id(store, monkeypatch):
    """A run as `mlflow run` starts it for this process."""
    experiment = store.get_experiment_by_name("tested")
    run_id = store.create_run(experiment.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    return run_id
