"""`pyclassify resume` of a killed run, from a repository that has changed since."""

import os
import shutil
from types import SimpleNamespace

import mlflow
import pytest

from tests.support import forking_python, repositories
from tests.support.phrases import mentions
from tests.support.processes import PIPE
from tests.support.repositories import FRESH, LOSS, PACKAGE, git, losses
from tests.support.stores import list_runs
from tests.support.trainings import QUIET
from tests.support.waiting import wait_until

TRAIN = f"train --data=SyntheticDataModule --max_epochs=3 {QUIET} --trainer.log_every_n_steps=1"
TRAIN += " --data.train_size=160 --data.val_size=16 --data.test_size=16 --batch_size=8"
TRAIN += " --data.resize=8 --data.crop=8 --model.model=fresh.network --learning_rate=0.01"
TRAIN += " --accelerator=cpu --trainer.logger.system_metrics=false --resume.every_n_train_steps=4"
# Only the run that is to be killed waits for it, in its thirtieth step.
SLOW = """
import os, time

class Wait(nn.Identity):
    seen = 0

    def forward(self, images):
        self.seen += self.training
        while self.seen == 30 and os.environ.get("WAITS"):
            time.sleep(0.1)
        return images
"""


@pytest.fixture(scope="module")
def store(module_store, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield module_store


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A repository with a copy of this package, an edited file and an untracked one."""
    folder = tmp_path_factory.mktemp("repo")
    shutil.copytree(PACKAGE, folder / "pyclassify", ignore=shutil.ignore_patterns("__pycache__"))
    repositories.start(folder, {".gitignore": "__pycache__/\n"})
    network = FRESH.replace("nn.Flatten()", "Wait(), nn.Flatten()")
    (folder / "fresh.py").write_text(f"from torch import nn\n{SLOW}{network}")
    return folder


@pytest.fixture(scope="module")
def runs(store, repo):
    """An uninterrupted run, and one that was killed in its second epoch and resumed.

    Between the two the code changed.
    """
    module = repo / "pyclassify" / "module.py"
    before = module.read_text()
    module.write_text(before.replace(LOSS, LOSS + ', reduction="sum"'))
    started = [start(repo, TRAIN, WAITS=waits) for waits in ("", "1")]
    try:
        assert started[0].wait() == 0, started[0].read("stderr")
        wait_until(
            lambda: len(list(repo.glob("runs/*/*/checkpoints/resume/step=00000028.ckpt*"))) == 2,
            "the checkpoint of step 28 and its hash",
        )
    finally:
        started[1].kill()
        started[1].communicate()
    module.write_text(before)
    (repo / "fresh.py").unlink()
    killed, alone = sorted(list_runs(store), key=lambda run: run.info.status == "FINISHED")
    killed, alone = killed.info, alone.info
    assert (killed.status, alone.status) == ("RUNNING", "FINISHED")
    done = run_command(repo, f"resume {killed.run_id[:8]}")
    return SimpleNamespace(id=killed.run_id, alone=alone.run_id, done=done)


def start(repo, words, **variables):
    command = ["-m", "pyclassify", *words.split()]
    environ = {**os.environ, **variables}
    return forking_python.start(*command, cwd=repo, env=environ, stdout=PIPE, stderr=PIPE)


def run_command(repo, words, **variables):
    process = start(repo, words, **variables)
    out, err = process.communicate()
    return SimpleNamespace(code=process.returncode, out=out, err=err)


def test_resumed_run_equals_an_uninterrupted_one(runs, store):
    assert runs.done.code == 0, runs.done.err
    found = store.get_run(runs.id)
    assert found.info.status == "FINISHED"
    assert len(losses(store, runs.alone)) == 60
    assert sorted(losses(store, runs.id)) == sorted(losses(store, runs.alone))
    for name in ("test_loss", "best_val_accuracy"):
        assert found.data.metrics[name] == store.get_run(runs.alone).data.metrics[name]


def test_resume_makes_no_new_run(runs, store):
    assert {run.info.run_id for run in list_runs(store)} == {runs.id, runs.alone}


def test_resume_starts_at_the_last_checkpoint(runs, repo):
    (line,) = (line for line in runs.done.err.splitlines() if f"run {runs.id}" in line)
    assert mentions(line, f" {repo}/runs/")
    assert line.endswith("/checkpoints/resume/step=00000028.ckpt")
    assert "dirpath has changed" not in runs.done.err  # the best so far is still the best
    assert git(repo, "worktree", "list").count("\n") == 0


def test_resume_keeps_the_capsule(runs, store, repo, tmp_path):
    facts = mlflow.artifacts.load_dict(f"runs:/{runs.id}/capsule/capsule.json")

    assert facts["started_in"] == str(repo)
    assert facts["command"][1:] == TRAIN.split()


@pytest.fixture(scope="module")
def longer(runs, repo):
    """The same run resumed when it had finished: as it was, and then for one epoch more."""
    words = (f"resume {runs.id}", f"resume {runs.id} --max_epochs 4")
    refused, done = (run_command(repo, each) for each in words)
    return SimpleNamespace(refused=refused, done=done)


def test_finished_run_resumes_only_for_more_epochs(longer, runs, store, repo):
    assert longer.refused.code == 1
    assert mentions(longer.refused.err, runs.id, "FINISHED", "3 epochs", "--max_epochs 6")

    assert longer.done.code == 0, longer.done.err
    assert sorted(step for step, _ in losses(store, runs.id)) == [*range(80)]
    found = store.get_run(runs.id)
    assert found.info.status == "FINISHED"
    assert found.data.params["trainer/max_epochs"] == "3"
    assert found.data.tags["pyclassify.resumed_with"] == "--max_epochs=4"
    again = run_command(repo, f"resume {runs.id} --max_epochs 4")
    assert mentions(again.err, "FINISHED", "4 epochs")


def test_other_number_of_processes_needs_allow_inexact(longer, runs, store, repo):
    assert longer.done.code == 0, longer.done.err
    refused = run_command(repo, f"resume {runs.id} --max_epochs 5 --devices 2")
    assert mentions(refused.err, runs.id, "1 processes", "--trainer.devices 2")

    done = run_command(repo, f"resume {runs.id} --max_epochs 5 --devices 2 --allow-inexact")

    assert done.code == 0, done.err
    assert sorted(step for step, _ in losses(store, runs.id)) == [*range(90)]
