"""The table of a run's test predictions, predictions.json, with one row for each test image.

The columns are `index` (of the image in the test set), `label` and `predicted` (class names), and
`probability` (of the predicted class). `mlflow ui` shows the table and compares it across runs.
This module does not import torch, so that `pyclassify compare` does not need it.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Run

from pyclassify.spool.server import open_artifacts

PREDICTIONS_FILE = "predictions.json"

# By the index of a test image: the name of its label, and whether the prediction is correct.
PredictionsByIndex = dict[Any, tuple[str, bool]]


def find_test_data(run: Run) -> DatasetInput | None:
    """Find the last test data set that a run logged; None without one."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    tested = [data for data in inputs if any(tag.value == "test" for tag in data.tags)]
    return tested[-1] if tested else None


@dataclass
class Predictions:
    """Predictions of all test images, in the order of the test set.

    Attributes:
        indices: The indices of the images in the test set, int64 [n].
        labels: The true classes, int64 [n].
        predicted: The predicted classes, int64 [n].
        probabilities: The probabilities of the predicted classes, from 0 to 1, float32 [n].
        num_classes: The number of classes.

    Example:
        Two images of class 1, of which the second is classified correctly:

        >>> import numpy as np
        >>> from pyclassify.tracking.prediction_table import Predictions
        >>> predictions = Predictions(
        ...     indices=np.array([0, 1]),
        ...     labels=np.array([1, 1]),
        ...     predicted=np.array([0, 1]),
        ...     probabilities=np.array([0.6, 0.9], dtype=np.float32),
        ...     num_classes=2,
        ... )
        >>> float(predictions.correct.mean())
        0.5
    """

    indices: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float32]
    num_classes: int

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether each prediction is the label, bool [n]."""
        return self.predicted == self.labels


def log_predictions(
    client: MlflowClient, run_id: str, predictions: Predictions, class_names: Sequence[str]
) -> None:
    """Log predictions as the artifact predictions.json of a run.

    Args:
        client: The client of the run's store.
        run_id: The run.
        predictions: The predictions.
        class_names: The names of the classes, by label.
    """
    names = np.array(class_names, dtype=object)
    columns = {
        "index": predictions.indices,
        "label": names[predictions.labels],
        "predicted": names[predictions.predicted],
        "probability": predictions.probabilities.astype(np.float64).round(6),
    }
    client.log_table(run_id, columns, PREDICTIONS_FILE)


def read_predictions(run: Run, client: MlflowClient | None = None) -> PredictionsByIndex | None:
    """Read a run's table of predictions.

    Args:
        run: The run.
        client: The client of the run's store; by default the store of MLFLOW_TRACKING_URI.

    Returns:
        By image index, the label and whether the prediction is correct; None without a table.

    Raises:
        ValueError: The file is not a table of predictions, has no rows, or has an image twice.
    """
    files = open_artifacts(client or MlflowClient(), run.info.artifact_uri)
    if PREDICTIONS_FILE not in [file.path for file in files.list_artifacts()]:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = files.download_artifacts(PREDICTIONS_FILE, folder)
        text = Path(path).read_text(encoding="utf-8")
    return _parse_table(text)


def _parse_table(text: str) -> PredictionsByIndex:
    try:
        table = json.loads(text)
        columns = [table["columns"].index(name) for name in ("index", "label", "predicted")]
        rows = [[row[column] for column in columns] for row in table["data"]]
        # Labels are names or numbers.
        predictions = {
            index: (str(label), str(label) == str(predicted)) for index, label, predicted in rows
        }
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError("not a table with the columns index, label and predicted") from error
    if not rows:
        raise ValueError("the table has no rows")
    if len(predictions) < len(rows):
        duplicate, _ = Counter(index for index, *_ in rows).most_common(1)[0]
        raise ValueError(f"the table has image {duplicate} more than once")
    return predictions


def list_class_names(datamodule: Any, num_classes: int) -> list[str]:
    """List the names in the data module's `classes`; numbers if it has not `num_classes` names."""
    names = getattr(datamodule, "classes", None)
    if isinstance(names, Sequence) and len(names) == num_classes:
        return [str(name) for name in names]
    return [str(number) for number in range(num_classes)]
