"""What a run answered for each test image, and whether two runs had the same images."""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from pyclassify.spool.server import open_files
from pyclassify.tracking.logger import RunLogger

PREDICTIONS = "predictions.json"
TABLE = "predictions.json"


Answers = dict[Any, tuple[str, bool]]


"""A test image's index: its label, and whether the run has it right."""


def read_answers(run: Run, client: MlflowClient | None = None) -> Answers | None:
    """Read a run's table of predictions, with a row for each test image.

    Args:
        run: The run.
        client: Its store; the one of the environment without it.

    Returns:
        None where the run has no such table.

    Raises:
        ValueError: It is no such table, or holds an image twice.
    """
    files = open_files(client or MlflowClient(), run.info.artifact_uri)
    if PREDICTIONS not in [each.path for each in files.list_artifacts()]:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = files.download_artifacts(PREDICTIONS, folder)
        text = Path(path).read_text(encoding="utf-8")
    try:
        table = json.loads(text)
        columns = [table["columns"].index(name) for name in ("index", "label", "predicted")]
        rows = [[row[column] for column in columns] for row in table["data"]]
        # Labels are names or numbers.
        answers = {index: (str(label), str(label) == str(guess)) for index, label, guess in rows}
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError("it is no table of index, label and predicted") from error
    if not rows:
        raise ValueError("it holds no image")
    if len(answers) < len(rows):
        twice, _ = Counter(index for index, *_ in rows).most_common(1)[0]
        raise ValueError(f"it holds image {twice} more than once")
    return answers


@dataclass
class Predictions:
    """One row for each test image, on the host, in the order of the test set.

    Attributes:
        places: The image's place in its set, int64 [n].
        labels: The true class, int64 [n].
        predicted: The most probable class, int64 [n].
        probability: Its probability, float32 [n].
        num_classes: How many classes there are.
    """

    places: Tensor
    labels: Tensor
    predicted: Tensor
    probability: Tensor
    num_classes: int

    def calibration_error(self) -> Tensor:
        """The expected calibration error [], over 15 bins (Guo et al., arXiv:1706.04599)."""
        # Only the highest probability counts, and whether it is right: two classes can say both.
        scores = torch.stack([self.probability, torch.zeros_like(self.probability)], dim=1)
        wrong = (self.predicted != self.labels).long()
        return multiclass_calibration_error(scores, wrong, num_classes=2, validate_args=False)


def log_table(logger: RunLogger, kept: Predictions, names: Sequence[str]) -> None:
    """Log predictions as a table that `mlflow ui` shows and compares across runs."""
    import numpy as np

    words = np.array(names, dtype=object)
    columns = {
        "index": kept.places.numpy(),
        "label": words[kept.labels.numpy()],
        "predicted": words[kept.predicted.numpy()],
        "probability": kept.probability.double().numpy().round(6),
    }
    logger.experiment.log_table(logger.run_id, columns, TABLE)


def class_names(data: Any, num_classes: int) -> list[str]:
    """Name the classes: as the data module's `classes` do, else by their numbers."""
    given = getattr(data, "classes", None)
    if isinstance(given, Sequence) and len(given) == num_classes:
        return [str(name) for name in given]
    return [str(number) for number in range(num_classes)]
