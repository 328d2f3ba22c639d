"""Log the predictions of a test: the calibration error, the table of predictions and figures."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import SequentialSampler
from torch.utils.data.distributed import DistributedSampler
from torchmetrics.functional.classification import multiclass_calibration_error

from pyclassify.data.loaders import count_unpadded
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.prediction_table import (
    PREDICTIONS_FILE,
    Predictions,
    list_class_names,
    log_predictions,
)
from pyclassify.tracking.run import warn_on_error
from pyclassify.training.distributed import gather_tensors


class PredictionLogger(Callback):
    """Log the predictions of a test: `test_ece`, the table predictions.json and figures.

    - `test_ece`: the expected calibration error over 15 bins, from 0 to 1 (arXiv:1706.04599);
    - predictions.json: index, label, predicted class and probability of each test image;
    - confusion_matrix.png and class_accuracy.png;
    - confident_errors.png, if the test loader reads the test set in order.

    The test step of the module must return {"logits": float [batch, num_classes]} for a batch
    (images, labels: int [batch]), and there must be one test loader; otherwise nothing is logged.
    The metric goes to all loggers, the files to the `RunLogger`.

    Attributes:
        predictions: The predictions of the last test, from all processes; None before a test.
        figures: The logged figures, PNG by file name.

    Example:
        >>> from pyclassify import AlexNetBN, Classifier, SyntheticDataModule, Trainer
        >>> from pyclassify.tracking.predictions import PredictionLogger
        >>> callback = PredictionLogger()
        >>> trainer = Trainer(callbacks=[callback], logger=False, accelerator="cpu")
        >>> data = SyntheticDataModule(test_size=16)
        >>> results = trainer.test(Classifier(AlexNetBN), data, verbose=False)
        >>> callback.predictions.labels.shape
        (16,)
    """

    predictions: Predictions | None = None
    figures: Mapping[str, bytes] = MappingProxyType({})

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._seen = self._num_classes = 0
        self.predictions, self.figures = None, {}
        self._loaders = CombinedLoader(trainer.test_dataloaders).flattened

    @torch.no_grad()
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
        if logits is None or len(self._loaders) != 1 or not _is_classified(logits, batch):
            return
        labels = batch[1]
        real = count_unpadded(self._loaders[0], batch_idx, len(labels))
        indices = getattr(batch, "indices", None)
        if indices is None:  # in the order of Lightning's DistributedSampler
            position = torch.arange(self._seen, self._seen + len(labels), device=labels.device)
            indices = position * trainer.world_size + trainer.global_rank
        probabilities, predicted = logits[:real].float().softmax(dim=1).max(dim=1)
        # Keep the tensors on the device: a copy to the host would wait for all queued kernels.
        self._batches.append((indices[:real], labels[:real], predicted, probabilities))
        self._seen += len(labels)
        self._num_classes = logits.shape[1]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        own = [torch.cat(column).cpu() for column in zip(*self._batches, strict=True)]
        self._batches = []
        gathered = gather_tensors(own) if trainer.world_size > 1 else [own]
        if not any(gathered):
            return
        columns = [torch.cat(column) for column in zip(*gathered, strict=True)]
        order = columns[0].argsort()
        indices, labels, predicted, probabilities = (c[order].numpy() for c in columns)
        self.predictions = Predictions(
            indices, labels, predicted, probabilities, num_classes=self._num_classes
        )
        error = warn_on_error("compute test_ece", _compute_calibration_error, self.predictions)
        if error is not None:
            pl_module.log("test_ece", error, sync_dist=True)  # the same value in each process

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger, predictions = find_run_logger(trainer), self.predictions
        if not trainer.is_global_zero or logger is None or predictions is None:
            return
        names = list_class_names(getattr(trainer, "datamodule", None), predictions.num_classes)
        client, run_id = logger.experiment, str(logger.run_id)
        action, args = f"log {PREDICTIONS_FILE}", (client, run_id, predictions, names)
        warn_on_error(action, log_predictions, *args, is_required=True)
        warn_on_error("plot the figures", self._log_figures, logger, predictions, names)

    def _log_figures(self, logger: RunLogger, predictions: Predictions, names: list[str]) -> None:
        from pyclassify.tracking import figures

        loader = self._loaders[0]
        plots: dict[str, Callable[[], Any]] = {
            "confusion_matrix.png": lambda: figures.plot_confusion_matrix(predictions, names),
            "class_accuracy.png": lambda: figures.plot_class_accuracy(predictions, names),
        }
        if _is_sequential(loader):
            plots["confident_errors.png"] = lambda: figures.plot_confident_errors(
                predictions, names, loader.dataset
            )
        logged = {
            name: warn_on_error(f"plot {name}", _log_figure, logger, name, plots[name])
            for name in plots
        }
        self.figures = {name: png for name, png in logged.items() if png is not None}


def _compute_calibration_error(predictions: Predictions) -> Tensor:
    """Compute the expected calibration error [] over 15 bins (Guo et al., arXiv:1706.04599)."""
    # The error depends only on the top probability and its correctness: two classes are enough.
    probabilities = torch.from_numpy(predictions.probabilities)
    scores = torch.stack([probabilities, torch.zeros_like(probabilities)], dim=1)
    wrong = torch.from_numpy(~predictions.correct).long()
    return multiclass_calibration_error(scores, wrong, num_classes=2, validate_args=False)


def _log_figure(logger: RunLogger, name: str, plot: Callable[[], Any]) -> bytes:
    from pyclassify.tracking import figures

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        figures.save_figure(plot(), path)
        logger.experiment.log_artifact(logger.run_id, str(path))
        return path.read_bytes()


def _is_classified(logits: Any, batch: Any) -> bool:
    """Whether these are logits [batch, num_classes] of a batch (images, labels [batch])."""
    if not (isinstance(logits, Tensor) and isinstance(batch, tuple | list) and len(batch) == 2):
        return False
    labels = batch[1]
    return logits.ndim == 2 and isinstance(labels, Tensor) and labels.ndim == 1


def _is_sequential(loader: Any) -> bool:
    """Whether a loader reads its dataset in order, and the dataset has indices."""
    sampler = getattr(loader, "sampler", None)
    ordered_shards = isinstance(sampler, DistributedSampler) and not sampler.shuffle
    return (ordered_shards or isinstance(sampler, SequentialSampler)) and hasattr(
        loader.dataset, "__getitem__"
    )
