"""`pyclassify rerun`: the same run again, from a tree that has changed since, and its refusals."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
import repositories
from command_lines import QUIET
from folders import grow
from repositories import git

from pyclassify.tracking import capsule

PACKAGE = Path(__file__).parents[1] / "pyclassify"
FRESH = """
from torch import nn

def network(num_classes: int) -> nn.Module:
    layers = nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Dropout(), nn.Linear(192, num_classes)
    return nn.Sequential(*layers)
"""
TRAIN = f"train --data=ImageFolderDataModule --data_path=photos --max_epochs=2 {QUIET}"
TRAIN += " --batch_size=4 --trainer.log_every_n_steps=1 --model.model=fresh.network"
TRAIN += " --learning_rate=0.01 --accelerator=cpu --data.num_workers=0"
LOSS = "F.cross_entropy(logits, labels"


@pytest.fixture(scope="module")
def store(empty_store, tmp_path_factory):
    """A store of this file's own, which MLFLOW_TRACKING_URI names."""
    path = shutil.copy(empty_store, tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        mlflow.set_tracking_uri(None)
        yield mlflow.MlflowClient()


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository with a copy of this package, and data that git ignores."""
    folder = tmp_path_factory.mktemp("repo")
    shutil.copytree(PACKAGE, folder / "pyclassify", ignore=shutil.ignore_patterns("__pycache__"))
    grow(folder / "photos", "train/cat", "train/dog", "test/cat", "test/dog", count=12)
    return repositories.start(folder, {".gitignore": "__pycache__/\nphotos/\n"})


@pytest.fixture(scope="module")
def source(store, repo):
    """The id of a run with an edited file and an untracked one, neither of which is there now."""
    module = repo / "pyclassify" / "module.py"
    before = module.read_text()
    module.write_text(before.replace(LOSS, LOSS + ", label_smoothing=0.1"))
    (repo / "fresh.py").write_text(FRESH)
    environment = {**os.environ, "MLFLOW_EXPERIMENT_NAME": "tested"}
    command = [sys.executable, "-m", "pyclassify", *TRAIN.split()]
    done = subprocess.run(command, cwd=repo, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module.write_text(before)
    (repo / "fresh.py").unlink()
    return newest(store).info.run_id


@pytest.fixture(scope="module")
def again(store, source, repo):
    """The run made again, and what was said."""
    done = rerun(repo, source)
    assert done.returncode == 0, done.stderr
    return newest(store), done.stdout


def rerun(repo, *words):
    command = [sys.executable, "-m", "pyclassify", "rerun", *words]
    return subprocess.run(command, cwd=repo, capture_output=True, text=True)


def newest(store):
    return store.search_runs([store.get_experiment_by_name("tested").experiment_id])[0]


def losses(store, run_id):
    return [(each.step, each.value) for each in store.get_metric_history(run_id, "train_loss")]


def test_losses_are_identical_at_every_step_and_it_says_so(again, source, store):
    made, said = again

    assert len(losses(store, source)) == 12
    assert losses(store, made.info.run_id) == losses(store, source)
    assert said.endswith(f"\nthe same as {source} to the last bit: train_loss at all 12 steps\n")


def test_it_is_a_new_run_that_names_its_source(again, source, store):
    made, _ = again

    before = store.get_run(source)
    assert made.info.run_id != source
    assert made.info.status == "FINISHED"
    assert made.info.experiment_id == before.info.experiment_id
    assert made.info.run_name == before.info.run_name
    assert made.data.tags["pyclassify.source_run"] == source


def test_checkpoints_outlive_the_worktree(again, repo):
    made, said = again

    path = re.search(r"checkpoint +(\S+)", said)[1]
    assert Path(path).is_relative_to(repo / "runs" / made.info.experiment_id)
    assert Path(path).is_file()
    assert git(repo, "worktree", "list").count("\n") == 0


def test_capsule_of_the_new_run_is_as_good_as_its_sources(again, source, store, tmp_path):
    folders = [tmp_path / "source", tmp_path / "made"]
    for folder, run_id in zip(folders, (source, again[0].info.run_id), strict=True):
        folder.mkdir()
        store.download_artifacts(run_id, "capsule", folder)

    for name in ("changes.diff", "untracked.tar", "packages.txt"):
        here, there = ((folder / "capsule" / name).read_bytes() for folder in folders)
        assert here == there


def test_changed_data_are_refused_with_both_digests(source, store, repo):
    image = repo / "photos" / "train" / "cat" / "0.png"
    content = image.read_bytes()
    image.write_bytes((repo / "photos" / "train" / "dog" / "1.png").read_bytes())
    try:
        done = rerun(repo, source, "--max_epochs", "1")
    finally:
        image.write_bytes(content)

    made = newest(store)
    (part,) = re.findall(r"error: the (train|val) images are not those of run", done.stderr)
    before, now = (
        capsule.read_facts(store, run_id)["data"]["sets"][part]["digest"]
        for run_id in (source, made.info.run_id)
    )
    assert done.returncode == 1
    assert f"run {source}: their digest was {before} (" in done.stderr
    assert f"images) and is {now} (" in done.stderr
    assert made.info.status == "FAILED"
    assert made.data.tags["pyclassify.overridden"] == "--max_epochs 1"
    assert losses(store, made.info.run_id) == []


def test_signal_stops_the_training_and_removes_the_worktree(source, store, repo):
    command = [sys.executable, "-m", "pyclassify", "rerun", source, "--max_epochs", "1000000"]
    process = subprocess.Popen(command, cwd=repo, stderr=subprocess.PIPE, text=True)
    before = newest(store).info.run_id
    wait_until(lambda: newest(store).info.run_id != before and newest(store).data.metrics)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "stopped by SIGTERM" in err
    assert newest(store).info.status == "KILLED"
    assert git(repo, "worktree", "list").count("\n") == 0


def wait_until(is_so, seconds=120):
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, f"waited for {seconds} s in vain"
        time.sleep(0.1)
