"""What the network said of each test image, gathered over all processes and kept with the run."""

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

from pyclassify.data.loaders import count_real
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.prediction_table import TABLE, Predictions, class_names, log_table
from pyclassify.tracking.run import attempt
from pyclassify.training.distributed import gather


class KeepPredictions(Callback):
    """Log what a test predicted: `test_ece`, the table predictions.json, and pictures of it.

    For any module whose test step returns {"logits": float [batch, num_classes]} of a batch
    (images, labels); of another module, or of several test loaders, nothing is kept.

    Attributes:
        kept: The predictions of the last test, of all processes, if there are any.
        pictures: Those of them that are in the run, by name: PNG.
    """

    kept: Predictions | None = None
    pictures: Mapping[str, bytes] = MappingProxyType({})

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._seen = self._num_classes = 0
        self.kept, self.pictures = None, {}
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
        real = count_real(self._loaders[0], batch_idx, len(labels))
        places = getattr(batch, "places", None)
        if places is None:  # as Lightning's sampler deals them out
            turn = torch.arange(self._seen, self._seen + len(labels), device=labels.device)
            places = turn * trainer.world_size + trainer.global_rank
        probability, predicted = logits[:real].float().softmax(dim=1).max(dim=1)
        # They stay on the device: to fetch them now would wait for all that runs there.
        self._parts.append((places[:real], labels[:real], predicted, probability))
        self._seen, self._num_classes = self._seen + len(labels), logits.shape[1]

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = [torch.cat(column).cpu() for column in zip(*self._parts, strict=True)]
        self._parts = []
        together = gather(mine) if trainer.world_size > 1 else [mine]
        if not any(together):
            return
        places, labels, predicted, probability = map(torch.cat, zip(*together, strict=True))
        order = places.argsort()
        self.kept = Predictions(
            places[order], labels[order], predicted[order], probability[order], self._num_classes
        )
        error = attempt("test_ece", self.kept.calibration_error)
        if error is not None:
            pl_module.log("test_ece", error, sync_dist=True)  # the same in each process

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger, kept = find_run_logger(trainer), self.kept
        if not trainer.is_global_zero or logger is None or kept is None:
            return
        names = class_names(getattr(trainer, "datamodule", None), kept.num_classes)
        attempt(TABLE, log_table, logger, kept, names)
        attempt("the pictures", self._log_pictures, logger, kept, names)

    def _log_pictures(self, logger: RunLogger, kept: Predictions, names: list[str]) -> None:
        from pyclassify.tracking import figures

        loader = self._loaders[0]
        drawn: dict[str, Callable[[], Any]] = {
            "confusion_matrix.png": lambda: figures.confusion_matrix(kept, names),
            "class_accuracy.png": lambda: figures.class_accuracy(kept, names),
        }
        if _in_order(loader):
            drawn["confident_mistakes.png"] = lambda: figures.confident_mistakes(
                kept, names, loader.dataset
            )
        made = {name: attempt(name, _log_picture, logger, name, drawn[name]) for name in drawn}
        self.pictures = {name: picture for name, picture in made.items() if picture is not None}


def _log_picture(logger: RunLogger, name: str, draw: Callable[[], Any]) -> bytes:
    from pyclassify.tracking import figures

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        figures.save(draw(), path)
        logger.experiment.log_artifact(logger.run_id, str(path))
        return path.read_bytes()


def _is_classified(logits: Any, batch: Any) -> bool:
    """Whether these are scores of a batch (images, labels)."""
    if not (isinstance(logits, Tensor) and isinstance(batch, tuple | list) and len(batch) == 2):
        return False
    labels = batch[1]
    return logits.ndim == 2 and isinstance(labels, Tensor) and labels.ndim == 1


def _in_order(loader: Any) -> bool:
    """Whether a loader walks through its set from first to last, and the set can be indexed."""
    sampler = getattr(loader, "sampler", None)
    shared_in_order = isinstance(sampler, DistributedSampler) and not sampler.shuffle
    return (shared_in_order or isinstance(sampler, SequentialSampler)) and hasattr(
        loader.dataset, "__getitem__"
    )
