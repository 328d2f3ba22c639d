"""A training that is stopped and goes on is the training that was never stopped."""

import random
from functools import partial
from signal import SIGINT, SIGTERM, SIGUSR1

import lightning.pytorch as pl
import pytest
import torch

from pyclassify.datamodule import ImageFolderDataModule, SyntheticDataModule
from pyclassify.module import Classifier
from pyclassify.training.optim import WarmupCosine
from tests.support import stopping
from tests.support.stopping import Foreign, Means, Net, Schedules, compare, ours

CLASSIFIER = partial(Classifier, Net)
STOPS = [(3, SIGUSR1), (4, SIGTERM), (7, SIGUSR1), (0, SIGINT), (3, SIGUSR1)]
CRASHES = [(3, 0), (12, 0), (2, 0), (5, 0)]


@pytest.mark.parametrize("disturbances", [STOPS, CRASHES], ids=["stops", "crashes"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 3},
        {"val_check_interval": 2},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2},
        {"limit_train_batches": 5},
        {"max_epochs": -1, "max_steps": 30},
    ],
    ids=str,
)
def test_stopped_training_ends_as_one_that_was_not(tmp_path, options, disturbances):
    compare(
        tmp_path,
        CLASSIFIER,
        ours,
        disturbances=disturbances,
        resume={"every_n_train_steps": 2},
        **options,
    )


@pytest.mark.parametrize("kind", ["step", "epoch", "plateau", "warm-up"])
def test_learning_rate_schedule_resumes(tmp_path, kind):
    often = {"val_check_interval": 3}
    compare(tmp_path, partial(Schedules, kind), ours, disturbances=STOPS, **often)


class Stateful:
    """A loader that keeps where it is, as torchdata's StatefulDataLoader does."""

    done = 0

    def __len__(self):
        return 8

    def __iter__(self):
        return self._go_on(self.done % len(self))

    def _go_on(self, start):
        for batch in range(start, len(self)):
            self.done = batch + 1
            draw = torch.Generator().manual_seed(batch)
            yield torch.rand(5, 3, 8, 8, generator=draw), torch.arange(5) + batch % 3

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


class StatefulData(pl.LightningDataModule):
    def train_dataloader(self):
        return Stateful()


class LongMeans(Means):
    """Asks for the number of steps, for which Lightning sets up the data early."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return WarmupCosine(optimizer).configure(self.trainer.estimated_stepping_batches)


@pytest.mark.parametrize("module", [Means, LongMeans])
def test_stateful_loader_resumes(tmp_path, module):
    compare(tmp_path, module, StatefulData, disturbances=STOPS)


@pytest.mark.parametrize("workers", [0, 2])
def test_foreign_data_and_module_resume_exactly(tmp_path, workers):
    compare(tmp_path, Means, partial(Foreign, workers), disturbances=STOPS[:3], max_epochs=3)


@pytest.mark.parametrize("seed", range(4))
def test_training_resumes_exactly_from_any_step(tmp_path, seed):
    draw = random.Random(seed)
    kinds = [0, SIGUSR1, SIGTERM]
    disturbances = [(draw.randrange(6), draw.choice(kinds)) for _ in range(6)]
    resume = {"every_n_train_steps": draw.randrange(1, 5)}
    compare(tmp_path, CLASSIFIER, ours, disturbances=disturbances, resume=resume)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_of_a_folder_resume(tmp_path, workers):
    stopping.draw_folder(tmp_path / "images")
    sizes = {"batch_size": 6, "resize": 12, "crop": 8, "num_workers": workers}
    data = partial(ImageFolderDataModule, str(tmp_path / "images"), **sizes)
    compare(tmp_path, CLASSIFIER, data, disturbances=STOPS[:3], max_epochs=3)


def test_training_resumed_for_more_epochs_equals_one_long_training(tmp_path):
    at_once, ended = stopping.train(tmp_path / "at once", CLASSIFIER, ours, max_epochs=4)
    folder = tmp_path / "one by one"
    for epochs in (1, 3, 3, 4):
        rows, last = stopping.train(folder, CLASSIFIER, ours, max_epochs=epochs)

    # The last attempt's own: all of the last epoch, and nothing of those before.
    assert {key: at_once[key] for key in rows} == rows
    assert {step for name, step in rows if name == "train_loss"} == {25, 27, 29, 31}
    assert stopping.same(last, ended)


def test_explicit_checkpoint_is_used_by_the_first_attempt_only(tmp_path):
    stopping.train(tmp_path / "first", CLASSIFIER, ours, max_epochs=2)
    best = str(next(tmp_path.rglob("best.ckpt")))

    compare(tmp_path, CLASSIFIER, ours, disturbances=STOPS[:3], ckpt_path=best)


def test_inexact_resume_with_another_batch_size_skips_the_same_images(tmp_path):
    def half():
        return SyntheticDataModule(60, 20, 20, batch_size=4, resize=12, crop=8)

    sizes = iter([ours, half])
    inexact = {"allow_inexact": True}

    _, ended = stopping.train(tmp_path, CLASSIFIER, lambda: next(sizes)(), [(11, SIGUSR1)], inexact)

    # 12 steps of 8 images are one epoch of 8 steps and half of the second; 15 of 4 are an epoch.
    assert ended["at"] == 12 + 8 + 3 * 15
