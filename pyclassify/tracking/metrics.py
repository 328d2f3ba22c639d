"""Metrics of any training: speed and learning rate of each epoch, and totals of the run.

All loggers of the trainer get them under the same names. The device is synchronized only once per
epoch and once per validation.
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
    """Log the speed and the learning rate of each epoch, and totals of the run.

    At the last step of each epoch:

    - `epoch_seconds`: the duration of the epoch in seconds, including validation;
    - `images_per_second`: the training images of all processes per second, excluding validation;
    - `learning_rate`: the learning rate of the first parameter group at the start of the epoch.

    At step 0, so that `mlflow ui` draws bars:

    - `parameters`: the number of parameters;
    - `best_val_accuracy`: the highest validation accuracy of all epochs, from 0 to 1;
    - `wall_seconds`: the seconds since this callback was created.

    After a resume, both durations include the earlier attempts, up to their last checkpoint. The
    metrics go to all loggers of the trainer. A `RunLogger` also starts its system metrics.

    Example:
        >>> from pyclassify import RunLogger, Trainer
        >>> from pyclassify.tracking.metrics import RunMetrics
        >>> trainer = Trainer(max_epochs=1, callbacks=[RunMetrics()], logger=RunLogger())
    """

    def __init__(self) -> None:
        self._created = time.monotonic()
        self._earlier_seconds = 0.0  # of earlier attempts
        self._best_accuracy: float | None = None
        self._is_set_up = False
        self._is_fitting = False
        self._epoch_started = time.perf_counter()
        self._validation_seconds = 0.0  # of the epoch
        self._images = 0  # of the epoch
        self._learning_rate: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_val_accuracy": self._best_accuracy,
            "wall_seconds": self._seconds(),
            "epoch": {
                "seconds": time.perf_counter() - self._epoch_started,
                "images": self._images,
                "validating": self._validation_seconds,
                "learning_rate": self._learning_rate,
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._is_fitting:  # a test loads the best checkpoint, which may be an older one
            return
        self._best_accuracy = state_dict["best_val_accuracy"]
        self._earlier_seconds = state_dict.get("wall_seconds", 0.0)
        if epoch := state_dict.get("epoch"):
            self._epoch_started = time.perf_counter() - epoch["seconds"]
            self._validation_seconds = epoch["validating"]
            self._images = epoch["images"]
            self._learning_rate = epoch["learning_rate"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._is_fitting = stage == "fit"
        if not self._is_set_up:  # before a strategy shards the parameters
            self._is_set_up = True
            count = warn_on_error("count the parameters", _count_parameters, pl_module)
            _log_metrics(trainer, {"parameters": count}, step=0)
            if (logger := find_run_logger(trainer)) is not None:
                devices = getattr(trainer.strategy, "parallel_devices", None) or []
                devices = devices or [trainer.strategy.root_device]
                gpus = [device.index or 0 for device in devices if device.type == "cuda"]
                logger.start_system_metrics(gpus)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._images, self._validation_seconds = 0, 0.0
        groups = trainer.optimizers[0].param_groups if trainer.optimizers else [{}]
        self._learning_rate = groups[0].get("lr")
        self._epoch_started = time.perf_counter()

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
        _synchronize(trainer)
        self._validation_started = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:  # before the first epoch
            return
        accuracy = trainer.callback_metrics.get("val_accuracy")
        if accuracy is not None and not accuracy.isnan():
            # No wait for the device: validation has ended.
            self._best_accuracy = max(float(accuracy), self._best_accuracy or 0.0)
        self._validation_seconds += time.perf_counter() - self._validation_started

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _synchronize(trainer)
        seconds = time.perf_counter() - self._epoch_started
        speed = None
        if self._images:
            training_seconds = max(seconds - self._validation_seconds, 1e-9)
            speed = round(trainer.world_size * self._images / training_seconds, 1)
        metrics = {
            "epoch_seconds": round(seconds, 3),
            "images_per_second": speed,
            "learning_rate": self._learning_rate,
        }
        # Lightning logs the other metrics of the epoch at this step.
        _log_metrics(trainer, metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped - 1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _log_metrics(trainer, {"best_val_accuracy": self._best_accuracy}, step=0)
        if not getattr(trainer, "tests_after_fit", False):
            self._log_wall_seconds(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log_wall_seconds(trainer)

    def _log_wall_seconds(self, trainer: Trainer) -> None:
        _log_metrics(trainer, {"wall_seconds": round(self._seconds(), 3)}, step=0)

    def _seconds(self) -> float:
        return self._earlier_seconds + time.monotonic() - self._created


def _log_metrics(trainer: Trainer, metrics: Mapping[str, Any], step: int) -> None:
    """Log the metrics that are not None to each logger."""
    known = {name: float(value) for name, value in metrics.items() if value is not None}
    for logger in trainer.loggers if known else ():
        logger.log_metrics(known, step)


def _count_parameters(module: torch.nn.Module) -> int:
    """Count the values of all parameters, including frozen ones, excluding buffers."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_images(batch: Any) -> int:
    """Count the images of a batch: the length of its first tensor, or 0 without a tensor."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else 0
    items = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(batch, tuple | list | Mapping):
        return next((count for item in items if (count := count_images(item))), 0)
    return 0


def _synchronize(trainer: Trainer) -> None:
    """Wait for the device's queued kernels, so that their time counts in this phase."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
