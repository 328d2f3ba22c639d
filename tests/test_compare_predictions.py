"""What `pyclassify compare` says of what two runs predicted, for the same images or for others."""

import json

import mlflow
import pytest

from tests.support.recorded import log_predictions, record


def test_significant_difference_is_said_to_be_one(cli):
    first, second = record(answers="y" * 30 + "n" * 10), record(answers="n" * 10 + "y" * 30)
    third = record(answers="n" * 40)

    assert "p = 1): neither is shown to be better" in said(cli(f"compare {first} {second}"))
    assert "would be a surprise (McNemar's" in said(cli(f"compare {first} {third}"))
    assert "): run 1 is better." in said(cli(f"compare {first} {third}"))
    assert "): run 2 is better." in said(cli(f"compare {third} {first}"))


def said(done):
    return " ".join(done.out.split())


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ({"answers": "yny"}, {"answers": "ynyn"}, "4 images, not 3"),
        ({"answers": "yny", "digest": "a"}, {"answers": "yny", "digest": "b"}, "other content, by"),
    ],
)
def test_other_test_images_are_a_warning_and_no_test(one, other, how, cli):
    data = json.loads(cli(f"compare --json {record(**one)} {record(**other)}").out)

    assert data["paired_test"] is None
    (note,) = data["notes"]
    assert note.startswith(f"the test images of run 2 are not those of run 1 ({how}")


@pytest.mark.parametrize(
    ("indices", "labels", "how"),
    [([0, 1, 3], [0, 1, 2], "other indices"), ([0, 1, 2], [0, 1, 1], "other labels")],
)
def test_same_number_of_other_images_is_noticed(indices, labels, how, cli):
    first, second = record(answers="yny"), record()
    log_predictions(second, indices, labels, labels)

    assert f"are not those of run 1 ({how})" in said(cli(f"compare {first} {second}"))


def test_order_of_the_predictions_does_not_matter(cli):
    first, second = record(answers="yny"), record()
    log_predictions(second, [2, 0, 1], [2, 0, 1], [2, 0, 1])

    data = json.loads(cli(f"compare --json {first} {second}").out)
    assert (data["paired_test"]["only_first"], data["paired_test"]["only_second"]) == (0, 1)


def test_predictions_that_lack_or_are_broken_are_notes(cli):
    lacking, broken, twice = record(), record(), record(answers="yn")
    mlflow.MlflowClient().log_text(broken, "[]", "predictions.json")
    log_predictions(twice, [0], [0], [0])  # which appends

    notes = json.loads(cli(f"compare --json {lacking} {broken} {twice}").out)["notes"]

    assert notes == [
        "predictions.json of run 2 can't be read: it is no table of index, label and predicted",
        "predictions.json of run 3 can't be read: it holds image 0 more than once",
        "run 1 has no predictions.json, which shows whether test images are the same",
    ]
