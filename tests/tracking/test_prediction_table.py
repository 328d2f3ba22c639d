"""The table of predictions: logged, read, and without torch."""

import mlflow
import numpy as np
import pytest

from pyclassify.tracking.prediction_table import (
    PREDICTIONS_FILE,
    Predictions,
    list_class_names,
    log_predictions,
    read_predictions,
)
from tests.support import processes
from tests.support.stores import experiment_id


@pytest.fixture
def run_id(store):
    return store.create_run(experiment_id(store)).info.run_id


def test_read_predictions_has_label_and_correctness_by_index(store, run_id):
    predictions = Predictions(
        indices=np.array([3, 5]),
        labels=np.array([1, 1]),
        predicted=np.array([0, 1]),
        probabilities=np.array([0.6, 0.9], dtype=np.float32),
        num_classes=2,
    )

    log_predictions(store, run_id, predictions, ["cat", "dog"])

    assert read_predictions(store.get_run(run_id), store) == {3: ("dog", False), 5: ("dog", True)}


def test_read_predictions_without_a_table_is_none(store, run_id):
    assert read_predictions(store.get_run(run_id), store) is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"columns": ["index"], "data": []}, "not a table .* index, label and predicted"),
        ({"columns": ["index", "label", "predicted"], "data": []}, "no rows"),
        (
            {"columns": ["index", "label", "predicted"], "data": [[7, 0, 0], [7, 0, 1]]},
            "image 7 more than once",
        ),
    ],
)
def test_read_predictions_of_another_table_raises(table, message, store, run_id):
    store.log_dict(run_id, table, PREDICTIONS_FILE)

    with pytest.raises(ValueError, match=message):
        read_predictions(mlflow.get_run(run_id), store)


def test_import_of_prediction_table_loads_no_torch():
    code = "import sys, pyclassify.tracking.prediction_table; print('torch' in sys.modules)"
    process = processes.run("-c", code, cwd=processes.ROOT, fresh=True, check=True)

    assert process.stdout == "False\n"


@pytest.mark.parametrize(
    ("classes", "expected"),
    [(["cat", "dog"], ["cat", "dog"]), (["cat"], ["0", "1"]), (None, ["0", "1"])],
)
def test_class_names_that_do_not_fit_are_numbers(classes, expected):
    class Data:
        pass

    data = Data()
    data.classes = classes

    assert list_class_names(data, num_classes=2) == expected
