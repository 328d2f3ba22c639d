"""`pyclassify rerun` of trained runs, from a repository that has changed since."""

import os
import re
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from pyclassify.tracking import capsule
from tests.support import forking_python, processes, repositories
from tests.support.images import grow
from tests.support.phrases import mentions
from tests.support.processes import PIPE
from tests.support.repositories import FRESH, LOSS, PACKAGE, git, losses
from tests.support.stores import list_runs
from tests.support.trainings import QUIET
from tests.support.waiting import wait_until

TRAIN = f"train --data=ImageFolderDataModule --data_path=photos --max_epochs=2 {QUIET}"
TRAIN += " --batch_size=4 --trainer.log_every_n_steps=1 --model.model=nets.fresh.network"
TRAIN += " --learning_rate=0.01 --accelerator=cpu --data.num_workers=0"
TRAIN += " --trainer.logger.system_metrics=false"
SOURCE = "pyclassify.source_run"


@pytest.fixture(scope="module")
def store(module_store, tmp_path_factory):
    """A store without a setting of the experiment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("MLFLOW_EXPERIMENT_NAME")
        yield module_store


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository with a copy of this package, a submodule, and data that git ignores."""
    library = repositories.start(tmp_path_factory.mktemp("library"), {"__init__.py": ""})
    folder = tmp_path_factory.mktemp("repo")
    shutil.copytree(PACKAGE, folder / "pyclassify", ignore=shutil.ignore_patterns("__pycache__"))
    grow(folder / "photos", "train/cat", "train/dog", "test/cat", "test/dog", count=12)
    repositories.start(folder, {".gitignore": "__pycache__/\nphotos/\n"})
    repositories.add_submodule(folder, library, "nets")
    git(folder, "commit", "--quiet", "--all", "--message", "Add a submodule")
    git(folder, "config", "diff.context", "0")  # as a user may have it
    return folder


@pytest.fixture(scope="module")
def source(store, repo):
    """The id of a run with an edited file and an untracked one, neither of which is there now.

    The untracked file is in a submodule.
    """
    module = repo / "pyclassify" / "module.py"
    before = module.read_text()
    module.write_text(before.replace(LOSS, LOSS + ', reduction="sum"'))
    (repo / "nets/fresh.py").write_text(FRESH)
    environment = {**os.environ, "MLFLOW_EXPERIMENT_NAME": "tested"}
    command = ["-m", "pyclassify", *TRAIN.split()]
    forking_python.run(*command, cwd=repo, env=environment, check=True)
    module.write_text(before)
    (repo / "nets/fresh.py").unlink()
    return list_runs(store)[0].info.run_id


@pytest.fixture(scope="module")
def reruns(store, source, repo, tmp_path_factory):
    """Three reruns at once: unchanged, on other data, and interrupted.

    For each the new run, the exit code and its output.
    """
    other = shutil.copytree(repo / "photos", tmp_path_factory.mktemp("data") / "photos")
    shutil.copy(other / "train/dog/1.png", other / "train/cat/0.png")
    ways = {"as it was": "", "other data": f"--data_path {other}", "stopped": "--max_epochs 100000"}
    started = {way: start(repo, source, *options.split()) for way, options in ways.items()}
    try:
        wait_until(
            lambda: has_losses(store, find(store, ways["stopped"])),
            "losses of the run to stop",
        )
        started["stopped"].send_signal(signal.SIGTERM)
        outputs = {way: process.communicate() for way, process in started.items()}
    finally:
        for process in started.values():
            process.kill()
    return {
        way: SimpleNamespace(
            run=find(store, ways[way]),
            code=process.returncode,
            out=outputs[way][0],
            err=outputs[way][1],
        )
        for way, process in started.items()
    }


def start(repo, *words):
    command = ["-m", "pyclassify", "rerun", *words]
    return forking_python.start(*command, cwd=repo, stdout=PIPE, stderr=PIPE)


def find(store, overridden):
    """The run that was made with these options, and not the source."""
    for run in list_runs(store):
        tags = run.data.tags
        if SOURCE in tags and tags.get("pyclassify.overrides", "") == overridden:
            return run
    return None


def has_losses(store, run):
    return run is not None and losses(store, run.info.run_id) != []


def test_rerun_is_bitwise_identical_and_reports_it(reruns, source, store):
    done = reruns["as it was"]

    assert done.code == 0, done.err
    assert len(losses(store, source)) == 12
    assert losses(store, done.run.info.run_id) == losses(store, source)
    assert mentions(
        done.out.splitlines()[-1], "bitwise identical", source, "train_loss", "all 12 steps"
    )


def test_rerun_makes_a_new_run_with_its_source(reruns, source, store):
    made, before = reruns["as it was"].run, store.get_run(source)

    assert made.info.run_id != source
    assert made.info.status == "FINISHED"
    assert made.info.experiment_id == before.info.experiment_id
    assert made.info.run_name == before.info.run_name
    assert made.data.tags[SOURCE] == source


def test_rerun_saves_checkpoints_outside_of_the_worktree(reruns, repo):
    done = reruns["as it was"]

    path = re.search(r"checkpoint +(\S+)", done.out)[1]
    assert Path(path).is_relative_to(repo / "runs" / done.run.info.experiment_id)
    assert Path(path).is_file()
    assert git(repo, "worktree", "list").count("\n") == 0


def test_rerun_logs_an_equal_capsule(reruns, source, store, tmp_path):
    folders = [tmp_path / "source", tmp_path / "made"]
    made = reruns["as it was"].run.info.run_id
    for folder, run_id in zip(folders, (source, made), strict=True):
        folder.mkdir()
        store.download_artifacts(run_id, "capsule", folder)

    for name in ("changes.diff", "repositories/nets/untracked.tar", "packages.txt"):
        here, there = ((folder / "capsule" / name).read_bytes() for folder in folders)
        assert here == there


def test_rerun_on_changed_data_fails_before_the_first_step(reruns, source, store):
    done = reruns["other data"]

    (part,) = re.findall(rf"error: .*\b(train|val)\b.* {source}", done.err)
    before, now = (
        capsule.read_facts(store, run_id)["data"]["splits"][part]["digest"]
        for run_id in (source, done.run.info.run_id)
    )
    assert done.code == 1
    assert before != now
    # the form of this message
    message = (
        rf"the {part} images differ from those of run {source}: found digest {now} \(.*images\)"
    )
    assert re.search(rf"{message}, expected {before} \(.*--data_path", done.err)
    assert done.run.info.status == "FAILED"
    assert losses(store, done.run.info.run_id) == []


@pytest.mark.slow
def test_rerun_by_a_new_python_is_bitwise_identical(source, store, repo):
    done = processes.run("-m", "pyclassify", "rerun", source, cwd=repo, fresh=True)

    assert done.returncode == 0, done.stderr
    assert mentions(
        done.stdout.splitlines()[-1], "bitwise identical", source, "train_loss", "all 12 steps"
    )
    made = list_runs(store)[0].info.run_id
    assert made != source
    assert losses(store, made) == losses(store, source)


def test_stop_signal_kills_the_run(reruns):
    done = reruns["stopped"]

    assert done.code == 1
    assert "stopped by SIGTERM" in done.err
    assert done.run.info.status == "KILLED"


def test_override_is_logged(reruns):
    run = reruns["stopped"].run

    assert run.data.tags["pyclassify.overrides"] == "--max_epochs 100000"
    assert run.data.params["trainer/max_epochs"] == "100000"
