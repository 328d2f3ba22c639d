"""Averaged weights: those that are validated, kept, tested and served."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AverageWeights(WeightAveraging):
    """Average the weights of the steps, so that the last count most, and use the average.

    Validation, the best checkpoint, the test and a registered model have the average; training
    goes on with its own weights, which a checkpoint holds beside.

    It is Lightning's WeightAveraging with an exponential moving average, but that the average
    forgets the first weights soon, as TensorFlow's does, and that a test which follows takes the
    average out of the best checkpoint, and not the weights beside.

    Args:
        decay: How much of the average each update leaves: with 0.999, about the last 1,000 updates
            count.
        every_steps: How many steps there are from one update to the next; more take less time.
    """

    def __init__(self, decay: float = 0.999, every_steps: int = 1) -> None:
        if not (0 <= decay < 1 and every_steps >= 1):
            raise MisconfigurationException(
                f"decay is {decay} and every_steps {every_steps}; give 0 or more and less than 1, "
                "such as 0.999, and 1 step or more"
            )
        self.decay, self.every_steps = decay, every_steps
        super().__init__(multi_avg_fn=self._average)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether a step, counted from 0, is one whose weights count."""
        return step_idx is not None and step_idx % self.every_steps == 0

    def _average(self, averaged: Any, current: Any, count: Tensor | int) -> None:
        """Have the average take in the current weights, as the update after `count` others."""
        done = int(count)  # once, as it waits for the device
        decay = min(self.decay, (1 + done) / (10 + done))
        get_ema_multi_avg_fn(decay)(averaged, current, count)  # type: ignore[no-untyped-call]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Have the average where the network is by now: it was copied before it was moved."""
        if self._average_model is not None:
            self._average_model.to(trainer.strategy.root_device)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the average, with the running means of the first process, which are kept."""
        if self._average_model is not None and torch.distributed.is_initialized():
            for each in self._average_model.module.buffers():
                torch.distributed.broadcast(each, src=0)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Nothing: the checkpoint that a longer training goes on from is written after this."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the network with the average."""
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget the average where a stage ends; the next one gets it from a checkpoint."""
        self._average_model = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take both weights where training goes on; elsewhere the network has the average."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
