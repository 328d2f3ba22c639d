"""A training that is stopped again and again, and what it leaves behind."""

import os
import shutil
import signal

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric

from pyclassify.data import synthetic
from pyclassify.datamodule import SyntheticDataModule
from pyclassify.module import Classifier
from pyclassify.tracking.metrics import RunMetrics
from pyclassify.training.checkpoints import BestCheckpoint
from pyclassify.training.exact_resume import Resume
from pyclassify.training.optim import WarmupCosine
from pyclassify.training.trainer import LaunchCheck, Trainer
from pyclassify.utils import signals

MAX_PATIENCE = 60  # times the time that a training has to stop in before its process is ended
CLOCK = ("epoch_seconds", "images_per_second", "wall_seconds")
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Net(nn.Sequential):
    """Small, with dropout, which draws, and with running means."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(48, 16),
            nn.BatchNorm1d(16),
            nn.Dropout(0.3),
            nn.Linear(16, num_classes),
        )


class Schedules(Classifier):
    """Lowers its learning rate each step, each epoch, or where the validation gets no better."""

    def __init__(self, kind):
        super().__init__(Net)
        self.kind = kind

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9)
        if self.kind == "warm-up":
            return WarmupCosine(optimizer, 0.2).configure(self.trainer.estimated_stepping_batches)
        if self.kind == "plateau":
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return [optimizer], [{"scheduler": schedule, "monitor": "val_loss"}]
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        return [optimizer], [{"scheduler": schedule, "interval": self.kind}]


class Means(pl.LightningModule):
    """A module that knows nothing of resuming and logs means, a maximum and a metric by epoch."""

    def __init__(self):
        super().__init__()
        self.net, self.mean = Net(10), MeanMetric()

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.net(images), labels)
        self.mean(loss)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("largest", loss, on_step=False, on_epoch=True, reduce_fx="max")
        self.log("metric", self.mean, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.01)


class Noisy(Dataset):
    """Images that are drawn anew each time, by whichever process reads them."""

    def __len__(self):
        return 37

    def __getitem__(self, index):
        return torch.rand(3, 8, 8) + index / 37, index % 10


class Foreign(pl.LightningDataModule):
    """A plain shuffled loader."""

    def __init__(self, workers=0):
        super().__init__()
        self.workers = workers

    def train_dataloader(self):
        return DataLoader(Noisy(), batch_size=5, shuffle=True, num_workers=self.workers)


class Memory(Logger):
    """Keeps all that is logged under (metric, step), the clock's without their values."""

    name, run_id, version, save_dir = "0", "run", "run", ""

    def __init__(self, folder):
        super().__init__()
        self.rows = {}
        type(self).save_dir = str(folder)

    def log_hyperparams(self, *args):
        pass

    def log_metrics(self, metrics, step=None):
        for name, value in metrics.items():
            value = "timed" if name in CLOCK else value
            self.rows.setdefault((name, step), set()).add(value)


class Disturb(pl.Callback):
    """Sends this process a signal in the midst of a batch, or raises an error without one.

    Args:
        batch: Which of this attempt, from 0.
        signum: The signal; 0 for an error, which leaves on the disk what SIGKILL does.
        rank: The process that is disturbed; all without it.
    """

    def __init__(self, batch: int, signum: int = 0, rank: int | None = None):
        self.batch, self.signum, self.rank = batch, signum, rank

    def on_before_backward(self, trainer, *args):
        self.batch -= 1
        if self.batch == -1 and self.rank in (None, trainer.global_rank):
            if not self.signum:
                raise RuntimeError("disturbed")
            os.kill(os.getpid(), self.signum)


def ours(**options):
    return SyntheticDataModule(60, 20, 20, batch_size=8, resize=12, crop=8, **options)


def train(folder, module, data, disturbances=(), resume=None, ckpt_path=None, more=list, **options):
    """Train as a new process would, in as many attempts as there are disturbances and one more.

    Args:
        module: Makes the module, as each attempt has its own; so for `data`.
        disturbances: (batch, signal) of each attempt, or (batch, signal, rank).
        resume: Options of `Resume`.
        ckpt_path: Given to each attempt.
        more: Makes callbacks of a recipe's, which come before all others.

    Returns:
        The rows of the log, and what the training ended with.
    """
    logger, last = Memory(folder), None
    for each in [*disturbances, None]:
        torch.manual_seed(1)
        callbacks = [Resume(**(resume or {})), LaunchCheck(), RunMetrics(), BestCheckpoint()]
        trainer = Trainer(
            **{"max_epochs": 5, "log_every_n_steps": 2, "devices": 1, **QUIET, **options},
            logger=logger,
            callbacks=[*more(), *callbacks, *([Disturb(*each)] if each else [])],
        )
        last = module()
        if each is None:
            trainer.fit(last, data(), ckpt_path=ckpt_path)
            continue
        ends = pytest.raises(SystemExit if each[1] else RuntimeError)
        # On a slow machine it may take its time: else all of pytest would be ended.
        with ends as ended, signals.stop_on_signals(lambda name: None, grace_factor=MAX_PATIENCE):
            trainer.fit(last, data(), ckpt_path=ckpt_path)
        words = signal.Signals(each[1]).name if each[1] else "disturbed"
        assert words in str(ended.value.__context__ or ended.value)
    state = {"weights": last.state_dict(), "optimizer": trainer.optimizers[0].state_dict()["state"]}
    best = trainer.checkpoint_callback
    return logger.rows, {**state, "best": best.best_model_score, "at": trainer.global_step}


def same(one, other):
    """Whether two nested structures of tensors are the same, bit by bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return one == other


def compare(folder, *args, disturbances, **options):
    """Train undisturbed and disturbed, and demand that all be the same."""
    alone, ended = train(folder / "alone", *args, **options)
    shutil.rmtree(folder / "alone", ignore_errors=True)
    rows, disturbed = train(folder / "disturbed", *args, disturbances, **options)
    wrong = {key for key in rows.keys() | alone.keys() if rows.get(key) != alone.get(key)}
    assert not wrong, {key: (alone.get(key), rows.get(key)) for key in wrong}
    assert same(disturbed, ended)


def draw_folder(folder):
    """Shapes as files: train/<class>/<image>, 44 in all."""
    images, labels = synthetic.generate_images(44, seed=0)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / "train" / str(int(label))
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{number:02}.png")


class StopTest(pl.Callback):
    """Sends this process SIGUSR1 in the midst of the test."""

    def on_test_batch_start(self, *args):
        os.kill(os.getpid(), signal.SIGUSR1)
