"""`pyclassify compare` on parents of seeds: recipes, compared by more than luck."""

import json

import mlflow
import pytest
from scipy.stats import ttest_ind

from pyclassify.runs.stats import format_mean_and_deviation, mean_interval, welch
from tests.support.phrases import mentions
from tests.support.runs import record
from tests.support.trainings import refusal

GOOD, BETTER = (0.80, 0.81, 0.82, 0.79, 0.80), (0.84, 0.86, 0.83, 0.85, 0.87)


def record_parent(values, name="net-5seeds", **more):
    mean, (low, high) = sum(values) / len(values), mean_interval(values)
    deviation = (sum((each - mean) ** 2 for each in values) / (len(values) - 1)) ** 0.5
    found = {"mean": mean, "std": deviation, "low": low, "high": high}
    metrics = {f"test_accuracy_{key}": value for key, value in found.items()}
    run_id = record(name, metrics={**metrics, "seeds_finished": len(values)}, **more)
    mlflow.MlflowClient().set_tag(run_id, "pyclassify.seeds", f"0 to {len(values) - 1}")
    return run_id


def record_child(parent, **more):
    run_id = record(**more)
    mlflow.MlflowClient().set_tag(run_id, "mlflow.parentRunId", parent)
    return run_id


def test_two_recipes_are_compared_by_welchs_test(cli):
    runs = record_parent(GOOD), record_parent(BETTER)

    test = json.loads(cli(f"compare --json {' '.join(runs)}").out)["seeds_test"]

    expected = ttest_ind(BETTER, GOOD, equal_var=False)
    assert (test["metric"], test["counts"]) == ("test_accuracy", [5, 5])
    assert test["means"] == pytest.approx([0.804, 0.85])
    assert test["p_value"] == pytest.approx(expected.pvalue)
    assert test["interval"] == pytest.approx([*expected.confidence_interval()])


def test_page_says_which_recipe_is_better_in_words(cli):
    done = cli(f"compare {record_parent(GOOD)} {record_parent(BETTER)}")

    said = " ".join(done.out.split())
    # the form of this message
    assert "Over 5 seeds, run 1's mean test_accuracy is 0.8040; over 5, run 2's is 0.8500." in said
    assert mentions(said, "(Welch's t-test, p = 0.001)", "run 2 is better.")
    assert mentions(said, "between +0.0255 and +0.0665 (95% interval)")
    assert mentions(said, "Note: run 1 is of 5 seeds", "means, deviations")
    assert "predictions.json" not in said


def test_recipes_that_may_be_equal_are_not_ranked(cli):
    said = " ".join(cli(f"compare {record_parent(GOOD)} {record_parent(GOOD[1:])}").out.split())

    assert mentions(said, "(Welch's t-test, p = ", ": neither")


def test_recipes_that_were_tested_on_other_images_are_not_judged(cli):
    runs = record_parent(GOOD, digest="aaaa"), record_parent(BETTER, digest="bbbb")

    data = json.loads(cli(f"compare --json {' '.join(runs)}").out)
    assert data["seeds_test"] is None
    assert mentions(data["notes"][-1], "test images of run 2", "run 1")


def test_recipe_with_one_finished_seed_is_not_judged(cli):
    single = record("net-5seeds", metrics={"test_accuracy_mean": 0.8, "seeds_finished": 1})
    mlflow.MlflowClient().set_tag(single, "pyclassify.seeds", "0 to 4")

    data = json.loads(cli(f"compare --json {single} {record_parent(GOOD)}").out)
    assert data["seeds_test"] is None
    assert data["notes"][0].startswith("run 1 is of 1 seed, ")
    assert "two finished seeds" in data["notes"][-1]


def test_parent_and_one_of_its_seeds_are_told_apart(cli):
    parent = record_parent(GOOD)
    child = record_child(parent, answers="yn")

    data = json.loads(cli(f"compare --json {parent} {child}").out)
    assert data["notes"] == [  # the form of these messages
        "run 1 is of 5 seeds, and its metrics are their means, deviations and intervals",
        "run 2 is one of the seeds of run 1, and counts in its means",
    ]
    assert data["paired_test"] is data["seeds_test"] is None


def test_parent_can_not_be_made_again_but_its_seeds_can(cli):
    parent = record_parent(GOOD)
    ids = [record_child(parent, name=f"net-seed{seed}") for seed in (0, 1)]

    said = refusal(cli(f"rerun {parent}"))
    assert mentions(said, parent, "2 seeds", f"{ids[0]} (net-seed0), {ids[1]} (net-seed1)")


def test_welchs_test_is_the_same_with_the_recipes_exchanged():
    p_value, (low, high) = welch((0.5, 0.6), (0.01, 0.1), (3, 8))
    exchanged, interval = welch((0.6, 0.5), (0.1, 0.01), (8, 3))

    assert exchanged == pytest.approx(p_value)
    assert interval == pytest.approx((-high, -low))


def test_recipes_that_do_not_vary_are_as_far_apart_as_they_are():
    assert welch((0.5, 0.5), (0.0, 0.0), (2, 2)) == (1.0, (0.0, 0.0))
    assert welch((0.5, 0.75), (0.0, 0.0), (2, 2)) == (0.0, (0.25, 0.25))


def test_single_seed_can_not_be_tested():
    with pytest.raises(ValueError, match=r"two or more seeds.* 1 "):
        welch((0.5, 0.6), (0.1, 0.1), (1, 5))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "no seed that finished has it"),  # the form of this message
        ([0.5], "0.5000 (1 seed)"),
        ([0.5, 0.7], "0.6000 ± 0.1414 (95%: -0.6706 to 1.8706, 2 seeds)"),
        ([0.5, float("nan")], "nan (2 seeds)"),
    ],
)
def test_mean_is_told_as_surely_as_it_is_known(values, words):
    assert format_mean_and_deviation(values) == words
