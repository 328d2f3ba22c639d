"""The project's own training, as SLURM jobs of a user of the service, as docs/service.md says.

Of a small network, or with PYCLASSIFY_MAIN_JOB=1 in the environment of AlexNet itself, in minutes.
"""

import contextlib
import os
import subprocess
from types import SimpleNamespace

import mlflow
import pytest
import requests

from benchmarks.parts import server
from pyclassify.data import synthetic
from tests.support import service as service_parts
from tests.support import slurm_jobs, slurm_python, trainings
from tests.support.images import encode, file_of
from tests.support.service import BUCKET, ROOT, started_by, write_forking_programs
from tests.support.waiting import scale, wait_until

pytestmark = [pytest.mark.service, pytest.mark.slurm]
NAME = "shapes"
SMALL = dict(word.removeprefix("--").split("=") for word in trainings.SHAPES.split() if "=" in word)
# As many steps, of as many images each.
ALEXNET = {
    "config": "configs/synthetic.yaml",
    "batch_size": 8,
    "max_epochs": 1,
    "data.train_size": 40,
    "data.val_size": 16,
    "data.test_size": 16,
    "trainer.log_every_n_steps": 1,
}
PARAMETERS, MEMORY = (ALEXNET, 7000) if os.environ.get("PYCLASSIFY_MAIN_JOB") else (SMALL, 2000)


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder of programs like those of an environment, which fork."""
    folder = tmp_path_factory.mktemp("programs")
    write_forking_programs(folder)
    return f"{folder}/"


@pytest.fixture(scope="module")
def trained(cluster, proxy, people, programs, empty_store, tmp_path_factory):
    """Ada's two trainings at once: of a job that speaks to the server, and of one that does not.

    The page's unit uploads what the second one logs.
    """
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        slurm_jobs.enter_submission_folder(patch, cluster, empty_store, folder)
        service_parts.settle(patch, proxy, people["ada"], folder / "home")
        service_parts.work_in(patch, "trained on the cluster")
        patch.setenv("PYTHONPATH", str(ROOT))
        jobs = {each: train(folder, each) for each in ("direct", "spool")}
        with syncing(folder / "runs", programs):
            wait_until(lambda: all(map(has_ended, jobs.values())), "the end of both jobs", 400, 0.5)
            wait_until(lambda: len(versions()) == len(jobs), "a version of each")
        yield SimpleNamespace(jobs=jobs, runs={each: read(jobs[each]) for each in jobs})
    mlflow.set_tracking_uri(None)


def train(folder, tracking):
    config = {"mem": f"{MEMORY}M", "tracking": tracking, "work_dir": str(folder / "runs")}
    config["environment"] = slurm_python.environment(forks_tasks=PARAMETERS is SMALL)
    return slurm_jobs.submit_project(ROOT, config, parameters={**PARAMETERS, "register": NAME})


def read(submitted):
    return slurm_jobs.get_run(submitted)


def has_ended(submitted):
    return read(submitted).info.status in slurm_jobs.FINAL


def versions():
    return mlflow.MlflowClient().search_model_versions(f"name = '{NAME}'")


@contextlib.contextmanager
def syncing(folder, programs):
    """Run the unit's `pyclassify sync` on a folder of runs."""
    command = started_by("pyclassify-sync.service", programs)
    command = command.replace("%h/project-slurm", str(folder))
    unit = subprocess.Popen(command.split())
    try:
        yield
    finally:
        unit.terminate()
        unit.wait(timeout=scale(30))


def stored(service, owner):
    """The names of a run's or model's objects in the bucket, without what is before them."""
    pages = service.bucket.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
    keys = [each["Key"] for page in pages for each in page.get("Contents", [])]
    return {key.partition("/artifacts/")[2] for key in keys if owner in key}


@pytest.mark.parametrize("tracking", ["direct", "spool"])
def test_run_of_a_job_is_complete(tracking, trained, service):
    run = trained.runs[tracking]

    assert run.info.status == "FINISHED", slurm_jobs.read_log(trained.jobs[tracking], "err")
    losses = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train_loss")
    assert [each.step for each in losses] == list(range(5))  # 40 images in batches of 8
    assert {"test_accuracy", "val_loss", "wall_seconds"} < run.data.metrics.keys()
    assert {"predictions.json", "capsule/capsule.json"} < stored(service, run.info.run_id)
    (output,) = run.outputs.model_outputs
    assert {"MLmodel", "artifacts/model.pt2"} < stored(service, output.model_id)


def test_both_are_versions_of_the_model_and_one_is_champion(trained):
    runs = {run.info.run_id for run in trained.runs.values()}
    assert {each.run_id for each in versions()} == runs
    assert mlflow.MlflowClient().get_model_version_by_alias(NAME, "champion").run_id in runs


@pytest.mark.usefixtures("trained")
def test_champion_is_served_out_of_the_bucket(programs, monkeypatch):
    monkeypatch.setattr(server, "sys", SimpleNamespace(executable=f"{programs}python"))
    image = encode(file_of(synthetic.generate_images(1, seed=2)[0][0].permute(1, 2, 0).numpy()))

    with server.running(f"models:/{NAME}@champion", "--env-manager", "local") as (port, _):
        answer = requests.post(f"http://127.0.0.1:{port}/invocations", json={"inputs": [image]})

    assert answer.status_code == 200, answer.text
    assert len(answer.json()["predictions"][0]["classes"]) == 5


def test_unit_that_reconciles_has_the_runs_say_what_their_jobs_took(trained, programs):
    command = started_by("pyclassify-reconcile.service", programs).split()

    done = subprocess.run(command, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    for submitted in trained.jobs.values():
        run = read(submitted)
        assert (run.info.status, run.data.tags["slurm_state"]) == ("FINISHED", "COMPLETED")
        assert run.data.metrics["elapsed_seconds"] > 0
