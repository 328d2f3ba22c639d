"""Speed, learning rate and a run's bests, at true steps and under one name in every logger."""

import time
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from pyclassify.module import Classifier
from pyclassify.tracking import metrics, run
from pyclassify.tracking.logger import RunLogger
from pyclassify.tracking.metrics import RunMetrics, count_images
from tests.support import networks, waiting
from tests.support.trainings import SHAPES

BESIDE = "--trainer.logger+=lightning.pytorch.loggers.TensorBoardLogger"
BESIDE += " --trainer.logger.save_dir=logs"


class Notes(DummyLogger):
    """A logger that only remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.given = []

    def log_metrics(self, metrics, step):
        self.given.append((step, metrics))


class Decaying(Classifier):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)]


@pytest.fixture
def logger(cli):
    yield RunLogger()
    run.end_run("FINISHED")


def steps(run_id):
    """The steps of each metric of a run."""
    client = mlflow.MlflowClient()
    keys = client.get_run(run_id).data.metrics
    return {key: [point.step for point in client.get_metric_history(run_id, key)] for key in keys}


def fit(*callbacks, **options):
    """Train for two epochs of three steps; the epochs' metrics, each with its step."""
    notes, loader = Notes(), DataLoader(networks.byte_images(12), 4)
    trainer = networks.trainer(
        logger=notes, callbacks=[*callbacks, RunMetrics()], max_epochs=2, **options
    )
    trainer.fit(Decaying(networks.network, 4, learning_rate=0.5), loader, loader)
    return [(step, given) for step, given in notes.given if "epoch_seconds" in given]


def test_run_has_each_metric_at_its_steps(cli):
    done = cli(f"train {SHAPES} --max_epochs=2")  # five steps an epoch

    found = steps(done.runs[0].info.run_id)
    for by_epoch in ("epoch_seconds", "images_per_second", "learning_rate", "val_loss"):
        assert found[by_epoch] == [4, 9]
    for of_the_test in ("test_accuracy", "test_loss", "test_ece"):
        assert found[of_the_test] == [0]
    for of_the_run in ("best_val_accuracy", "parameters", "wall_seconds"):
        assert found[of_the_run] == [0]


def test_best_val_accuracy_is_of_the_best_epoch(cli):
    (trained,) = cli(f"fit {SHAPES} --max_epochs=3 --learning_rate=0.05").runs

    history = mlflow.MlflowClient().get_metric_history(trained.info.run_id, "val_accuracy")
    assert trained.data.metrics["best_val_accuracy"] == max(point.value for point in history)


def test_run_metrics_are_restored_from_a_checkpoint():
    before, after = RunMetrics(), RunMetrics()
    for callback in (before, after):
        callback.setup(networks.trainer(), torch.nn.Module(), "fit")
    before.load_state_dict({"best_val_accuracy": 0.75, "wall_seconds": 1000.0})

    after.load_state_dict(before.state_dict())

    assert after.state_dict()["best_val_accuracy"] == 0.75
    assert after.state_dict()["wall_seconds"] > 1000


def test_test_without_training_has_no_best_val_accuracy(cli):
    trained = cli(f"fit {SHAPES}").runs[0]
    scored = cli(f"test {SHAPES} --ckpt_path={trained.info.run_id}").runs[0]

    assert {"test_ece", "parameters", "wall_seconds"} <= scored.data.metrics.keys()
    assert "best_val_accuracy" not in scored.data.metrics


def test_learning_rate_is_of_the_start_of_each_epoch():
    epochs = fit()

    assert [(step, given["learning_rate"]) for step, given in epochs] == [
        (2, 0.5),
        (5, pytest.approx(0.05)),
    ]


def test_validation_counts_in_epoch_seconds_only(monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=lambda: clock.now, monotonic=time.monotonic)
    monkeypatch.setattr(metrics, "time", clock)

    class Clocked(networks.Recorder):
        def on_train_batch_start(self, *args):
            clock.now += 1  # three times an epoch

        def on_validation_batch_start(self, *args):
            clock.now += 10  # as often

    _, last = fit(Clocked())[-1]

    assert last["epoch_seconds"] == 33
    assert last["images_per_second"] == 4  # 12 in the 3 seconds of training


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ((torch.zeros(5, 3, 8, 8), torch.zeros(5)), 5),
        ({"name": ["a", "b"], "image": torch.zeros(2, 3)}, 2),
        ([[torch.zeros(3)], "text"], 3),
        ("text", 0),
        (torch.zeros(()), 0),
    ],
)
def test_count_images_of_any_batch(batch, count):
    assert count_images(batch) == count


def test_metrics_beside_those_of_the_test_keep_their_step(logger):
    logger.log_metrics({"test_loss": 0.5, "epoch": 3, "other": 1.0}, step=7)
    logger.log_metrics({"test_accuracy": 0.5, "epoch": 4}, step=8)
    assert logger.spooled_run.upload_thread.wait_until_uploaded(waiting.scale(20))

    assert steps(logger.run_id) == {
        "test_loss": [0],
        "test_accuracy": [0],
        "epoch": [7],
        "other": [7],
    }


def test_tensorboard_logger_gets_the_same_metrics(cli, tmp_path):
    done = cli(f"train {SHAPES} {BESIDE}")

    events = next(Path(tmp_path, "logs").rglob("events.out.*"))
    board = EventAccumulator(str(events.parent)).Reload()
    logged = set(done.runs[0].data.metrics)  # with those of the machine, if it was slow
    assert set(board.Tags()["scalars"]) == {name for name in logged if "system/" not in name}
    assert done.runs[0].data.params["seed_everything"] == "0"
    assert f"run            {done.runs[0].info.run_id}" in done.out
