"""What `pyclassify compare` says of what two runs predicted, for the same images or for others."""

import json

import mlflow
import pytest

from tests.support.phrases import mentions
from tests.support.runs import log_predictions, record


def test_significant_difference_is_said_to_be_one(cli):
    first, second = record(answers="y" * 30 + "n" * 10), record(answers="n" * 10 + "y" * 30)
    third = record(answers="n" * 40)

    assert mentions(said(cli(f"compare {first} {second}")), "p = 1)", "neither")
    assert mentions(said(cli(f"compare {first} {third}")), "(McNemar's", "run 1 is better.")
    assert "run 2 is better." in said(cli(f"compare {third} {first}"))


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
    # the form of this message
    assert note.startswith(f"the test images of run 2 are not those of run 1 ({how}")


@pytest.mark.parametrize(
    ("indices", "labels", "how"),
    [([0, 1, 3], [0, 1, 2], "other indices"), ([0, 1, 2], [0, 1, 1], "other labels")],
)
def test_same_number_of_other_images_is_noticed(indices, labels, how, cli):
    first, second = record(answers="yny"), record()
    log_predictions(second, indices, labels, labels)

    assert f"run 1 ({how})" in said(cli(f"compare {first} {second}"))


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

    assert len(notes) == 3
    assert mentions(notes[0], "predictions.json", "run 2", "index, label and predicted")
    assert mentions(notes[1], "predictions.json", "run 3", "image 0 more than once")
    assert mentions(notes[2], "run 1", "no predictions.json")
