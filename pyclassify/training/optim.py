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

# Lists of torch's schedulers with an entry for each group, which `zip` cuts to the shortest.
_PER_GROUP = ("lr_lambdas", "max_lrs")


class WarmupCosine(LRScheduler):
    """Warm up the learning rate linearly, then decay it to 0 by a cosine.

    The learning rate changes at each optimizer step and reaches 0 at the end of the training,
    whatever its length. Warmup: Goyal et al. (arXiv:1706.02677). Cosine decay without restarts:
    Loshchilov and Hutter (arXiv:1608.03983). In a LightningModule, end `configure_optimizers` with
    `return WarmupCosine(optimizer).configure(self.trainer.estimated_stepping_batches)`.

    Args:
        optimizer: The optimizer. Its learning rate is the peak, at the end of the warmup.
        warmup_ratio: Warm up in this part of all steps, from 0 (no warmup) to less than 1.

    Raises:
        MisconfigurationException: warmup_ratio is not in [0, 1).

    Example:
        >>> import torch
        >>> from pyclassify import WarmupCosine
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(4, 2).parameters(), lr=0.5)
        >>> schedule = WarmupCosine(optimizer, warmup_ratio=0.5).configure(steps=10)
        >>> rates = []
        >>> for _ in range(10):
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
        ...     optimizer.step()
        ...     schedule["lr_scheduler"]["scheduler"].step()
        >>> rates
        [0.08, 0.17, 0.25, 0.33, 0.42, 0.5, 0.45, 0.33, 0.17, 0.05]
    """

    def __init__(self, optimizer: Optimizer, warmup_ratio: float = 0.1) -> None:
        if not 0 <= warmup_ratio < 1:
            raise MisconfigurationException(
                f"invalid warmup_ratio: {warmup_ratio} (expected 0 <= warmup_ratio < 1)"
            )
        self.warmup_ratio, self.total = warmup_ratio, 1
        super().__init__(optimizer)

    def configure(self, steps: float) -> dict[str, Any]:
        """Set the number of steps of the training.

        Args:
            steps: The number of optimizer steps in all epochs, as
                `trainer.estimated_stepping_batches` has it.

        Returns:
            A dictionary for a LightningModule's `configure_optimizers` to return: the optimizer and
            this scheduler, with the interval "step".

        Raises:
            MisconfigurationException: steps is infinite, or negative, which means unknown.
        """
        if steps < 0:  # how Lightning counts data without a length
            raise MisconfigurationException(
                "lr_scheduler WarmupCosine needs the number of training steps, which is unknown "
                "because the training data has no length; give --trainer.max_steps"
            )
        if math.isinf(steps):
            raise MisconfigurationException(
                "lr_scheduler WarmupCosine needs the number of training steps, but the training "
                "has no end; give --max_epochs or --trainer.max_steps"
            )
        self.total = int(steps)
        self._set_rates()
        schedule = {"scheduler": self, "interval": "step"}
        return {"optimizer": self.optimizer, "lr_scheduler": schedule}

    def state_dict(self) -> dict[str, Any]:
        """Return the state without the number of steps: a resumed training may have more epochs."""
        return {key: value for key, value in super().state_dict().items() if key != "total"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, and set the learning rate for this training's number of steps.

        Args:
            state_dict: A state that `state_dict` returned. Load the optimizer's state before.
        """
        super().load_state_dict(state_dict)
        self._set_rates()

    def _set_rates(self) -> None:
        """Set the optimizer's learning rates for the next step."""
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float | Any]:
        """Return the learning rate of the next step for each parameter group."""
        factor = self._compute_factor(self.last_epoch)
        return [group["initial_lr"] * factor for group in self.optimizer.param_groups]

    def _compute_factor(self, step: int) -> float:
        warmup_steps = round(self.warmup_ratio * self.total)
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, self.total - warmup_steps))
        return 0.5 * (1 + math.cos(math.pi * progress))


