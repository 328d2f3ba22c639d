"""One training on a real cluster, killed a few times, against its twin that nobody touched."""

import random
import sys
from pathlib import Path

import mlflow
import pytest

from benchmarks import torture
from benchmarks.parts import tally
from benchmarks.parts.kills import KILLS, draw_kills
from tests.support.processes import ROOT
from tests.support.stores import experiment_id

KINDS = ("kill -9 of the server", "warning of the time limit", "flipped bit", "torn record")


@pytest.fixture
def loud(cluster, tmp_path, monkeypatch):
    """A folder, and an environment that programs of the cluster and of a training are found in."""
    monkeypatch.chdir(tmp_path)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.env[name])
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("MLFLOW_TRACKING_URI", "PACE"):
        monkeypatch.setenv(name, "")  # which restores it afterwards
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    yield tmp_path
    mlflow.set_tracking_uri(None)


@pytest.mark.slow
def test_run_is_one_whole_and_exact_whatever_befalls_it(cluster, loud):
    said = []
    # With this seed the server is killed last: training goes on meanwhile, and may come to its end.
    wrong, told = torture.torture(
        cluster, loud, kills=4, seed=5, epochs=20, pace=0.04, away=3, say=said.append, kinds=KINDS
    )

    assert wrong == [], "\n".join([*said, told])
    assert len(said) == 4


def test_each_kind_of_kill_comes_before_any_comes_again():
    drawn = draw_kills(len(KILLS) + 3, random.Random(0))

    assert len({*drawn[: len(KILLS)]}) == len(KILLS)
    assert drawn == draw_kills(len(KILLS) + 3, random.Random(0))


def test_tally_finds_what_is_lost_doubled_besides_and_other(store):
    client = store
    run_id, twin = (client.create_run(experiment_id(client)).info.run_id for _ in range(2))
    for step, value in enumerate((1.0, 2.0, 3.0)):
        client.log_metric(twin, "train_loss", value, step=step)
    client.log_metric(twin, "wall_seconds", 7.0, step=0)
    for value, step in ((1.0, 0), (2.5, 1), (4.0, 9)):
        client.log_metric(run_id, "train_loss", value, step=step)
    client.log_metric(run_id, "wall_seconds", 8.0, step=0)
    client.log_metric(run_id, "train_loss", 1.0, step=0, timestamp=5)

    assert tally.compare(client, run_id, twin) == {
        "points": 4,
        "lost": [("train_loss", 2)],
        "doubled": [("train_loss", 0)],
        "besides": [("train_loss", 9)],
        "other values": [("train_loss", 1)],
    }
