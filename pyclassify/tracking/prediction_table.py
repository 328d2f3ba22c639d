"""What a run answered for each test image, and whether two runs had the same images."""

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from pyclassify.spool.files import open_files

PREDICTIONS = "predictions.json"

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


def how_images_differ(
    runs: tuple[Run | None, Run | None], answers: tuple[Answers, Answers]
) -> str | None:
    """Say in what two runs' test images differ: number, indices, labels or content.

    Args:
        runs: The runs; None for answers that are no run's, of which the content can't be told.
        answers: What each one answered.

    Returns:
        None where they don't, as far as the runs tell.
    """
    first, second = answers
    if len(first) != len(second):
        return f"{len(second):,} images, not {len(first):,}"
    if first.keys() != second.keys():
        return "other indices"
    if any(first[index][0] != second[index][0] for index in first):
        return "other labels"
    digests = [list_test_digests(run) if run else set() for run in runs]
    if all(digests) and digests[0] != digests[1]:
        return "other content, by the data's digest"
    return None


def list_test_digests(run: Run) -> set[str]:
    """The digests of a run's test images, or else of all its data; empty where it kept none."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    contexts = [
        "".join(tag.value for tag in each.tags if tag.key == "mlflow.data.context")
        for each in inputs
    ]
    digests = [each.dataset.digest for each in inputs]
    test = {d for d, context in zip(digests, contexts, strict=True) if context.startswith("test")}
    return test or set(digests)
