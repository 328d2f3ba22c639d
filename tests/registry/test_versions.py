"""`pyclassify register`, and versions that were registered by hand from a run's model."""

import json
import threading

import mlflow
import pytest

from pyclassify.registry.versions import find_model, register_version
from tests.support.phrases import mentions
from tests.support.runs import NAME, challenger, champion, log_model, record, tags
from tests.support.trainings import last_error, refusal

FAIR, GOOD = ("y" * right + "n" * (40 - right) for right in (20, 30))
RESULT = {"classes": "10", "input_size": "64", "test_accuracy": "0.5"}


@pytest.fixture
def cli(registry, command):
    """Run a command line, whose registry has no models: see `command`."""
    return command


def list_versions():
    return mlflow.MlflowClient().search_model_versions(f"name = '{NAME}'")


def test_register_first_version_makes_it_champion(cli):
    run_id = record(answers=FAIR, digest="0123")
    model_id = log_model(run_id, tags=RESULT)

    result = cli(f"register {run_id[:8]} {NAME}")

    assert (result.code, result.err, champion()) == (0, "", "1")
    # `mlflow ui` may be running on the default port, 5000.
    serve = "mlflow models serve -m models:/alexnet/1 --env-manager uv --port 5001"
    assert mentions(result.out, "alexnet version 1 is champion", serve)
    (version,) = list_versions()
    assert (version.source, version.run_id) == (f"models:/{model_id}", run_id)
    assert RESULT.items() <= version.tags.items()
    assert (version.tags["run_id"], version.tags["test_data"]) == (run_id, "images 0123")
    assert mentions(version.description, "10 classes", "Test accuracy 0.5 on images")


def test_register_version_that_is_not_better_makes_it_challenger_and_exits_0(cli):
    for answers in (GOOD, FAIR):
        run_id = record(answers=answers)
        log_model(run_id)
        result = cli(f"register {run_id} {NAME}")
        assert result.code == 0

    assert (champion(), challenger()) == ("1", "2")
    assert "mlflow models serve" not in result.out


def test_register_compares_by_the_given_bounds(cli):
    run_id = record(answers=FAIR)
    log_model(run_id)

    result = cli(f"register {run_id} {NAME} --min-accuracy 0.6")

    assert (result.code, champion()) == (0, None)
    assert tags("1")["decision"] == "below min_accuracy"


def test_register_twice_makes_one_version(cli):
    run_id = record(answers=FAIR)
    log_model(run_id)

    assert cli(f"register {run_id} {NAME}").out == cli(f"register {run_id} {NAME}").out
    assert len(list_versions()) == 1


def test_register_at_the_same_moment_makes_one_version(registry):
    run_id = record(answers=FAIR)
    model_id = log_model(run_id)
    numbers = []

    def register():
        numbers.append(register_version(mlflow.MlflowClient(), model_id, NAME))

    threads = [threading.Thread(target=register) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert numbers == ["1", "1", "1"]
    assert len(list_versions()) == 1


def test_register_takes_the_newest_ready_model(registry):
    run_id = record()
    newest = log_model(run_id, step=20)
    log_model(run_id, step=10)
    log_model(run_id, "FAILED", step=30)
    log_model(run_id, "PENDING", step=40)

    assert find_model(registry, registry.get_run(run_id)).model_id == newest


def test_register_takes_a_model_of_another_name_only_without_the_trained_one(registry):
    run_id = record()
    log_model(run_id, step=20, name="probe")
    newest = log_model(run_id, step=30, name="features")

    assert find_model(registry, registry.get_run(run_id)).model_id == newest
    trained = log_model(run_id, step=10)
    assert find_model(registry, registry.get_run(run_id)).model_id == trained


@pytest.mark.parametrize("status", ["PENDING", "FAILED"])
def test_register_run_whose_model_is_not_ready_fails(cli, status):
    run_id = record()
    log_model(run_id, status)

    message = refusal(cli(f"register {run_id} {NAME}"))

    assert mentions(message, "no READY model", status, f"rerun {run_id[:8]} --register")
    assert list_versions() == []


def test_register_run_without_a_model_names_the_command_that_trains_one(cli):
    run_id = record()

    message = refusal(cli(f"register {run_id} {NAME}"))

    assert mentions(message, run_id, "logged no model", f"pyclassify rerun {run_id[:8]}")


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ("3f2a9c1e a/b", "invalid NAME: 'a/b'"),
        ("3f2a9c1e", "required: NAME"),
        ("3f2a9c1e net --alpha 2", "invalid alpha: 2"),
        ("3f2a9c1e net --min-accuracy 2", "invalid min_accuracy: 2"),
        ("xyz net", "invalid run ID: 'xyz'"),
    ],
)
def test_register_with_an_invalid_command_line_exits_2(cli, options, phrase):
    assert phrase in refusal(cli(f"register {options}"), code=2)


def test_page_of_a_model_names_its_versions_once(registry):
    model_id = log_model(record())
    register_version(registry, model_id, NAME)
    register_version(registry, model_id, NAME)
    register_version(registry, model_id, "other")

    linked = json.loads(registry.get_logged_model(model_id).tags["mlflow.modelVersions"])

    assert linked == [{"name": NAME, "version": 1}, {"name": "other", "version": 1}]


@pytest.mark.parametrize("form", ["models:/{}", "{location}"])
def test_model_registered_by_hand_is_not_registered_again(registry, form):
    model_id = log_model(record())
    location = registry.get_logged_model(model_id).artifact_location
    registry.create_registered_model(NAME)
    run_id = registry.get_logged_model(model_id).source_run_id
    registry.create_model_version(NAME, form.format(model_id, location=location), run_id)

    assert register_version(registry, model_id, NAME) == "1"
    assert len(list_versions()) == 1


def test_promote_version_registered_by_hand_completes_its_tags(cli):
    run_id = record(answers=FAIR, digest="0123")
    model_id = log_model(run_id, tags=RESULT)
    mlflow.register_model(f"models:/{model_id}", NAME, tags={"classes": "mine"})

    result = cli(f"promote {NAME} 1")

    assert (result.code, champion()) == (0, "1"), result.err
    assert (
        tags("1").items() >= {"classes": "mine", "test_accuracy": "0.5", "run_id": run_id}.items()
    )
    assert mentions(list_versions()[0].description, "Test accuracy 0.5")


def test_promote_version_registered_by_hand_of_a_pending_model_fails(cli):
    model_id = log_model(record(answers=FAIR), "PENDING")
    mlflow.register_model(f"models:/{model_id}", NAME)

    message = last_error(cli(f"promote {NAME} 1"))

    assert mentions(message, model_id, "PENDING", "expected READY")
    assert champion() is None
