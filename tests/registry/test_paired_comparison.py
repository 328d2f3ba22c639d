"""Versions are compared by their predictions for the same images, logged or computed here."""

from pathlib import Path

import mlflow
import pytest

from pyclassify.registry.champion import promote_if_better
from pyclassify.tracking.prediction_table import read_predictions
from tests.support.phrases import mentions
from tests.support.runs import (
    NAME,
    challenger,
    champion,
    log_predictions,
    read_decision,
    record,
    register,
)

FAIR, GOOD = "y" * 20 + "n" * 20, "y" * 30 + "n" * 10
OTHER_LABELS = {"labels": [1] * 40, "indices": range(40)}
OTHER_INDICES = {"labels": [index % 3 for index in range(40)], "indices": range(1, 41)}


@pytest.fixture
def promote_both(registry):
    """Promote a first version and then a second one: the second decision."""

    def promote_both(first, second, **options):
        promote_if_better(registry, NAME, first)
        return promote_if_better(registry, NAME, second, **options)

    return promote_both


def relabelled(indices, labels):
    run_id = record()
    log_predictions(run_id, indices, labels, labels)
    return register(run_id=run_id)


@pytest.mark.parametrize(
    ("first", "second", "how"),
    [
        ({}, {"answers": "yyy"}, "3 images, not 40"),
        (
            {"digest": "a"},
            {"answers": GOOD, "digest": "b"},
            "different content, by the digest of the data",
        ),
        (
            {"tags": {"test_data": "images a"}},
            {"answers": GOOD, "tags": {"test_data": "images b"}},
            "different content, by the tag test_data",
        ),
    ],
)
def test_versions_with_other_images_are_not_compared(first, second, how, promote_both):
    decision = promote_both(register(**{"answers": FAIR, **first}), register(**second))

    assert (champion(), challenger()) == ("1", "2")
    assert decision.text == read_decision("2")["text"]
    assert decision.text == (  # the form of this message
        "alexnet version 1 stays champion: version 2 was not evaluated because its test images "
        f"differ from those of version 1 ({how}); make it champion without a comparison by "
        "`pyclassify promote alexnet 2 --force --reason TEXT`"
    )


@pytest.mark.parametrize("others", [OTHER_LABELS, OTHER_INDICES], ids=["labels", "indices"])
def test_other_images_of_equal_number_are_not_compared(others, promote_both):
    assert "(different " in promote_both(register(FAIR), relabelled(**others)).note


def test_data_of_the_same_name_and_digest_are_the_same(promote_both):
    data = {"digest": "a", "tags": {"test_data": "images a"}}

    assert promote_both(register(FAIR, **data), register(GOOD, **data)).outcome == "promoted"


def test_champion_tested_on_other_images_is_evaluated(registry, promote_both):
    first, second = register("y" * 50, digest="old"), register(GOOD, digest="new")
    answers = read_predictions(mlflow.get_run(record(answers=FAIR)))
    asked = []

    def evaluate(version):
        asked.append(version)
        return answers

    decision = promote_both(first, second, evaluate=evaluate)

    assert (asked, champion()) == ([first], second)
    assert (decision.paired_test.num_correct, decision.paired_test.num_images) == ((20, 30), 40)


def test_challenger_without_predictions_is_evaluated(promote_both):
    answers = read_predictions(mlflow.get_run(record(answers=GOOD)))

    decision = promote_both(register(FAIR), register(), evaluate={"2": answers}.get)

    assert (decision.outcome, decision.accuracy) == ("promoted", 0.75)


def test_predictions_of_wrong_images_are_not_compared(promote_both):
    wrong = read_predictions(mlflow.get_run(record(answers="yn")))

    decision = promote_both(
        register(FAIR, digest="a"), register(GOOD, digest="b"), evaluate=lambda _: wrong
    )

    assert decision.outcome == "not evaluated"
    assert "version 1 (40 images, not 2)" in decision.note


def test_failed_evaluation_is_reported_in_one_line(promote_both):
    def evaluate(version):
        raise RuntimeError(f"no program.pt2\nin {version}")

    decision = promote_both(
        register(FAIR, digest="a"), register(GOOD, digest="b"), evaluate=evaluate
    )

    assert mentions(decision.note, "version 1", "(no program.pt2 in 1)", "`pyclassify promote")
    assert "\n" not in decision.note
    assert champion() == "1"


def test_broken_predictions_are_reported(registry, promote_both):
    run_id = record()
    registry.log_text(run_id, "[]", "predictions.json")

    reason = promote_both(register(FAIR), register(run_id=run_id)).note

    assert mentions(reason, "predictions.json", "version 2", "index")


def test_champion_with_deleted_run_is_compared_by_its_predictions(registry, promote_both):
    first, second = register(FAIR), register(GOOD)
    registry.delete_run(registry.get_model_version(NAME, first).run_id)

    decision = promote_both(first, second)

    assert champion() == second
    assert mentions(decision.text.split("; ")[-1], "run of version 1", "deleted")


def test_champion_without_predictions_stays(registry):
    first, second = register(FAIR), register(GOOD)
    promote_if_better(registry, NAME, first)
    run = registry.get_run(registry.get_model_version(NAME, first).run_id)
    Path(run.info.artifact_uri, "predictions.json").unlink()

    reason = promote_if_better(registry, NAME, second).note

    assert mentions(reason, "version 1", "no predictions.json", "`pyclassify promote alexnet 2")
    assert champion() == first


def test_version_after_deleted_champion_is_compared_with_the_one_before(registry):
    versions = [register(each) for each in (FAIR, GOOD, "y" * 28 + "n" * 12, "y" * 40)]
    for each in versions[:2]:
        promote_if_better(registry, NAME, each)
    registry.delete_model_version(NAME, "2")

    decision = promote_if_better(registry, NAME, "3", alpha=0.001)
    assert champion() is None
    assert decision.text.startswith("alexnet version 3 is not champion: ")
    deleted, rest = decision.text.split("; ")[1:]
    assert mentions(decision.text, "than version 1 on 40 images")
    assert mentions(deleted, "version 2", "deleted")
    assert mentions(rest, "`pyclassify rollback alexnet`", "version 1")
    assert promote_if_better(registry, NAME, "4").against == "1"
    assert champion() == "4"


def test_version_after_only_deleted_champions_is_the_first(registry):
    first, second = register(GOOD), register(FAIR)
    promote_if_better(registry, NAME, first)
    registry.delete_model_version(NAME, first)

    decision = promote_if_better(registry, NAME, second)

    assert (decision.outcome, champion()) == ("first version", second)
    assert mentions(decision.text.split("; ")[-1], "version 1", "deleted")


def test_version_without_run_is_not_evaluated(registry):
    register(FAIR)
    registry.create_model_version(NAME, "/models/alexnet")

    decision = promote_if_better(registry, NAME, "2")

    assert decision.outcome == "not evaluated"
    assert mentions(decision.note, "version 2", "no run")


def test_version_whose_run_does_not_exist_is_not_compared(registry):
    first, second = register(FAIR), register(GOOD)
    promote_if_better(registry, NAME, first)
    third = registry.create_model_version(NAME, "/models/alexnet", "0" * 32).version

    decision = promote_if_better(registry, NAME, third)

    assert decision.outcome == "not evaluated"
    assert mentions(decision.note, f"run of version {third}", "0" * 32, "--force")
    assert (champion(), challenger()) == (first, str(third))
    assert promote_if_better(registry, NAME, second).outcome == "promoted"
