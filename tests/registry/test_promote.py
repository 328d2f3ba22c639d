"""`pyclassify promote` and `pyclassify rollback`: commands that move the champion."""

import getpass
import json
from pathlib import Path

import mlflow
import pytest

from pyclassify.registry.champion import promote_if_better
from tests.support import processes
from tests.support.phrases import mentions
from tests.support.runs import NAME, challenger, champion, read_decision, record, register, tags
from tests.support.trainings import refusal

ROOT = Path(__file__).parents[2]

WORST, FAIR, GOOD, BEST = ("y" * right + "n" * (40 - right) for right in (10, 20, 30, 40))


@pytest.fixture
def cli(registry, command):
    """Run a command line, whose registry has no models: see `command`."""
    return command


def promote_all(*answers):
    """Register versions with these answers and promote them, one after the other."""
    for each in answers:
        promote_if_better(mlflow.MlflowClient(), NAME, register(each))


def test_version_is_promoted_by_its_predictions(cli):
    promote_all(FAIR)
    register(GOOD)

    result = cli("promote alexnet 2")

    assert (result.code, result.err, champion()) == (0, "", "2")
    assert mentions(result.out, "alexnet version 2 is champion", "better", "version 1", "40 images")


def test_version_that_is_not_better_is_not_promoted_and_exits_1(cli):
    promote_all(GOOD)
    register(GOOD)

    result = cli("promote alexnet 2")

    assert (result.code, result.err, champion(), challenger()) == (1, "", "1", "2")
    assert mentions(result.out, "alexnet version 1 stays champion", "version 2", "not")


def test_promote_with_other_bounds_decides_again(cli):
    promote_all(FAIR, "y" * 25 + "n" * 15)
    assert tags("2")["p_value"] == "0.062"

    assert cli("promote alexnet 2 --alpha 0.1").code == 0
    assert champion() == "2"


def test_first_version_takes_min_accuracy(cli):
    register(FAIR)

    assert cli("promote alexnet 1 --min-accuracy 0.6").code == 1
    assert cli("promote alexnet 1 --min-accuracy 0.5").code == 0


def test_forced_version_records_user_and_reason(cli):
    promote_all(GOOD, WORST)

    result = cli("promote alexnet 2 --force --reason", "it is half the size")

    who = getpass.getuser()
    # the form of this message
    message = (
        f"alexnet version 2 is champion: forced by {who}, replaces version 1 (reason: it is half "
        "the size)"
    )
    assert (result.code, result.out, champion(), challenger()) == (0, f"{message}\n", "2", None)
    saved = read_decision("2")
    assert (saved["decided_by"], saved["reason"]) == (who, "it is half the size")
    assert saved["decided_at"].endswith(" UTC")
    assert saved["earlier_decisions"][0]["outcome"] == "not better"
    shown = {key: value for key, value in tags("2").items() if key != "decided_at"}
    assert shown == {
        "decision": "forced",
        "against": "version 1",
        "decided_by": who,
        "reason": "it is half the size",
    }


def test_user_without_a_name_is_recorded_by_number(cli, monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 3)  # as in a container
    promote_all(GOOD, WORST)

    assert cli("promote alexnet 2 --force --reason", "it is half the size").code == 0
    assert read_decision("2")["decided_by"] == tags("2")["decided_by"] == f"user {2**31 - 3}"


def test_rollback_goes_back_any_number_of_times(cli):
    promote_all(WORST, FAIR, GOOD)

    result = cli("rollback alexnet --reason", "too slow")

    who = getpass.getuser()
    # the form of this message
    message = (
        f"alexnet version 2 is champion again: {who} rolled back version 3 (reason: too slow)\n"
    )
    assert (result.code, result.out, champion()) == (0, message, "2")
    assert tags("3")["decision"] == read_decision("3")["outcome"] == "rolled back"
    assert cli("rollback alexnet").code == 0
    assert champion() == "1"
    assert refusal(cli("rollback alexnet")) == (  # the form of this message
        "alexnet has no previous champion; make another version champion by `pyclassify promote "
        "alexnet VERSION --force --reason TEXT`\n"
    )


def test_rollback_follows_a_champion_that_came_back(cli):
    promote_all(WORST, FAIR, GOOD)
    cli("promote alexnet 1 --force --reason", "a fault in 3")

    seen = [champion()]
    while cli("rollback alexnet").code == 0:
        seen.append(champion())

    assert seen == ["1", "3", "2", "1"]


def test_rolled_back_version_stays_so_when_it_is_uploaded_again(cli):
    promote_all(FAIR, GOOD)
    cli("rollback alexnet")

    assert promote_if_better(mlflow.MlflowClient(), NAME, "2").outcome == "rolled back"
    assert champion() == "1"


def test_version_after_rollback_is_compared_with_the_restored_champion(cli):
    promote_all(FAIR, GOOD)
    cli("rollback alexnet")
    register(BEST)

    assert cli("promote alexnet 3").code == 0
    assert tags("3")["against"] == "version 1"


