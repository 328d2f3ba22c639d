"""`pyclassify promote` and `pyclassify rollback`: the champion, moved by a person."""

import getpass
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from pyclassify.cli import main
from pyclassify.registry.champion import judge
from tests.support.recorded import record
from tests.support.registered import NAME, challenger, champion, decided, register, tags

ROOT = Path(__file__).parents[1]

WORST, FAIR, GOOD, BEST = ("y" * right + "n" * (40 - right) for right in (10, 20, 30, 40))


@pytest.fixture
def cli(registry, capsys):
    """Run a command line: the exit code, and what was written."""

    def run(line, *more):
        code = main([*line.split(), *more])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


def judged(*answers):
    """Versions that were judged one after the other."""
    for each in answers:
        judge(mlflow.MlflowClient(), NAME, register(each))


def test_version_is_promoted_by_its_answers(cli):
    judged(FAIR)
    register(GOOD)

    done = cli("promote alexnet 2")

    assert (done.code, done.err, champion()) == (0, "", "2")
    assert done.out.startswith("alexnet version 2 is champion: better than version 1 on 40 images")


def test_version_that_is_not_better_is_not_promoted_and_the_exit_code_says_so(cli):
    judged(GOOD)
    register(GOOD)

    done = cli("promote alexnet 2")

    assert (done.code, done.err, champion(), challenger()) == (1, "", "1", "2")
    assert done.out.startswith("alexnet version 1 stays champion: version 2 is not shown to be ")


def test_version_is_judged_again_by_other_bounds(cli):
    judged(FAIR, "y" * 25 + "n" * 15)
    assert tags("2")["p_value"] == "0.062"

    assert cli("promote alexnet 2 --alpha 0.1").code == 0
    assert champion() == "2"


def test_first_version_takes_min_accuracy(cli):
    register(FAIR)

    assert cli("promote alexnet 1 --min-accuracy 0.6").code == 1
    assert cli("promote alexnet 1 --min-accuracy 0.5").code == 0


def test_forced_version_tells_who_did_it_and_why(cli):
    judged(GOOD, WORST)

    done = cli("promote alexnet 2 --force --why", "it is half the size")

    who = getpass.getuser()
    told = f"alexnet version 2 is champion: forced, after version 1 by {who}: it is half the size"
    assert (done.code, done.out, champion(), challenger()) == (0, f"{told}\n", "2", None)
    kept = decided("2")
    assert (kept["by"], kept["why"]) == (who, "it is half the size")
    assert kept["time"].endswith(" UTC")
    assert kept["earlier"][0]["outcome"] == "kept"
    shown = {key: value for key, value in tags("2").items() if key != "decided"}
    assert shown == {
        "decision": "forced",
        "against": "version 1",
        "decided_by": who,
        "why": "it is half the size",
    }


def test_rollback_goes_back_any_number_of_times(cli):
    judged(WORST, FAIR, GOOD)

    done = cli("rollback alexnet --why", "too slow")

    who = getpass.getuser()
    told = f"alexnet version 2 is champion again: version 3 was rolled back by {who}: too slow\n"
    assert (done.code, done.out, champion()) == (0, told, "2")
    assert tags("3")["decision"] == decided("3")["outcome"] == "rolled back"
    assert cli("rollback alexnet").code == 0
    assert champion() == "1"
    assert cli("rollback alexnet").err == (
        "pyclassify: error: no version of alexnet was champion before; `pyclassify promote alexnet "
        "VERSION --force --why TEXT` makes another one champion\n"
    )


def test_rollback_follows_a_champion_that_came_back(cli):
    judged(WORST, FAIR, GOOD)
    cli("promote alexnet 1 --force --why", "a fault in 3")

    seen = [champion()]
    while cli("rollback alexnet").code == 0:
        seen.append(champion())

    assert seen == ["1", "3", "2", "1"]


def test_version_that_was_rolled_back_stays_so_when_it_is_delivered_again(cli):
    judged(FAIR, GOOD)
    cli("rollback alexnet")

    assert judge(mlflow.MlflowClient(), NAME, "2").outcome == "rolled back"
    assert champion() == "1"


