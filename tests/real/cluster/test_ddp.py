"""This project on a real cluster: the command of the README, and more nodes than one."""

import json
import os
from pathlib import Path

import mlflow
import pytest

from tests.support import forking_python, slurm_python, trainings
from tests.support.slurm_jobs import get_run, read_log, submit_project

ROOT = Path(__file__).parents[3]
SHAPES = dict(
    word.removeprefix("--").split("=") for word in trainings.SHAPES.split() if "=" in word
)


@pytest.fixture
def project(slurm, monkeypatch):
    """This project, with a network of the tests' own, as it is submitted and as it is run here."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    forks = Path(forking_python.program()).parent
    monkeypatch.setenv("PATH", f"{forks}{os.pathsep}{os.environ['PATH']}")
    shipped = json.loads((ROOT / "slurm/ulysses.json").read_text())
    lacking = ("partition", "environment", "time")  # here: it has no conda, and lets jobs run 1 h
    config = {key: value for key, value in shipped.items() if key not in lacking}

    def train(forks_tasks=False, **parameters):
        environment = {"environment": slurm_python.environment(forks_tasks)}
        given = {**SHAPES, **parameters}
        return submit_project(ROOT, config | environment, parameters=given, synchronous=True)

    return train


def losses(run):
    keys = ("train_loss", "val_loss", "test_loss")
    history = mlflow.MlflowClient().get_metric_history
    return {key: [each.value for each in history(run.info.run_id, key)] for key in keys}


def test_two_processes_train_as_they_do_here(project):
    submitted = project(devices=2)
    here = mlflow.projects.run(str(ROOT), env_manager="local", parameters={**SHAPES, "devices": 2})

    run, local = get_run(submitted), get_run(here)
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    assert len(mlflow.MlflowClient().search_runs([experiment])) == 2
    assert run.info.status == local.info.status == "FINISHED"
    assert "MEMBER: 2/2" in read_log(submitted) + read_log(submitted, "err")
    assert losses(run) == losses(local)
    path = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="capsule/capsule.json"
    )
    assert json.loads(Path(path).read_text())["git"]["commit"]  # though it ran in a snapshot


def test_two_nodes_of_two_processes_are_one_run(project):
    submitted = project(devices=2, num_nodes=2, forks_tasks=True)

    run = get_run(submitted)
    assert (run.info.status, run.data.tags["slurm_nodes"]) == ("FINISHED", "n[1-2]")
    assert "MEMBER: 4/4" in read_log(submitted) + read_log(submitted, "err")
    assert run.data.metrics["test_loss"] > 0
