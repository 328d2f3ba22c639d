"""One run through stops and kills, by the command line."""

import os
import signal
from pathlib import Path

import mlflow
import pytest

from tests.support import processes
from tests.support.phrases import mentions
from tests.support.processes import ROOT
from tests.support.trainings import QUIET

TINY = "--data SyntheticDataModule --data.train_size=60 --data.val_size=20 --data.test_size=20 "
TINY += (
    "--data.resize=12 --data.crop=8 --data.batch_size=8 --model.model=tests.support.stopping.Net "
)
TINY += f"--max_epochs 3 --trainer.accelerator=cpu {QUIET} --trainer.log_every_n_steps=2 "
TINY += "--trainer.logger.system_metrics=false"
CLOCK = ("epoch_seconds", "images_per_second", "wall_seconds")


def disturb(batch, signum):
    callback = "--trainer.callbacks+=tests.support.stopping.Disturb --trainer.callbacks.batch="
    return f"{callback}{batch} --trainer.callbacks.signum={int(signum)}"


@pytest.fixture
def run_id(cli):
    """A run that `mlflow run` has made."""
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    return mlflow.MlflowClient().create_run(experiment).info.run_id


@pytest.fixture
def attempt(cli, monkeypatch, run_id):
    def go(options):
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        return cli(options)

    return go


def history(run_id):
    """Every (metric, step) with its values, those of the clock aside."""
    client, found = mlflow.MlflowClient(), {}
    for key in client.get_run(run_id).data.metrics:
        for each in client.get_metric_history(run_id, key):
            value = "timed" if key in CLOCK else each.value
            found.setdefault((key, each.step), set()).add(value)
    return found


def status(run_id):
    return mlflow.MlflowClient().get_run(run_id).info.status


def test_run_resumes_after_every_kind_of_end(cli, attempt, run_id, monkeypatch, tmp_path):
    alone = cli(f"train {TINY}").runs[0].info.run_id
    monkeypatch.setenv("PYCLASSIFY_PROGRESS", str(tmp_path / "progress"))

    first = attempt(f"train {TINY} {disturb(3, signal.SIGUSR1)}")
    assert (first.code, status(run_id)) == (75, "KILLED")
    # the form of this message
    assert f"error: stopped by SIGUSR1; resume with: pyclassify resume {run_id}\n" in first.err
    assert (tmp_path / "progress").read_text() == "4\n"

    second = attempt(f"train {TINY} {disturb(5, signal.SIGTERM)}")
    assert (second.code, status(run_id)) == (1, "KILLED")
    assert (tmp_path / "progress").read_text() == "10\n"

    killed = processes.run(
        *("-m", "pyclassify", *f"train {TINY} {disturb(9, 9)}".split()),
        env={**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_RUN_ID": run_id},
    )
    assert killed.returncode == -signal.SIGKILL
    assert (tmp_path / "progress").read_text() == "16\n"

    assert attempt(f"train {TINY}").code == 0
    assert status(run_id) == "FINISHED"
    assert history(run_id) == history(alone)
    weights = [mlflow.MlflowClient().list_artifacts(each, "weights") for each in (run_id, alone)]
    assert [each.path for each in weights[0]] == [each.path for each in weights[1]]


def test_stop_in_the_test_is_followed_by_the_test_alone(attempt, run_id):
    stopped = attempt(f"train {TINY} --trainer.callbacks+=tests.support.stopping.StopTest")
    assert stopped.code == 75
    assert "test_accuracy" not in mlflow.MlflowClient().get_run(run_id).data.metrics
    before = history(run_id)

    assert attempt(f"train {TINY}").code == 0

    after = history(run_id)
    assert ("test_accuracy", 0) in after
    assert before.items() <= after.items()


def test_no_checkpoint_to_resume_from_is_written_if_disabled(attempt):
    assert attempt(f"fit {TINY} --resume.max_checkpoints 0").code == 0
    assert attempt(f"fit {TINY} --trainer.enable_checkpointing=false").code == 0

    assert not list(Path("runs").rglob("step=*"))


@pytest.mark.parametrize(
    ("option", "code", "facts"),
    [
        ("--resume.every_minutes=0", 2, ["every_minutes: 0.0", "expected"]),
        ("--data.batch_size=6", 1, ["10 batches", "8 before", "--resume.allow_inexact=true"]),
    ],
)
def test_fit_that_can_not_resume_reports_why_in_one_line(attempt, option, code, facts):
    attempt(f"fit {TINY} {disturb(3, signal.SIGUSR1)}")

    done = attempt(f"fit {TINY} {option}")

    assert done.code == code
    (line,) = (line for line in done.err.splitlines() if line.startswith("pyclassify: error: "))
    assert mentions(line, *facts)
