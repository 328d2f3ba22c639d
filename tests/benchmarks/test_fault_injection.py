"""Faults are injected into a training on a real cluster, which then equals one without faults."""

import random
import sys
from pathlib import Path

import mlflow
import pytest

from benchmarks import fault_injection
from benchmarks.parts import run_comparison
from benchmarks.parts.faults import FAULTS, choose_faults
from tests.support.processes import ROOT
from tests.support.stores import experiment_id

KINDS = ("SIGKILL of the server", "signal before the time limit", "flipped bit", "torn record")


@pytest.fixture
def folder(cluster, tmp_path, monkeypatch):
    """A folder, with the environment of the cluster and of a training."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.env[name])
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("MLFLOW_TRACKING_URI", "PACE"):
        monkeypatch.setenv(name, "")  # so that it is restored afterwards
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    yield tmp_path
    mlflow.set_tracking_uri(None)


@pytest.mark.slow
def test_train_with_faults_gives_one_complete_and_bitwise_identical_run(cluster, folder):
    lines = []
    # With this seed the server is killed last: the training continues meanwhile, and may finish.
    differences, description = fault_injection.train_with_faults(
        cluster,
        folder,
        count=4,
        seed=5,
        epochs=20,
        pace=0.04,
        max_downtime=3,
        report=lines.append,
        kinds=KINDS,
    )

    assert differences == [], "\n".join([*lines, description])
    assert len(lines) == 4


def test_choose_faults_has_each_kind_before_any_is_repeated():
    chosen = choose_faults(len(FAULTS) + 3, random.Random(0))

    assert len({*chosen[: len(FAULTS)]}) == len(FAULTS)
    assert chosen == choose_faults(len(FAULTS) + 3, random.Random(0))


def test_compare_finds_lost_duplicate_unexpected_and_different_points(store):
    client = store
    run_id, twin = (client.create_run(experiment_id(client)).info.run_id for _ in range(2))
    for step, value in enumerate((1.0, 2.0, 3.0)):
        client.log_metric(twin, "train_loss", value, step=step)
    client.log_metric(twin, "wall_seconds", 7.0, step=0)
    for value, step in ((1.0, 0), (2.5, 1), (4.0, 9)):
        client.log_metric(run_id, "train_loss", value, step=step)
    client.log_metric(run_id, "wall_seconds", 8.0, step=0)
    client.log_metric(run_id, "train_loss", 1.0, step=0, timestamp=5)

    assert run_comparison.compare(client, run_id, twin) == {
        "points": 4,
        "lost": [("train_loss", 2)],
        "duplicate": [("train_loss", 0)],
        "unexpected": [("train_loss", 9)],
        "different": [("train_loss", 1)],
    }
