"""Fine-tuning by the command line: what its run tells, and its ends, stops and repetitions."""

import hashlib
import json
import os
import signal
from pathlib import Path

import mlflow
import pytest
import torch

from pyclassify.runs.rerun import parse_args
from pyclassify.runs.restore import prepare_config
from pyclassify.slurm.topology import resolve_paths
from tests.support import tuned
from tests.support.processes import ROOT
from tests.support.processes import run as run_python
from tests.support.stopping import same
from tests.support.trainings import LINEAR, SHAPES

NET = "--model.model=tests.support.tuned.Net"
TUNE = f"{SHAPES.replace(LINEAR, NET)} --trainer.logger.system_metrics=false"
FROM = f"{TUNE} --weights=w.pth --freeze=features"
FEATURES = {name for name in tuned.state() if name.startswith("features.")}


@pytest.fixture
def file(tmp_path, cli):
    """A file of weights in the folder of `cli`."""
    return Path(tuned.write(tmp_path / "w.pth"))


def weights_of(run):
    path = mlflow.artifacts.download_artifacts(None, run.info.run_id, "weights/best.ckpt")
    state = torch.load(path)["state_dict"]
    return {name.removeprefix("model."): each for name, each in state.items()}


def find_unchanged(after):
    before = tuned.state()
    return {name for name in before if torch.equal(before[name], after[name])}


def test_run_records_the_digest_of_the_weights(cli, file):
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    cli(f"fit {FROM}")
    tuned.write(file, {**tuned.state(), "body.bias": torch.zeros(8)})
    other, first = cli(f"fit {FROM}").runs

    assert first.data.params["model/weights_sha256"] == digest
    assert f"from `w.pth` (SHA-256 `{digest[:8]}`)" in first.data.tags["mlflow.note.content"]
    assert first.data.tags["pyclassify.recipe"] != other.data.tags["pyclassify.recipe"]
    compared = cli(f"compare {first.info.run_id} {other.info.run_id} --json").out
    assert [*json.loads(compared)["differing_parameters"]] == ["model/weights_sha256"]


def test_named_optimizer_gets_trainable_parameters_only(cli, file):
    optimizer = "--optimizer=SGD --optimizer.lr=1 --optimizer.weight_decay=0.5"
    run = cli(f"fit {FROM} {optimizer}").runs[0]

    assert find_unchanged(weights_of(run)) == FEATURES
    (checkpoint,) = Path("runs").rglob("resume/*.ckpt")
    groups = torch.load(checkpoint)["optimizer_states"][0]["param_groups"]
    assert [len(group["params"]) for group in groups] == [4]


def test_checkpoint_is_tested_where_the_file_is_gone(cli, file):
    trained = cli(f"train {FROM}").runs[0]
    file.unlink()

    tested = cli(f"test {FROM} --ckpt_path={trained.info.run_id}")

    assert tested.code == 0, tested.err
    accuracies = [run.data.metrics["test_accuracy"] for run in (tested.runs[0], trained)]
    assert accuracies[0] == accuracies[1]


def test_interrupted_run_resumes_without_the_file_to_the_same_weights(cli, file, monkeypatch):
    longer = f"{FROM} --max_epochs=2"
    alone = cli(f"fit {longer}").runs[0]
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    run_id = mlflow.MlflowClient().create_run(experiment).info.run_id
    stop = "--trainer.callbacks+=tests.support.stopping.Disturb --trainer.callbacks.batch=7"
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert cli(f"fit {longer} {stop} --trainer.callbacks.signum={int(signal.SIGUSR1)}").code == 75
    file.unlink()

    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    assert cli(f"fit {longer}").code == 0

    went_on = mlflow.get_run(run_id)
    assert same(weights_of(went_on), weights_of(alone))
    assert went_on.data.params["model/weights_sha256"]


def test_file_is_found_from_another_folder(write_capsule, tmp_path):
    (tmp_path / "here").mkdir()
    tuned.write(tmp_path / "here/w.pth")
    model = {"class_path": "pyclassify.module.Classifier", "init_args": {"weights": "w.pth"}}
    config = {"trainer": {"logger": True}, "model": model}
    capsule, facts = write_capsule(tmp_path / "here", config)

    assert prepare_config(capsule, facts, [], tmp_path)["model"]["init_args"]["weights"] == str(
        tmp_path / "here/w.pth"
    )
    given = ["0" * 32, "--weights=w.pth", "--model.weights", "DEFAULT"]
    assert parse_args(given)[1] == [f"--weights={tmp_path}/here/w.pth", *given[2:]]


@pytest.mark.parametrize("name", ["weights", "model.weights"])
def test_file_is_found_by_a_job_of_slurm(name, tmp_path):
    from mlflow.projects._project_spec import EntryPoint

    tuned.write(tmp_path / "w.pth")
    where = (Path("/run/project"), tmp_path)
    for given, placed in (("w.pth", str(tmp_path / "w.pth")), ("DEFAULT", "DEFAULT")):
        found = resolve_paths(
            {name: given}, EntryPoint("main", {}, "true"), lambda path: False, *where
        )
        assert found == {name: placed}


def test_two_processes_freeze_modules_and_train_the_rest(tmp_path):
    given, out = tuned.write(tmp_path / "w.pth"), tmp_path / "out.pth"

    run_python(tuned.__file__, given, out, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)

    assert find_unchanged(torch.load(out)) == FEATURES