def count_steps(trainer: pl.Trainer) -> float:
    """Count the optimizer steps of a training: infinite without an end, -1 if unknown.

    Raises:
        MisconfigurationException: A GradientAccumulationScheduler changes the number of batches in
            a step during the training.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    schedulers = [c for c in callbacks if isinstance(c, GradientAccumulationScheduler)]
    if any(scheduler.going_to_accumulate_grad_batches() for scheduler in schedulers):
        raise MisconfigurationException(
            "lr_scheduler WarmupCosine needs the number of training steps, which "
            "GradientAccumulationScheduler changes during the training; give "
            "--trainer.accumulate_grad_batches instead, or another lr_scheduler"
        )
    return trainer.estimated_stepping_batches


def exclude_from_weight_decay(optimizer: Optimizer, lr_scheduler: Any = None) -> None:
    """Exclude biases and norms from weight decay, in a parameter group for each existing group.

    These are the parameters of fewer than two dimensions, as in timm: decay of them only reduces
    the accuracy (He et al., "Bag of tricks", arXiv:1812.01187, section 3.1).

    Args:
        optimizer: An optimizer with a `weight_decay` that has taken no step.
        lr_scheduler: The optimizer's scheduler, which gets base rates for the new groups.

    Raises:
        MisconfigurationException: The optimizer has no weight decay, or the scheduler has lists
            with an entry for each group, which can't be extended.
    """
    if "weight_decay" not in optimizer.defaults:
        raise MisconfigurationException(
            f"decay_bias_and_norm is false, but {type(optimizer).__name__} has no "
            "weight_decay; leave out decay_bias_and_norm, or choose an optimizer that has one, "
            "such as SGD"
        )
    lists = [name for name in _PER_GROUP if hasattr(lr_scheduler, name)]
    if lists:
        raise MisconfigurationException(
            "decay_bias_and_norm is false, which adds parameter groups, but "
            f"{type(lr_scheduler).__name__} has {lists[0]} for the existing groups only; leave out "
            "decay_bias_and_norm, or choose another lr_scheduler, such as WarmupCosine"
        )
    for group in list(optimizer.param_groups):
        excluded = [parameter for parameter in group["params"] if parameter.ndim < 2]
        group["params"][:] = [parameter for parameter in group["params"] if parameter.ndim >= 2]
        if excluded:
            optimizer.add_param_group({**group, "params": excluded, "weight_decay": 0.0})
    if hasattr(lr_scheduler, "base_lrs"):
        lr_scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]


class EMAWeights(WeightAveraging):
    """Keep an exponential moving average (EMA) of the weights, and evaluate with it.

    Validation, the best checkpoint, the test and a registered model use the EMA. Training continues
    with its current weights, which checkpoints also contain. After `fit` the network has the EMA.

    This is Lightning's WeightAveraging with two differences. The decay rises over the first updates
    to `decay`, as in TensorFlow's ExponentialMovingAverage, so that the EMA soon forgets the
    initial weights. A test after training loads the EMA from the best checkpoint, where Lightning
    loads the current weights.

    Args:
        decay: Keep this part of the EMA in each update, from 0 to less than 1: 0.999 averages about
            the last 1,000 updates. Update N uses at most (1 + N) / (10 + N).
        update_every_n_steps: Update the EMA every N optimizer steps; a larger N takes less time.

    Raises:
        MisconfigurationException: decay is not in [0, 1), or update_every_n_steps is less than 1.

    Example:
        >>> from pyclassify import AlexNetBN, Classifier, EMAWeights, SyntheticDataModule, Trainer
        >>> trainer = Trainer(max_epochs=1, callbacks=[EMAWeights(decay=0.99)])
        >>> trainer.fit(Classifier(AlexNetBN), SyntheticDataModule(batch_size=16))
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1:
            raise MisconfigurationException(
                f"invalid decay: {decay} (expected 0 <= decay < 1, such as 0.999)"
            )
        if update_every_n_steps < 1:
            raise MisconfigurationException(
                f"invalid update_every_n_steps: {update_every_n_steps} (expected 1 or more)"
            )
        self.decay, self.update_every_n_steps = decay, update_every_n_steps
        super().__init__(multi_avg_fn=self._average)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Whether to update the EMA after a step, counted from 0."""
        return step_idx is not None and step_idx % self.update_every_n_steps == 0

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
