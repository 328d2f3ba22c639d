"""The table of predictions."""

import pytest

from pyclassify.tracking.prediction_table import list_class_names


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
