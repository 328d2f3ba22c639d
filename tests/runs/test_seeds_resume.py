"""Interrupted trainings with `--seeds` that resume: which seeds, and their statistics."""

import json
import os
import signal
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import pytest

from pyclassify.cli.main import main
from pyclassify.runs import seeds
from pyclassify.utils import launcher
from tests.support import processes
from tests.support.phrases import mentions
from tests.support.processes import PIPE, ROOT
from tests.support.stores import list_runs
from tests.support.trainings import PARENT, QUIET, spawn
from tests.support.waiting import wait_until

TRAIN = f"train --data=SyntheticDataModule --model.model=tests.support.networks.Waiting {QUIET}"
TRAIN += " --data.train_size=24 --data.val_size=20 --data.test_size=20 --max_epochs=2"
TRAIN += " --batch_size=8 --data.resize=8 --data.crop=8 --trainer.log_every_n_steps=1"
TRAIN += " --trainer.logger.system_metrics=false --accelerator=cpu --seeds 3 --seed 7"


@pytest.fixture(scope="module")
def ended(module_store, tmp_path_factory):
    """A training with three seeds that is interrupted in the second, and resumed.

    What is known of it by then and in the end: the exit code, the output, and the runs.
    """
    folder = tmp_path_factory.mktemp("seeds")
    first = start(folder, TRAIN, WAITS="8")
    try:
        wait_until(lambda: is_training(module_store, count=3), "the second seed has a loss")
        first.send_signal(signal.SIGUSR1)
        left = read_result(module_store, first)
    finally:
        first.kill()
    second = start(folder, f"resume {left.parent.info.run_id}")
    return left, read_result(module_store, second)


def start(folder, words, **variables):
    return spawn(["-m", "pyclassify", *words.split()], folder, **variables)


def is_training(client, count):
    runs = list_runs(client)
    return len(runs) == count and "train_loss" in runs[0].data.metrics


def read_result(client, process):
    out = process.communicate()[0]
    runs = list_runs(client)
    children = [run for run in reversed(runs) if PARENT in run.data.tags]
    (parent,) = (run for run in runs if PARENT not in run.data.tags)
    return SimpleNamespace(code=process.returncode, out=out, parent=parent, children=children)


def steps(client, run):
    return {each.step for each in client.get_metric_history(run.info.run_id, "train_loss")}


def test_sigusr1_exits_to_be_requeued(ended):
    left, _ = ended

    assert left.code == os.EX_TEMPFAIL, left.out
    assert [run.info.status for run in left.children] == ["FINISHED", "KILLED"]


def test_resume_skips_finished_seeds_and_trains_the_others(ended):
    left, done = ended

    assert done.code == 0, done.out
    assert [run.info.status for run in (done.parent, *done.children)] == ["FINISHED"] * 4
    ids = [run.info.run_id for run in done.children]
    assert ids[:2] == [run.info.run_id for run in left.children]
    assert done.children[0].info.end_time == left.children[0].info.end_time
    assert [run.data.params["seed_everything"] for run in done.children] == ["7", "8", "9"]


def test_resume_of_an_interrupted_seed_starts_at_its_checkpoint(ended):
    _, done = ended

    assert f"/{done.children[1].info.run_id}/checkpoints/resume/step=" in done.out


def test_resumed_parent_logs_statistics_of_all_seeds(ended):
    _, done = ended
    values = [run.data.metrics["test_accuracy"] for run in done.children]

    assert done.parent.data.metrics["seeds_finished"] == 3
    assert done.parent.data.metrics["test_accuracy_mean"] == pytest.approx(fmean(values))
    note = done.parent.data.tags["mlflow.note.content"]
    assert note.count("| FINISHED |") == 3
    assert "KILLED" not in note


WAIT_FOR_INDICES = "import json; from pyclassify.runs import seeds; "
WAIT_FOR_INDICES += "print(json.dumps(seeds.choose_seed_indices(None, 'a', {}, 3)))"


def test_choose_seed_indices_is_broadcast_to_other_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "2", "MLFLOW_RUN_ID": "a"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    launcher.publish(Path("runs", "seeds", "a"), [0, 1, 2])  # at its first start
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLURM_PROCID": "1"}
    other = processes.start("-c", WAIT_FOR_INDICES, env=environment, stdout=PIPE)

    first = seeds.choose_seed_indices(SimpleNamespace(list_unfinished=lambda: [1, 2]), "a", {}, 3)

    assert first == json.loads(other.communicate()[0]) == [1, 2]


def test_seeds_without_a_server_fail(monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "spool:///somewhere")

    assert main(["train", "--seeds", "3"]) == 1
    assert mentions(capsys.readouterr().err, "pyclassify: error: ", "seeds", "3", "server")
