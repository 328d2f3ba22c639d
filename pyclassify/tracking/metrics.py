"""The metrics that are no network's own: speed and learning rate by epoch, and whole runs' bests.

They go to each of the trainer's loggers under the same names, at no wait for the device but one
an epoch.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from pyclassify.tracking.logger import find_run_logger
from pyclassify.tracking.run import warn_on_error


class RunMetrics(Callback):
    """Log, by epoch and at its last step:

    - `epoch_seconds`: from the epoch's start to its end, validation included;
    - `images_per_second`: training images of all processes, validation's time left out;
    - `learning_rate`: of the first group of parameters, as the epoch began.

    And at step 0, so that `mlflow ui` draws them as bars: `parameters`, how many there are;
    `best_val_accuracy`; and `wall_seconds`, since this callback was made.

    Of a training that was stopped and goes on, the seconds are those of all attempts, as far as
    they were kept.
    """

    def __init__(self) -> None:
        self._made, self._before, self.restores = time.monotonic(), 0.0, False
        self._best: float | None = None
        self._counted = False
        self._images, self._validating = 0, 0.0
        self._rate: float | None = None
        self._started = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_val_accuracy": self._best,
            "wall_seconds": self._seconds(),
            "epoch": {
                "seconds": time.perf_counter() - self._started,
                "images": self._images,
                "validating": self._validating,
                "learning_rate": self._rate,
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self.restores:  # a test loads the best checkpoint, which is older
            return
        self._best = state_dict["best_val_accuracy"]
        self._before = state_dict.get("wall_seconds", 0.0)
        if epoch := state_dict.get("epoch"):
            self._started = time.perf_counter() - epoch["seconds"]
            self._images, self._validating = epoch["images"], epoch["validating"]
            self._rate = epoch["learning_rate"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.restores = stage == "fit"
        if not self._counted:  # before a strategy shares them out
            count = warn_on_error("the number of parameters", count_parameters, pl_module)
            _log_metrics(trainer, {"parameters": count}, step=0)
            self._counted = True
            if (logger := find_run_logger(trainer)) is not None:
                devices = getattr(trainer.strategy, "parallel_devices", None) or []
                devices = devices or [trainer.strategy.root_device]
                logger.watch([each.index or 0 for each in devices if each.type == "cuda"])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images, self._validating = 0, 0.0
        groups = trainer.optimizers[0].param_groups if trainer.optimizers else [{}]
        self._rate = groups[0].get("lr")
        self._started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._images += count_images(batch)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _wait(trainer)
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:  # before the first epoch
            return
        accuracy = trainer.callback_metrics.get("val_accuracy")
        if accuracy is not None and not accuracy.isnan():
            self._best = max(float(accuracy), self._best or 0.0)  # on the host by now
        self._validating += time.perf_counter() - self._paused

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _wait(trainer)
        seconds = time.perf_counter() - self._started
        found = {
            "epoch_seconds": round(seconds, 3),
            "images_per_second": round(
                trainer.world_size * self._images / max(seconds - self._validating, 1e-9), 1
            ),
            "learning_rate": self._rate,
        }
        if not self._images:
            del found["images_per_second"]
        # The step that Lightning gives to the epoch's other metrics.
        _log_metrics(trainer, found, step=trainer.fit_loop.epoch_loop._batches_that_stepped - 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _log_metrics(trainer, {"best_val_accuracy": self._best}, step=0)
        if not getattr(trainer, "tests_after_fit", False):
            self._log_wall_seconds(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_wall_seconds(trainer)

    def _log_wall_seconds(self, trainer: Trainer) -> None:
        _log_metrics(trainer, {"wall_seconds": round(self._seconds(), 3)}, step=0)

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._made


def _log_metrics(trainer: Trainer, metrics: Mapping[str, Any], step: int) -> None:
    """Log metrics that are not None to each logger."""
    known = {name: float(value) for name, value in metrics.items() if value is not None}
    for logger in trainer.loggers if known else ():
        logger.log_metrics(known, step)


def count_parameters(module: torch.nn.Module) -> int:
    """How many numbers a module has to learn or to keep as they are, buffers aside."""
    return sum(each.numel() for each in module.parameters())


def count_images(batch: Any) -> int:
    """The length of the first tensor in a batch, 0 where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(batch, tuple | list | Mapping):
        return next((count for part in parts if (count := count_images(part))), 0)
    return 0


def _wait(trainer: Trainer) -> None:
    """Let the device finish what it was given, so that its time is counted where it belongs."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
