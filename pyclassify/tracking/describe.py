"""The callback that puts a run's results into its description."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from pyclassify.tracking import description, run
from pyclassify.tracking.attempt import attempt
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.predictions import KeepPredictions, Predictions, class_names


class DescribeRun(Callback):
    """Put the results into the run's description when it ends, or the error that ended it.

    To be called after those callbacks that have results to tell.
    """

    def __init__(self) -> None:
        self._logger: RunLogger | None = None
        self._epochs = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._logger = find_run_logger(trainer) if trainer.is_global_zero else None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epochs = trainer.current_epoch
        if not getattr(trainer, "tests_after_fit", False):
            self._finish(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._finish(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # A run that was stopped has no time left, and no error.
        if self._logger is not None and isinstance(exception, Exception):
            run.mark("FAILED")  # first, since a launcher may end this process any time
            self._write(description.fail, exception)

    def _finish(self, trainer: Trainer) -> None:
        scores = None
        pictures: list[str] = []
        for each in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(each, KeepPredictions) and each.kept is not None:
                names = class_names(getattr(trainer, "datamodule", None), each.kept.num_classes)
                scores = count_by_class(each.kept, names)
                pictures += each.pictures
        self._write(description.finish, scores, self._epochs, pictures)

    def _write(self, write: Callable[..., None], *args: Any) -> None:
        if self._logger is not None:
            client, run_id = self._logger.experiment, str(self._logger.run_id)
            attempt("the description", write, client, run_id, *args)


def count_by_class(kept: Predictions, names: Sequence[str]) -> description.Scores:
    """Count the images of each class, and those that are recognised."""
    right = kept.labels[kept.predicted == kept.labels]
    total, right = (torch.bincount(each, minlength=len(names)) for each in (kept.labels, right))
    return description.Scores(names, total.tolist(), right.tolist())
