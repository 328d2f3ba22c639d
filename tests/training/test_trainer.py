"""The best checkpoint, and the size of a launch."""

import os
import re
import warnings
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from pyclassify.datamodule import SyntheticDataModule
from pyclassify.module import Classifier
from pyclassify.training.checkpoints import BestCheckpoint
from pyclassify.training.trainer import LaunchCheck, Trainer
from tests.support import networks
from tests.support.images import grow
from tests.support.phrases import mentions
from tests.support.ports import free_port
from tests.support.trainings import LINEAR, SHAPES


def test_last_checkpoint_is_saved_if_the_metric_is_not_logged(cli):
    with pytest.warns(UserWarning, match="'f1'.*last"):
        done = cli(f"train {SHAPES} --checkpoint.monitor f1")

    assert done.code == 0
    assert [file.name for file in Path("runs").glob("*/*/checkpoints/*.ckpt")] == ["best.ckpt"]


def test_best_checkpoint_is_the_one_with_the_highest_validation_accuracy():
    checkpoint = BestCheckpoint()

    assert (checkpoint.monitor, checkpoint.mode) == ("val_accuracy", "max")


def test_run_without_checkpoints_is_tested_with_the_current_weights(cli):
    done = cli(f"train {SHAPES} --trainer.enable_checkpointing=false")

    assert done.code == 0
    assert "test_accuracy" in done.runs[0].data.metrics
    assert os.listdir("runs") == ["spool"]


def test_train_announces_its_test_and_a_later_fit_has_none(monkeypatch):
    seen = []
    for name in ("fit", "test"):
        monkeypatch.setattr(Trainer, name, lambda self, *_, **__: seen.append(self.tests_after_fit))
    trainer = Trainer(logger=False, enable_checkpointing=False)

    trainer.train(Classifier(networks.Linear))

    assert (seen, trainer.tests_after_fit) == ([True, True], False)


def test_best_checkpoint_waits_for_a_validation_that_comes_later(cli):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the metric .* is not logged")
        done = cli(f"fit {SHAPES} --max_epochs 2 --trainer.check_val_every_n_epoch 2")

    assert done.code == 0
    assert "val_accuracy" in done.out


def test_missing_test_images_are_known_before_training(cli, tmp_path):
    folder = grow(tmp_path / "photos", "train/cat", "train/dog")
    data = f"--data=ImageFolderDataModule --data_path {folder} {LINEAR}"
    done = cli(f"train {data} --max_epochs 1")

    assert done.code == 1
    assert re.search(r"^pyclassify: error: .*photos/test .*folder", done.err, re.MULTILINE)
    assert done.runs == []


def test_launch_with_another_number_of_processes_is_refused(cli, monkeypatch):
    job = {"JOB_ID": 1, "JOB_NAME": "train", "NTASKS": 1, "NODEID": 0, "PROCID": 0, "LOCALID": 0}
    for name, value in {**job, "NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("MASTER_PORT", str(free_port()))  # else Lightning leaves one of its own

    done = cli(f"fit {SHAPES} --accelerator cpu --devices 2")

    assert done.code == 1
    assert mentions(done.err, "pyclassify: error: ", 1, "2 x 1", "devices x num_nodes")
    assert "FINISHED" not in [run.info.status for run in done.runs]


@pytest.mark.parametrize("plugins", [None, SLURMEnvironment(auto_requeue=True)])
def test_requeue_is_left_to_the_jobs_script_unless_someone_wants_lightnings(plugins, monkeypatch):
    job = {"JOB_ID": 1, "JOB_NAME": "train", "NTASKS": 1, "NODEID": 0, "PROCID": 0, "LOCALID": 0}
    for name, value in {**job, "NODELIST": "localhost"}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("MASTER_PORT", str(free_port()))  # else Lightning leaves one of its own
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}

    trainer = Trainer(fast_dev_run=True, accelerator="cpu", devices=1, plugins=plugins, **quiet)
    trainer.callbacks.append(LaunchCheck())
    trainer.fit(Classifier(networks.network), SyntheticDataModule(8, 8, 8, batch_size=8))

    found = trainer._accelerator_connector.cluster_environment
    assert isinstance(found, SLURMEnvironment)
    assert found.auto_requeue == (plugins is not None)


@pytest.mark.parametrize(
    ("strategy", "views"),
    [
        ("auto", True),
        ("ddp", True),
        ("ddp_find_unused_parameters_true", True),
        (DDPStrategy(gradient_as_bucket_view=True), True),
        (DDPStrategy(gradient_as_bucket_view=False), False),
    ],
    ids=["auto", "ddp", "unused parameters", "views", "no views"],
)
def test_trainer_keeps_gradients_in_buckets_unless_asked_otherwise(strategy, views):
    trainer = Trainer(strategy=strategy, devices=2, accelerator="cpu", logger=False)

    assert type(trainer.strategy) is DDPStrategy
    assert trainer.strategy._ddp_kwargs["gradient_as_bucket_view"] == views


def test_trainer_takes_positional_arguments_as_lightnings_does():
    trainer = Trainer("cpu", "auto", 1, max_epochs=3, logger=False, enable_checkpointing=False)

    assert (trainer.num_devices, trainer.max_epochs) == (1, 3)
    assert trainer.strategy.root_device.type == "cpu"
