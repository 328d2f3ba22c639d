"""Write predictions to a table: the file, predicted class and probability of each image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from pyclassify.data.datasets import UNREADABLE, ImageDataset
from pyclassify.data.images import UnreadableImageError, read_rgb
from pyclassify.training.distributed import gather_tensors
from pyclassify.utils.files import open_atomically
from pyclassify.utils.options import UsageError
from pyclassify.utils.text import join_some

_MAX_NAMED = 10  # files that do not decode, in the warning
_SUFFIXES = (".parquet", ".csv")


class PredictionWriter(BasePredictionWriter):
    """Write predictions to a table, with one row an image in the order of the data set.

    The columns are `file` (relative to the folder; `index` for images in memory), `label` (the name
    of the predicted class) and `probability` (float, 0 to 1). An image that can't be decoded has a
    row with an empty label and probability. The file is written at the end of `predict`, by rank
    zero. `predict_step` must return probabilities, float [batch, num_classes], of one data loader.

    Args:
        path: The new file, which ends in .parquet or .csv.

    Attributes:
        count: The number of images in the table, 0 until it is written.
        unreadable: The number of these images that can't be decoded.

    Raises:
        MisconfigurationException: The file has another ending or exists, or its folder is missing.

    Example:
        >>> from pyclassify import AlexNetBN, Classifier, ImageFolderDataModule, Trainer
        >>> from pyclassify.training.prediction_writer import PredictionWriter
        >>> trainer = Trainer(callbacks=[PredictionWriter("predictions.csv")])
        >>> network, data = Classifier(AlexNetBN, num_classes=2), ImageFolderDataModule("photos")
        >>> trainer.predict(network, datamodule=data, output=None)
        >>> print(open("predictions.csv").readline().strip())
        "file","label","probability"
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__("batch")
        self.path = check_output(path)
        self.count = self.unreadable = self._seen = 0
        self._num_classes = 0
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Store a label and a probability for each image of a batch, on the device."""
        if not (isinstance(prediction, Tensor) and prediction.ndim == 2 and dataloader_idx == 0):
            raise MisconfigurationException(
                f"{type(pl_module).__name__}.predict_step does not return probabilities [batch, "
                "num_classes] of one data loader, so no table can be written; give --output=null, "
                "and add your own BasePredictionWriter to trainer.callbacks"
            )
        if not batch_indices:  # the data set has none: count as DistributedSampler deals
            rank_indices = range(self._seen, self._seen + len(prediction))
            batch_indices = [n * trainer.world_size + trainer.global_rank for n in rank_indices]
        probability, label = prediction.float().max(dim=1)
        if getattr(_get_dataset(trainer), "has_unreadable", False):
            label = torch.where(batch[1] == UNREADABLE, UNREADABLE, label)
        self._parts.append((torch.tensor(batch_indices), label, probability))
        self._seen, self._num_classes = self._seen + len(prediction), prediction.shape[1]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Gather the predictions of all processes and write them; Lightning skips it on errors."""
        columns = [torch.cat(column).cpu() for column in zip(*self._parts, strict=True)]
        self._parts = []
        gathered = gather_tensors(columns) if trainer.world_size > 1 else [columns]
        if not trainer.is_global_zero or not any(gathered):
            return
        indices, labels, probability = map(torch.cat, zip(*gathered, strict=True))
        order = indices.argsort()
        rows = indices[order], labels[order], probability[order]
        names = _list_class_names(trainer, pl_module, self._num_classes)
        self._write(_get_dataset(trainer), names, *rows)

    def _write(
        self,
        dataset: Any,
        names: list[str],
        indices: Tensor,
        labels: Tensor,
        probability: Tensor,
    ) -> None:
        import pyarrow as pa

        missing = (labels == UNREADABLE).numpy()
        label = pa.DictionaryArray.from_arrays(pa.array(labels.numpy(), mask=missing), names)
        column, keys = "index", pa.array(indices.numpy())
        files = dataset.names() if isinstance(dataset, ImageDataset) else None
        if files is not None:
            column, keys = "file", pa.array(files).take(keys)
        if getattr(dataset, "has_unreadable", False):
            unreadable = [dataset.files[n] for n in indices[labels == UNREADABLE]]
            _warn_unreadable(unreadable, len(indices))
        table = pa.table(
            {
                column: keys,
                "label": label.cast(pa.string()),
                "probability": pa.array(probability.numpy(), mask=missing),
            }
        )
        _write_table(table, self.path)
        self.count, self.unreadable = len(indices), int(missing.sum())


def _write_table(table: Any, path: Path) -> None:
    """Write an Arrow table atomically as Parquet or CSV.

    Raises:
        OSError: The file can't be written.
    """
    from pyarrow import csv, parquet

    with open_atomically(path) as file:
        (csv.write_csv if path.suffix == ".csv" else parquet.write_table)(table, file)


def _get_dataset(trainer: Trainer) -> Any:
    loaders = CombinedLoader(trainer.predict_dataloaders).flattened
    return getattr(loaders[0], "dataset", None)


def _list_class_names(trainer: Trainer, network: LightningModule, num_classes: int) -> list[str]:
    """List the names of the classes: the network's, or its data module's."""
    for source in (network, getattr(trainer, "datamodule", None)):
        found = getattr(source, "classes", None)
        if isinstance(found, Sequence) and len(found) == num_classes:
            return [str(name) for name in found]
    rank_zero_warn("the model has no class names, so the labels in the table are numbers")
    return [str(number) for number in range(num_classes)]


def _warn_unreadable(files: list[str], total: int) -> None:
    if files:
        rank_zero_warn(
            f"{len(files)} of {total} files can't be decoded as images and have no label in the "
            f"table: {join_some(files, _MAX_NAMED)}"
        )
    for file in files[:_MAX_NAMED]:  # decode again for the reason, which batches do not contain
        try:
            read_rgb(file)
        except UnreadableImageError as error:
            rank_zero_warn(str(error))


def check_output(given: str | Path) -> Path:
    """Check the path of a table of predictions, before anything is computed.

    Args:
        given: The path, which may begin with ~.

    Returns:
        The path, with ~ expanded.

    Raises:
        UsageError: The ending of the file's name is unknown.
        MisconfigurationException: The folder is missing, or the file exists.
    """
    path = Path(given).expanduser()
    if path.suffix not in _SUFFIXES:
        raise UsageError(
            f"invalid output: {given} (expected a file that ends in {' or '.join(_SUFFIXES)})"
        )
    if not path.parent.is_dir():
        raise MisconfigurationException(
            f"output is {given}, but the folder {path.parent} does not exist; create it first"
        )
    if path.exists():
        raise MisconfigurationException(
            f"output is {given}, which exists; give another file by --output, or remove this one"
        )
    return path
