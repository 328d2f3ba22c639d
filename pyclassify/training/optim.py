"""What a long training asks of any optimizer: a schedule by step, and no decay of biases."""

import math
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

# What torch's schedulers keep for each group besides `base_lrs`, and go through side by side.
PER_GROUP = ("lr_lambdas", "max_lrs")


class WarmupCosine(LRScheduler):
    """Raise the learning rate linearly to the optimizer's own, then lower it to 0 by a cosine.

    It changes with each step and ends with the training, however long that is: Goyal et al.
    (arXiv:1706.02677) for the warm-up, Loshchilov and Hutter (arXiv:1608.03983) for the cosine.

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
        """Be told how many steps the training has, of all its epochs.

        Returns:
            What a LightningModule's `configure_optimizers` may give.

        Raises:
            MisconfigurationException: It has no end, or none that is known.
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
        """All but the number of steps: a training that goes on may have got more epochs."""
        return {key: value for key, value in super().state_dict().items() if key != "total"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on at this training's rate, not at that of one that had other epochs.

        Args:
            state_dict: What `state_dict` gave; the optimizer has got its own before.
        """
        super().load_state_dict(state_dict)
        self._set_rates()

    def _set_rates(self) -> None:
        """Give the optimizer what the next step is taken with."""
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate

    def get_lr(self) -> list[float | Any]:
        """The learning rate of the step that comes next, for each group of parameters."""
        share = self._share(self.last_epoch)
        return [group["initial_lr"] * share for group in self.optimizer.param_groups]

    def _share(self, step: int) -> float:
        rising = round(self.warmup * self.total)
        if step < rising:
            return (step + 1) / (rising + 1)
        done = min(1.0, (step - rising) / max(1, self.total - rising))
        return 0.5 * (1 + math.cos(math.pi * done))


def count_steps(trainer: pl.Trainer) -> float:
    """How many optimizer steps a training is to take; infinite, or -1, where none can tell.

    Raises:
        MisconfigurationException: A callback sets how many batches make a step as it goes.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    changing = [each for each in callbacks if isinstance(each, GradientAccumulationScheduler)]
    if any(each.going_to_accumulate_grad_batches() for each in changing):
        raise MisconfigurationException(
            "lr_scheduler WarmupCosine needs the training's number of steps, which "
            "GradientAccumulationScheduler changes on the way; give "
            "--trainer.accumulate_grad_batches instead, or another lr_scheduler"
        )
    return trainer.estimated_stepping_batches


def spare_biases(optimizer: Optimizer, lr_scheduler: Any = None) -> None:
    """Give parameters of one dimension a group of their own, without weight decay.

    These are biases and normalisation's scales and shifts, as timm tells them, which decay would
    only make worse (He et al., "Bag of tricks", arXiv:1812.01187, section 3.1).

    Args:
        optimizer: One that has a `weight_decay` and has taken no step.
        lr_scheduler: Made for the optimizer as it was; it is told of the new groups.

    Raises:
        MisconfigurationException: The optimizer has no weight decay, or the scheduler has lists
            with an entry for each group, which can't be told of more.
    """
    if "weight_decay" not in optimizer.defaults:
        raise MisconfigurationException(
            f"decay_biases is false, and {type(optimizer).__name__} has no weight_decay; leave "
            "decay_biases out, or name an optimizer that has one, such as SGD"
        )
    lists = [name for name in PER_GROUP if hasattr(lr_scheduler, name)]
    if lists:
        raise MisconfigurationException(
            f"decay_biases is false, which makes more groups of parameters, and "
            f"{type(lr_scheduler).__name__} keeps {lists[0]} for those that there were; leave "
            "decay_biases out, or name another lr_scheduler, such as WarmupCosine"
        )
    for group in list(optimizer.param_groups):
        spared = [each for each in group["params"] if each.ndim < 2]
        group["params"][:] = [each for each in group["params"] if each.ndim >= 2]
        if spared:
            optimizer.add_param_group({**group, "params": spared, "weight_decay": 0.0})
    if hasattr(lr_scheduler, "base_lrs"):
        lr_scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
