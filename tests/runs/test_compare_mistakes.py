"""What `pyclassify compare` says of runs that can't be compared, in one line each."""

import sqlite3

import mlflow
import pytest

from pyclassify.cli.main import main
from tests.support.phrases import mentions
from tests.support.runs import record
from tests.support.trainings import refusal

NOWHERE = "0123456789abcdef" * 2
HELP = "`pyclassify compare --help`"


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        # the forms of these messages
        ("", ["compare takes two or more different runs; give their ids, or --experiment NAME"]),
        (
            "best worst",
            ["'best' is no run's id: 32 hexadecimal digits, or the first 8 or more of "],
        ),
        (f"{NOWHERE} {NOWHERE[::-1]}", [f"there is no run {NOWHERE} at sqlite:///"]),
        ("--experiment testet", ["there is no experiment 'testet' at sqlite:///"]),
        ("--experiment tested --best 1", ["--best is 1; give 2 or more"]),
        # of the same kinds, or Python's own
        (NOWHERE, ["compare", "two or more", "--experiment NAME"]),
        (f"{NOWHERE} {NOWHERE}", ["compare", "two or more", "--experiment NAME"]),
        ("01234567 76543210", ["no run", "01234567", "sqlite:///"]),
        ("--experiment tested", ["experiment 'tested'", "no finished runs"]),
        ("--experiment tested --best x", ["argument --best: invalid int", "'x'", HELP]),
        (f"--experiment tested {NOWHERE}", ["ids", "--experiment"]),
        (f"--best 3 {NOWHERE}", ["--best", "--experiment"]),
        ("--exp tested", ["unrecognized arguments: --exp"]),
    ],
)
def test_mistake_is_answered_in_one_line(line, facts, cli):
    assert_refused(cli(f"compare {line}"), *facts)


def assert_refused(done, *facts):
    assert done.out == ""
    assert mentions(refusal(done), *facts)


def test_experiments_of_like_names_are_named(cli):
    assert cli("compare --experiment testet").err.endswith("mlflow.db; nearest: tested\n")
    assert cli("compare --experiment x").err.endswith("mlflow.db; there are: Default, tested\n")


def test_metrics_of_like_names_are_named(cli):
    record()

    done = cli("compare --experiment tested --metric test_acuracy")

    assert_refused(done, "'tested'", "metric 'test_acuracy'", "test_accuracy")


def test_single_finished_run_has_nothing_to_be_compared_to(cli):
    run_id = record()
    record(status="FAILED")

    done = cli("compare --experiment tested")
    assert_refused(done, "'tested'", "one finished run", "'test_accuracy'", run_id)


def test_same_run_by_two_names_is_one_run(cli):
    run_id = record()

    assert_refused(cli(f"compare {run_id} {run_id[:10]}"), run_id, "two")


def test_deleted_run_is_told_from_one_that_never_was(cli):
    run_id = record("old")
    mlflow.MlflowClient().delete_run(run_id)

    facts = (f"run {run_id} (old) is deleted", f"`mlflow runs restore --run-id {run_id}`")
    assert_refused(cli(f"compare {run_id} {record()}"), *facts)
    assert_refused(cli(f"compare {run_id[:10]} {record()}"), *facts)


def test_deleted_experiment_is_told_from_one_that_never_was(cli):
    client = mlflow.MlflowClient()
    client.delete_experiment(client.create_experiment("old"))

    done = cli("compare --experiment old")
    assert_refused(done, "experiment 'old' is deleted", "`mlflow experiments restore")


def test_run_without_metrics_is_named(cli):
    run_id = record("early", metrics={}, status="FAILED")

    assert_refused(cli(f"compare {record()} {run_id}"), f"{run_id} (early, FAILED)", "no metrics")


def test_first_digits_that_two_runs_share_are_not_enough(cli, tmp_path):
    ids = ["abcdef01" * 4, "abcdef0123456789" * 2]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for run_id in ids:
            change = "UPDATE runs SET run_uuid = ? WHERE run_uuid = ?"
            database.execute(change, [run_id, record(metrics={})])
            database.commit()
    database.close()

    assert_refused(cli("compare abcdef01 12345678"), "abcdef01", "more than one")


def test_folder_without_runs_is_left_without_a_database(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")

    assert main(["compare", NOWHERE, NOWHERE[::-1]]) == 1
    assert capsys.readouterr().err == (  # the form of this message
        f"pyclassify: error: there are no runs at sqlite:///{tmp_path}/none.db; go to the folder "
        "where they were made, or name their place by MLFLOW_TRACKING_URI\n"
    )
    assert not (tmp_path / "none.db").exists()


def test_server_that_is_away_is_named_without_the_password(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    assert main(["compare", NOWHERE, NOWHERE[::-1]]) == 1
    said = capsys.readouterr().err
    assert said.startswith("pyclassify: error: ")
    assert mentions(said, "http://***@127.0.0.1:9", "API")
    assert said.count("\n") == 1
    assert "secret" not in said


def test_verb_stands_first(cli):
    done = cli("--seed 3 compare")

    assert_refused(done, "options", "pyclassify compare ...")