def test_rollback_passes_over_versions_that_are_deleted(cli):
    client = mlflow.MlflowClient()
    promote_all(WORST, FAIR, GOOD)
    client.delete_model_version(NAME, "2")

    assert "version 1 is champion again" in cli("rollback alexnet").out
    client.delete_model_version(NAME, "1")
    message = refusal(cli("rollback alexnet"))
    assert mentions(
        message, "alexnet", "(deleted: 1)", "`pyclassify promote alexnet VERSION --force"
    )


def test_rollback_of_a_deleted_champion_restores_the_one_before(cli):
    promote_all(FAIR, GOOD)
    mlflow.MlflowClient().delete_model_version(NAME, "2")

    message = cli("rollback alexnet").out
    assert mentions(message, "alexnet version 1 is champion", "version 2 is deleted")
    assert champion() == "1"


def test_rollback_restores_a_deleted_alias(cli):
    promote_all(FAIR, GOOD)
    mlflow.MlflowClient().delete_registered_model_alias(NAME, "champion")

    assert mentions(cli("rollback alexnet").out, "alexnet version 2 is champion", "alias")
    assert champion() == "2"


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        # the forms of these messages
        ("promote alexnet 1", ["alexnet version 1 is already champion"]),
        ("promote alexnet 9", ["alexnet has no version 9; its versions: 1, 2"]),
        ("promote alexnte 1", ["there is no registered model 'alexnte' at sqlite:///"]),
        # of the same kinds
        ("promote alexnet 1 --force --reason x", ["alexnet version 1", "champion"]),
        ("rollback alexnte", ["'alexnte'", "sqlite:///"]),
    ],
)
def test_invalid_argument_is_reported_in_one_line(line, facts, cli):
    run_id = record()
    for _ in range(2):
        register(run_id=run_id)
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "1")

    result = cli(line)
    assert result.out == ""
    assert mentions(refusal(result), *facts)
    assert (champion(), challenger()) == ("1", None)


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("promote net 2 --alpha 5", ["invalid alpha: 5 (expected 0 < alpha < 1"]),
        ("promote net 2 --min-accuracy 50", ["invalid min_accuracy: 50", "0 <= min_accuracy <= 1"]),
        ("promote net one", ["invalid VERSION: 'one'", "a number"]),
        ("promote net 2 --force", ["--force", "--reason TEXT"]),
        ("promote net 2 --reason x", ["--reason", "--force"]),
        ("promote net 2 --force --reason x --alpha 0.1", ["--force", "--alpha", "--min-accuracy"]),
        ("promote net", ["required: VERSION", "`pyclassify promote --help`"]),
        ("rollback", ["required: NAME", "`pyclassify rollback --help`"]),
    ],
)
def test_usage_error_is_reported_before_the_store_is_opened(line, facts, cli, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")

    result = cli(line)
    assert result.out == ""
    assert mentions(refusal(result, 2), *facts)
    assert not Path("nowhere.db").exists()


def test_unknown_model_is_reported_with_the_nearest_name(cli):
    promote_all(FAIR)

    assert mentions(refusal(cli("rollback alexnte")), "'alexnte'", "mlflow.db", "alexnet")


def test_model_without_a_champion_has_nothing_to_go_back_to(cli):
    register(FAIR)

    message = refusal(cli("rollback alexnet"))
    assert mentions(message, "alexnet", "no champion", "`pyclassify promote alexnet VERSION`")


@pytest.mark.parametrize("registry_uri", ["", "sqlite:///registry.db"])
def test_unreachable_tracking_server_is_named(registry_uri, cli, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", registry_uri)

    message = refusal(cli(f"register 0123abcd {NAME}"))

    assert mentions(message, "the tracking server at http://127.0.0.1:9", "connection refused")
    assert ("or the model registry at sqlite:///registry.db" in message) is bool(registry_uri)


def test_unreachable_registry_is_reported_in_one_line(cli, monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    message = refusal(cli("rollback alexnet"))

    assert mentions(message, "registry", "http://***@127.0.0.1:9", "MLFLOW_REGISTRY_URI")
    assert "secret" not in message


WITHOUT_TORCH = """
import sys
from pyclassify.cli.main import main
for line in {lines}:
    main(line)
    if "torch" in sys.modules:
        sys.exit(f"torch was loaded to {{line[0]}}")
"""


def test_torch_is_not_loaded_to_promote_and_to_compare(registry):
    promote_all(FAIR)
    register(GOOD)
    compare = ["compare", record(answers="yn"), record(answers="yy"), "--json"]
    code = WITHOUT_TORCH.format(lines=[compare, ["promote", "alexnet", "2"]])

    result = processes.run("-c", code, cwd=ROOT, fresh=True)

    assert result.returncode == 0, result.stderr
    assert champion() == "2"
    compared, _ = json.JSONDecoder().raw_decode(result.stdout)
    assert compared["paired_test"]["num_images"] == 2