def test_next_version_is_judged_against_the_one_that_came_back(cli):
    judged(FAIR, GOOD)
    cli("rollback alexnet")
    register(BEST)

    assert cli("promote alexnet 3").code == 0
    assert tags("3")["against"] == "version 1"


def test_rollback_passes_over_versions_that_are_deleted(cli):
    client = mlflow.MlflowClient()
    judged(WORST, FAIR, GOOD)
    client.delete_model_version(NAME, "2")

    assert "version 1 is champion again" in cli("rollback alexnet").out
    client.delete_model_version(NAME, "1")
    told = (
        "error: no version of alexnet was champion before and is not deleted (1); `pyclassify pro"
    )
    assert told in cli("rollback alexnet").err


def test_rollback_puts_the_one_before_in_the_place_of_a_deleted_champion(cli):
    judged(FAIR, GOOD)
    mlflow.MlflowClient().delete_model_version(NAME, "2")

    assert cli("rollback alexnet").out == (
        "alexnet version 1 is champion again: version 2 is deleted\n"
    )
    assert champion() == "1"


def test_rollback_gives_back_an_alias_that_was_taken(cli):
    judged(FAIR, GOOD)
    mlflow.MlflowClient().delete_registered_model_alias(NAME, "champion")

    assert cli("rollback alexnet").out == (
        "alexnet version 2 is champion again: it had lost the alias\n"
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("promote alexnet 1", "alexnet version 1 is champion already"),
        ("promote alexnet 1 --force --why x", "alexnet version 1 is champion already"),
        ("promote alexnet 9", "alexnet has no version 9; there are: 1, 2"),
        ("promote alexnet one", "alexnet has no version one; there are: 1, 2"),
        ("promote alexnte 1", "there is no registered model 'alexnte' at sqlite:///"),
        ("rollback alexnte", "there is no registered model 'alexnte' at sqlite:///"),
        ("promote alexnet 2 --alpha 5", "alpha is 5; it takes a number between 0 and 1"),
        ("promote alexnet 2 --min-accuracy 50", "min_accuracy is 50; it takes a number from 0 to"),
    ],
)
def test_mistake_is_answered_in_one_line(line, words, cli):
    run_id = record()
    for _ in range(2):
        register(run_id=run_id)
    mlflow.MlflowClient().set_registered_model_alias(NAME, "champion", "1")

    assert_refused(cli(line), words)
    assert (champion(), challenger()) == ("1", None)


def assert_refused(done, words):
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert done.err.startswith(f"pyclassify: error: {words}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("promote net 2 --force", "--force makes a version champion without evidence; say why by"),
        ("promote net 2 --why x", "--why is of --force; without it the test images say why"),
        ("promote net 2 --force --why x --alpha 0.1", "--force asks for no evidence; leave out"),
        ("promote net", "the following arguments are required: VERSION; `pyclassify promote --he"),
        ("rollback", "the following arguments are required: NAME; `pyclassify rollback --help`"),
    ],
)
def test_wrong_command_line_is_answered_before_anything_is_opened(line, words, cli, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///nowhere.db")

    assert_refused(cli(line), words)


def test_model_of_a_like_name_is_named(cli):
    judged(FAIR)

    assert cli("rollback alexnte").err.endswith("mlflow.db; nearest: alexnet\n")


def test_model_without_a_champion_has_nothing_to_go_back_to(cli):
    register(FAIR)

    assert cli("rollback alexnet").err == (
        "pyclassify: error: alexnet had no champion yet; `pyclassify promote alexnet VERSION` "
        "makes one\n"
    )


def test_registry_that_is_away_is_told_in_one_line(cli, monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    said = cli("rollback alexnet").err

    assert said.startswith(
        "pyclassify: error: the registry at http://***@127.0.0.1:9 did not do it"
    )
    assert said.count("\n") == 1
    assert "secret" not in said


def test_torch_is_not_loaded_to_promote(registry):
    judged(FAIR)
    register(GOOD)
    code = "import sys; from pyclassify.cli import main; main(['promote', 'alexnet', '2']); "
    code += "sys.exit('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)

    assert done.returncode == 0, done.stderr
    assert champion() == "2"
