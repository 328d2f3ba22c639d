"""A version becomes champion if it is better; each decision is saved with its numbers."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED, TEMPORARILY_UNAVAILABLE

from pyclassify.registry.champion import force_promotion, promote_if_better, register_and_promote
from pyclassify.registry.versions import find_existing_version
from pyclassify.registry.versions import register_version as register_model
from pyclassify.runs.stats import mcnemar
from pyclassify.tracking.capsule import DATA_WARNING_TAG
from tests.support.phrases import mentions
from tests.support.runs import (
    NAME,
    challenger,
    champion,
    log_model,
    log_predictions,
    read_decision,
    record,
    register,
    tags,
)
from tests.support.spooled import responding_with

FAIR, GOOD, EQUAL = "y" * 20 + "n" * 20, "y" * 30 + "n" * 10, "y" * 19 + "ny" + "n" * 19


def test_first_version_becomes_champion_when_it_is_accurate_enough(registry):
    version = register(FAIR)

    decision = promote_if_better(registry, NAME, version, min_accuracy=0.5)

    assert (champion(), challenger()) == (version, None)
    assert decision.text == (  # the form of this message
        "alexnet version 1 is champion: no champion to compare with, accuracy 0.5000 >= "
        "min_accuracy 0.5"
    )
    assert tags(version)["decision"] == read_decision(version)["outcome"] == "first version"


def test_first_version_below_min_accuracy_stays_challenger(registry):
    version = register(FAIR)

    decision = promote_if_better(registry, NAME, version, min_accuracy=0.51)

    assert (champion(), challenger()) == (None, version)
    assert decision.text == read_decision(version)["text"]
    facts = ("alexnet version 1 is not champion", "0.5000", "min_accuracy 0.51")
    assert mentions(decision.text, *facts)
    assert tags(version)["min_accuracy"] == "0.51"


def test_accuracy_of_first_version_without_predictions_is_its_tag(registry):
    version = register(tags={"test_accuracy": "0.7"})

    assert (
        promote_if_better(registry, NAME, version, min_accuracy=0.71).outcome
        == "below min_accuracy"
    )
    assert (
        promote_if_better(registry, NAME, version, min_accuracy=0.7, recheck=True).outcome
        == "first version"
    )


def test_first_version_of_unknown_accuracy_is_not_evaluated(registry):
    decision = promote_if_better(registry, NAME, register())

    assert champion() is None
    assert decision.text == (  # the form of this message
        "alexnet version 1 is not champion: version 1 was not evaluated because the run of version "
        "1 has no predictions.json, and the version has no tag test_accuracy; make it champion "
        "without a comparison by `pyclassify promote alexnet 1 --force --reason TEXT`"
    )


@pytest.mark.parametrize("tagged", ["run", "version"])
def test_version_whose_data_were_warned_of_becomes_champion_by_force_alone(tagged, registry):
    warning = "3 of the 40 images in test/ are also in train/"
    version = register(GOOD, tags={"data_warning": warning} if tagged == "version" else {})
    if tagged == "run":
        run_id = registry.get_model_version(NAME, version).run_id
        registry.set_tag(run_id, DATA_WARNING_TAG, warning)

    for recheck in (False, True):
        decision = promote_if_better(registry, NAME, version, recheck=recheck)
        assert (champion(), challenger()) == (None, version)
        assert mentions(decision.text, "not evaluated", warning, "--force --reason TEXT")

    force_promotion(registry, NAME, version, "they are meant to be")
    assert champion() == version


def test_version_takes_the_warning_of_its_run(registry):
    run_id = record(answers=GOOD)
    registry.set_tag(run_id, DATA_WARNING_TAG, "one class")

    version = register_model(registry, log_model(run_id), NAME)

    assert tags(version)["data_warning"] == "one class"


def test_better_version_becomes_champion_with_difference_and_p_value(registry):
    first, second = register(FAIR), register(GOOD)
    promote_if_better(registry, NAME, first)

    decision = promote_if_better(registry, NAME, second)

    p_value = mcnemar(0, 10)
    assert (champion(), challenger()) == (second, None)
    assert decision.text == (  # the form of this message
        "alexnet version 2 is champion: better than version 1 on 40 images, accuracy difference "
        "+0.2500 (95% CI +0.0934 to +0.3828), McNemar's p = 0.002, alpha = 0.05"
    )
    assert read_decision(second)["paired_test"]["p_value"] == p_value == pytest.approx(2 / 2**10)
    shown = {key: tags(second)[key] for key in ("decision", "against", "p_value", "alpha")}
    assert shown == {
        "decision": "promoted",
        "against": "version 1",
        "p_value": "0.002",
        "alpha": "0.05",
    }
    assert tags(second)["difference"] == "+0.2500 (95% CI +0.0934 to +0.3828)"


@pytest.mark.parametrize(
    ("answers", "alpha", "facts"),
    [
        (EQUAL, 0.05, ["not", "better", "+0.0000 ("]),
        (GOOD, 0.001, ["not", "better", "+0.2500 ("]),
        ("n" * 40, 0.05, ["worse", "-0.5000 ("]),
    ],
    ids=["equal", "not significant", "worse"],
)
def test_champion_stays_unless_challenger_is_significantly_better(answers, alpha, facts, registry):
    first, second = register(FAIR), register(answers)
    promote_if_better(registry, NAME, first)

    decision = promote_if_better(registry, NAME, second, alpha=alpha)

    assert (champion(), challenger()) == (first, second)
    assert decision.text.startswith("alexnet version 1 stays champion: version 2 ")
    assert mentions(decision.text, "40 images", f"alpha = {alpha:g}", *facts)
    assert tags(second)["decision"] == read_decision(second)["outcome"] == "not better"


@pytest.mark.parametrize("answers", [GOOD, EQUAL], ids=["promoted", "not better"])
def test_saved_decision_is_not_made_again(answers, registry):
    first, second = register(FAIR), register(answers)
    promote_if_better(registry, NAME, first)
    decision = promote_if_better(registry, NAME, second)
    before = registry.get_registered_model(NAME), tags(second), read_decision(second)

    assert promote_if_better(registry, NAME, second) == decision
    assert promote_if_better(registry, NAME, second, alpha=0.5, min_accuracy=1.0) == decision

    after = registry.get_registered_model(NAME), tags(second), read_decision(second)
    assert [*map(str, after)] == [*map(str, before)]


def test_late_second_call_leaves_the_newer_champion_and_challenger(registry):
    versions = [register(each) for each in (FAIR, GOOD, "y" * 40, "n" * 40)]
    decisions = [promote_if_better(registry, NAME, each) for each in versions]

    again = [promote_if_better(registry, NAME, each) for each in versions]

    assert again == decisions
    assert (champion(), challenger()) == ("3", "4")


def test_version_that_could_not_be_evaluated_is_evaluated_later(registry):
    first, second = register(FAIR), register()
    promote_if_better(registry, NAME, first)
    assert promote_if_better(registry, NAME, second).outcome == "not evaluated"

    log_predictions(registry.get_model_version(NAME, second).run_id, range(40), [1] * 40, [1] * 40)
    labels = [index % 3 for index in range(40)]
    third = register(run_id=record())
    log_predictions(registry.get_model_version(NAME, third).run_id, range(40), labels, labels)

    assert promote_if_better(registry, NAME, second).outcome == "not evaluated"
    assert promote_if_better(registry, NAME, third).outcome == "promoted"


def test_earlier_decisions_stay_in_the_file(registry):
    first, second = register(FAIR), register(GOOD)
    promote_if_better(registry, NAME, first)
    promote_if_better(registry, NAME, second, alpha=0.001)

    promote_if_better(registry, NAME, second, alpha=0.05, recheck=True)

    saved = read_decision(second)
    assert (saved["outcome"], saved["alpha"]) == ("promoted", 0.05)
    assert [(each["outcome"], each["alpha"]) for each in saved["earlier_decisions"]] == [
        ("not better", 0.001)
    ]


def test_decision_whose_file_is_lost_is_loaded_from_tags(registry):
    first, second = register(FAIR), register(GOOD)
    promote_if_better(registry, NAME, first)
    promote_if_better(registry, NAME, second)
    run = registry.get_run(registry.get_model_version(NAME, second).run_id)
    Path(run.info.artifact_uri, f"registry/{NAME}-{second}/decision.json").unlink()

    again = promote_if_better(registry, NAME, second)

    assert (again.outcome, again.against, tags(second)["decision"]) == ("promoted", "1", "promoted")
    assert mentions(
        again.text, "alexnet version 2 is champion", "promoted", "tags", "decision.json"
    )


@pytest.mark.parametrize("step", ["set_registered_model_alias", "set_registered_model_tag"])
def test_interrupted_promotion_is_finished_by_the_next_call(step, registry, monkeypatch):
    first, second = register(FAIR), register(GOOD)
    promote_if_better(registry, NAME, first)
    original = getattr(registry, step)

    def cut_off(name, key, value):
        if key.startswith("champion"):
            raise OSError("cut off")
        original(name, key, value)

    with monkeypatch.context() as patch:
        patch.setattr(registry, step, cut_off)
        with pytest.raises(OSError, match="cut off"):
            promote_if_better(registry, NAME, second)

    assert promote_if_better(registry, NAME, second).outcome == "promoted"
    assert champion() == second
    assert registry.get_registered_model(NAME).tags["champion_history"] == "2 1"
    assert read_decision(second)["earlier_decisions"] == []


def test_champion_set_manually_is_compared_with_the_next_version(registry):
    first, second, third = register(FAIR), register(GOOD), register("y" * 40)
    registry.set_registered_model_alias(NAME, "champion", second)

    assert promote_if_better(registry, NAME, third).against == second
    assert registry.get_registered_model(NAME).tags["champion_history"] == "3 2"
    registry.set_registered_model_alias(NAME, "champion", first)
    text = promote_if_better(registry, NAME, first).text
    assert mentions(text, "alexnet version 1 is champion", "manually", "replaces version 3")


@pytest.mark.parametrize("alpha", [0, 1, -0.05, float("nan")])
def test_alpha_out_of_range_is_refused(alpha, registry):
    # the form of this message
    with pytest.raises(ValueError, match=rf"^invalid alpha: {alpha:g} \(expected 0 < alpha < 1"):
        promote_if_better(registry, NAME, "1", alpha=alpha)


@pytest.mark.parametrize("accuracy", [-0.1, 50, float("nan")])
def test_min_accuracy_out_of_range_is_refused(accuracy, registry):
    with pytest.raises(ValueError, match=f"min_accuracy: {accuracy:g} .*0 <= min_accuracy <= 1"):
        promote_if_better(registry, NAME, "1", min_accuracy=accuracy)


VERSION = {"kind": "version", "name": NAME, "compare_on": "test"}


def test_uploaded_version_is_registered_and_compared_once(registry):
    run_id = record(answers=FAIR)
    version = VERSION | {"model": log_model(run_id), "alpha": 0.05, "min_accuracy": 0.5}

    result = [register_and_promote(registry, version) for _ in range(2)]

    assert result[0] == result[1]
    assert mentions(result[0], "alexnet version 1 is champion", "0.5000")
    assert len(registry.search_model_versions(f"name = '{NAME}'")) == 1


def test_uploaded_version_is_registered_although_comparison_fails(registry):
    run_id = record(answers=FAIR)
    version = VERSION | {"model": log_model(run_id), "alpha": 5, "min_accuracy": 0.0}

    with pytest.warns(
        UserWarning, match="alexnet version 1 is registered.* alpha: 5 .*promote alexnet 1`"
    ):
        result = register_and_promote(registry, version)

    assert result == "alexnet version 1"
    assert registry.get_model_version(NAME, "1").run_id == run_id
    assert (champion(), challenger()) == (None, None)


def test_register_version_with_invalid_name_raises_with_reason(registry):
    with pytest.raises(MlflowException, match="name") as refused:
        register_model(registry, log_model(record()), "a/b")

    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_denied_deletion_of_tags_does_not_block_promotion(registry, monkeypatch):
    first, second = register(FAIR), register(EQUAL)
    promote_if_better(registry, NAME, first)
    promote_if_better(registry, NAME, second)

    def refuse(*_):
        raise MlflowException("no permission", PERMISSION_DENIED)

    monkeypatch.setattr(registry, "delete_model_version_tag", refuse)
    monkeypatch.setattr(registry, "delete_registered_model_alias", refuse)
    decision = force_promotion(registry, NAME, second, "it is half the size")

    assert decision.outcome == tags(second)["decision"] == "forced"
    assert (champion(), challenger()) == (second, second)
    assert registry.get_registered_model(NAME).tags["champion_history"] == "2 1"


def test_failed_deletion_of_tags_raises(registry, monkeypatch):
    first, second = register(FAIR), register(EQUAL)
    promote_if_better(registry, NAME, first)
    promote_if_better(registry, NAME, second)

    def fail(*_):
        raise MlflowException("the database is away", TEMPORARILY_UNAVAILABLE)

    monkeypatch.setattr(registry, "delete_model_version_tag", fail)
    with pytest.raises(MlflowException, match="the database is away"):
        force_promotion(registry, NAME, second, "it is half the size")

    assert (champion(), tags(second)["decision"]) == (first, "not better")


def test_find_existing_version_raises_where_the_registry_fails(registry, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    register(FAIR)

    assert find_existing_version(registry, NAME, ["9", "1"]).number == "1"
    assert find_existing_version(registry, NAME, ["9"]) is None
    with responding_with(500) as address, pytest.raises(MlflowException, match="500"):
        find_existing_version(MlflowClient(address), NAME, ["9", "1"])
