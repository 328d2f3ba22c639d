"""Schedules, weight decay groups and the EMA of the weights, for any optimizer."""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, WeightAveraging
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

# What torch's schedulers keep for each group besides `base_lrs`, and go through side by side.
_PER_GROUP = ("lr_lambdas", "max_lrs")


class WarmupCosine(LRScheduler):
    """Raise the learning rate linearly to the optimizer's own, then lower it to 0 by a cosine.

    It changes with each step and ends with the training, however long that is: Goyal et al.
    (arXiv:1706.02677) for the warm-up, Loshchilov and Hutter (arXiv:1608.03983) for the cosine.

    Example:
        >>> schedule = WarmupCosine(optimizer, warmup=0.05)
        >>> schedule.configure(trainer.estimated_stepping_batches)  # for configure_optimizers

    Args:
        optimizer: Whose learning rate is the highest.
        warmup: The part of the training in which it rises, 0 to less than 1.
    """

    def __init__(self, optimizer: Optimizer, warmup: float = 0.1) -> None:
        if not 0 <= warmup < 1:
            raise MisconfigurationException(
                f"warmup is {warmup}; give the part of the training in which the learning rate "
                "rises, from 0 to less than 1"
            )
        self.warmup, self.total = warmup, 1
        super().__init__(optimizer)

    def configure(self, steps: float) -> dict[str, Any]:
        """Set the number of steps of the training.

        Args:
            steps: The optimizer steps of all epochs.

        Returns:
            What a LightningModule's `configure_optimizers` may return.

        Raises:
            MisconfigurationException: The number is infinite or negative, which means unknown.
        """
        if steps < 0:  # how Lightning counts data without a length
            raise MisconfigurationException(
                "lr_scheduler WarmupCosine ends with the training, whose number of steps is not "
                "known, since the training data have no length; give --trainer.max_steps"
            )
        if math.isinf(steps):
            raise MisconfigurationException(
                "lr_scheduler WarmupCosine ends with the training, which has no end; give "
                "--max_epochs or --trainer.max_steps"
            )
        self.total = int(steps)
        self._set_rates()
        schedule = {"scheduler": self, "interval": "step"}
        return {"optimizer": self.optimizer, "lr_scheduler": schedule}

    def state_dict(self) -> dict[str, Any]:
        """Get the state without the number of steps: a resumed training may have more epochs."""
        return {key: value for key, value in super().state_dict().items() if key != "total"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, and set the learning rate for this training's number of steps.

        Args:
            state_dict: What `state_dict` returned; the optimizer's own state is loaded before.
        """
        super().load_state_dict(state_dict)
        self._set_rates()

    def _set_rates(self) -> None:
        """Set the optimizer's learning rates for the next step."""
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float | Any]:
        """Get the learning rate of the next step, for each group of parameters."""
        share = self._share(self.last_epoch)
        return [group["initial_lr"] * share for group in self.optimizer.param_groups]

    def _share(self, step: int) -> float:
        rising = round(self.warmup * self.total)
        if step < rising:
            return (step + 1) / (rising + 1)
        done = min(1.0, (step - rising) / max(1, self.total - rising))
        return 0.5 * (1 + math.cos(math.pi * done))


def count_steps(trainer: pl.Trainer) -> float:
    """Count a training's optimizer steps; infinite without an end, -1 where unknown.

    Raises:
        MisconfigurationException: A callback sets how many batches make a step as it goes.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    schedulers = [c for c in callbacks if isinstance(c, GradientAccumulationScheduler)]
    if any(scheduler.going_to_accumulate_grad_batches() for scheduler in schedulers):
        raise MisconfigurationException(
            "lr_scheduler WarmupCosine needs the training's number of steps, which "
            "GradientAccumulationScheduler changes on the way; give "
            "--trainer.accumulate_grad_batches instead, or another lr_scheduler"
        )
    return trainer.estimated_stepping_batches


def exclude_from_weight_decay(optimizer: Optimizer, lr_scheduler: Any = None) -> None:
    """Exclude biases and norms from weight decay, in a parameter group for each that there is.

    These are the parameters of less than two dimensions, as in timm. Decay would only make them
    worse (He et al., "Bag of tricks", arXiv:1812.01187, section 3.1).

    Args:
        optimizer: One that has a `weight_decay` and has taken no step.
        lr_scheduler: The optimizer's scheduler, which gets base rates for the new groups.

    Raises:
        MisconfigurationException: The optimizer has no weight decay, or the scheduler has lists
            with an entry for each group, which can't be extended.
    """
    if "weight_decay" not in optimizer.defaults:
        raise MisconfigurationException(
            f"decay_biases is false, and {type(optimizer).__name__} has no weight_decay; leave "
            "decay_biases out, or name an optimizer that has one, such as SGD"
        )
    lists = [name for name in _PER_GROUP if hasattr(lr_scheduler, name)]
    if lists:
        raise MisconfigurationException(
            f"decay_biases is false, which makes more groups of parameters, and "
            f"{type(lr_scheduler).__name__} keeps {lists[0]} for those that there were; leave "
            "decay_biases out, or name another lr_scheduler, such as WarmupCosine"
        )
    for group in list(optimizer.param_groups):
        excluded = [parameter for parameter in group["params"] if parameter.ndim < 2]
        group["params"][:] = [parameter for parameter in group["params"] if parameter.ndim >= 2]
        if excluded:
            optimizer.add_param_group({**group, "params": excluded, "weight_decay": 0.0})
    if hasattr(lr_scheduler, "base_lrs"):
        lr_scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]


class AverageWeights(WeightAveraging):
    """Keep an exponential moving average (EMA) of the weights, and evaluate with it.

    Validation, the best checkpoint, the test and a registered model have the EMA; training
    continues with its own weights, which a checkpoint holds too.

    It is Lightning's WeightAveraging with two differences: the EMA forgets the first weights soon,
    as TensorFlow's does, and a test after training loads the EMA from the best checkpoint, and not
    training's own weights.

    Example:
        >>> Trainer(callbacks=[AverageWeights(decay=0.999)])

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
        """Whether to update the EMA after a step, counted from 0."""
        return step_idx is not None and step_idx % self.every_steps == 0

    def _average(self, averaged: Any, current: Any, count: Tensor | int) -> None:
        """Update the EMA with the current weights, after `count` updates."""
        updates = int(count)  # once, as it waits for the device
        decay = min(self.decay, (1 + updates) / (10 + updates))
        get_ema_multi_avg_fn(decay)(averaged, current, count)  # type: ignore[no-untyped-call]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move the EMA to the network's device: it was copied before the network was moved."""
        if self._average_model is not None:
            self._average_model.to(trainer.strategy.root_device)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate the EMA, with the BatchNorm running statistics of rank zero, which are saved."""
        if self._average_model is not None and torch.distributed.is_initialized():
            for buffer in self._average_model.module.buffers():
                torch.distributed.broadcast(buffer, src=0)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Do nothing: the checkpoint to resume a longer training from is written after this."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the EMA into the network."""
        if self._average_model is not None:
            self._copy_average_to_current(pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Drop the EMA when a stage ends; the next stage gets it from a checkpoint."""
        self._average_model = None

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Load both weights where training resumes; elsewhere the network gets the EMA."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
