"""The capsule of a run: what is in it, what stays out, and that it never costs a run."""

import json
from importlib.metadata import version
from pathlib import Path

import mlflow
import pytest
import yaml

from pyclassify.tracking import capsule
from tests.support import repositories
from tests.support.repositories import git
from tests.support.trainings import SHAPES

SECRET = "hunter2-and-more"
CREDENTIALS = {
    "command": ["fit", "--data.token", SECRET, f"--data.url=https://me:{SECRET}@data.org/x"],
    "tracking_uri": f"mysql://me:pass/{SECRET}@db/runs",
    "data": {"name": "x", "source": f"https://data.org/x?user=me&sig_token={SECRET}&page=2"},
}


def test_training_logs_its_capsule_and_datasets(cli):
    (run,) = cli(f"train {SHAPES} --seed 3 --accelerator cpu").runs

    client = mlflow.MlflowClient()
    facts = capsule.read_facts(client, run.info.run_id)
    assert facts["subcommand"] == "train"
    assert facts["command"][:2] == ["pyclassify", "train"]
    assert facts["command"][-4:] == ["--seed", "3", "--accelerator", "cpu"]
    assert facts["seed"] == 3
    assert facts["hardware"]["processes"] == 1
    sets = {name: each["images"] for name, each in facts["data"]["splits"].items()}
    assert sets == {"train": 40, "val": 20, "test": 20}
    logged = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert logged["test"].digest == facts["data"]["splits"]["test"]["digest"]
    assert json.loads(logged["train"].profile) == {"num_rows": 40, "num_classes": 10}


def test_run_that_fails_at_its_first_step_has_its_capsule(cli):
    with pytest.raises(ZeroDivisionError):
        cli(f"fit {SHAPES}", "--trainer.callbacks+=tests.support.networks.Bug")

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tested").experiment_id])
    assert run.info.status == "FAILED"
    assert capsule.read_facts(client, run.info.run_id)["subcommand"] == "fit"


def test_capsule_has_the_resolved_configuration(write_capsule):
    config = {"seed_everything": 3, "data": {"class_path": "x.Data"}}

    folder, _ = write_capsule(Path(), config)

    assert yaml.safe_load((folder / "config.yaml").read_text()) == config


def test_capsule_lists_exact_versions(write_capsule):
    folder, _ = write_capsule(Path())

    lines = (folder / "packages.txt").read_text().splitlines()
    assert f"torch=={version('torch')}" in lines


def test_capsule_has_no_credentials(write_capsule, tmp_path, monkeypatch):
    repo = repositories.start(tmp_path / "repo", {"a.py": "a\n", "b.py": "b\n"})
    git(repo, "remote", "add", "origin", f"https://me:{SECRET}@git.org/x.git")
    repositories.write(repo, {".env": f"X={SECRET}", "c.py": f'u = "redis://:{SECRET}@host"'})
    repositories.write(repo, {"a.py": f'u = "https://me:{SECRET}@host"\n', "b.py": "changed\n"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    config = {
        "trainer": {"logger": {"init_args": {"tracking_uri": f"https://me:{SECRET}@mlflow.org"}}},
        "data": {"init_args": {"password": SECRET, "urls": [f"s3://key:{SECRET}@bucket"]}},
    }

    with pytest.warns(UserWarning, match="credentials"):
        folder, facts = write_capsule(repo, config, CREDENTIALS)

    for path in folder.iterdir():
        assert SECRET.encode() not in path.read_bytes(), path.name
    assert facts["git"]["left_out"].keys() == {".env", "a.py", "c.py"}
    assert b"+changed" in (folder / "changes.diff").read_bytes()
    assert facts["command"][1:3] == ["--data.token", "***"]
    assert facts["git"]["remote"] == "https://***@git.org/x.git"


def test_capsule_that_the_store_refuses_costs_only_a_warning(store):
    with pytest.warns(UserWarning, match="could not log the capsule"):
        capsule.log_capsule(store, "0" * 32, {}, {})
