"""The callback that puts a run's results into its description."""

import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image

from pyclassify.tracking import description, run
from pyclassify.tracking.attempt import attempt
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.prediction_table import Predictions, class_names
from pyclassify.tracking.predictions import KeepPredictions
from pyclassify.tracking.results import Scores

MATRIX = "confusion_matrix.png"
FOLDER = "description"
MOST_PIXELS = 600  # wider, it pushes the page's right column out of a window of 1280


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
            self._write(description.fail, exception)  # first, as its status ends the delivery
            run.mark("FAILED")

    def _finish(self, trainer: Trainer) -> None:
        if self._logger is None:
            return
        scores, picture = None, None
        for each in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(each, KeepPredictions) and each.kept is not None:
                data = getattr(trainer, "datamodule", None)
                scores = attempt("the accuracy by class", count_by_class, each.kept, data)
                if whole := each.pictures.get(MATRIX):
                    picture = attempt("a preview", _log_preview, self._logger, whole)
        self._write(description.finish, scores, self._epochs, picture or "")

    def _write(self, write: Callable[..., None], *args: Any) -> None:
        if self._logger is not None:
            client, run_id = self._logger.experiment, str(self._logger.run_id)
            attempt("the description", write, client, run_id, *args)


def _log_preview(logger: RunLogger, picture: bytes) -> str:
    """Log a PNG once more, as small as the description needs it, and tell where it is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MATRIX)
        small = Image.open(BytesIO(picture)).convert("RGB")
        small.thumbnail((MOST_PIXELS, MOST_PIXELS), Image.Resampling.LANCZOS)
        small.save(path)
        logger.experiment.log_artifact(logger.run_id, str(path), FOLDER)
    return f"{FOLDER}/{MATRIX}"


def count_by_class(kept: Predictions, data: Any) -> Scores:
    """Count the images of each class of a data module, and those that are recognised."""
    names = class_names(data, kept.num_classes)
    right = kept.labels[kept.predicted == kept.labels]
    total, right = (torch.bincount(each, minlength=len(names)) for each in (kept.labels, right))
    return Scores(names, total.tolist(), right.tolist())
