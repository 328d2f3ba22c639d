"""What `pyclassify compare` says of runs that can't be compared, in one line each."""

import sqlite3

import mlflow
import pytest

from pyclassify.cli import main
from tests.support.recorded import record

NOWHERE = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "compare takes two or more different runs; give their ids, or --experiment NAME"),
        (NOWHERE, "compare takes two or more different runs"),
        (f"{NOWHERE} {NOWHERE}", "compare takes two or more different runs"),
        ("best worst", "'best' is no run's id: 32 hexadecimal digits, or the first 8 or more of "),
        (f"{NOWHERE} {NOWHERE[::-1]}", f"there is no run {NOWHERE} at sqlite:///"),
        ("01234567 76543210", "there is no run 01234567 at sqlite:///"),
        ("--experiment testet", "there is no experiment 'testet' at sqlite:///"),
        ("--experiment tested", "experiment 'tested' has no finished runs; train some, or"),
        ("--experiment tested --best 1", "--best is 1; give 2 or more"),
        ("--experiment tested --best x", "argument --best: invalid int value: 'x'; `pyclassify co"),
        (f"--experiment tested {NOWHERE}", "give either ids of runs or --experiment"),
        (f"--best 3 {NOWHERE}", "--best is of an experiment's runs, and no --experiment is given"),
        ("--exp tested", "unrecognized arguments: --exp"),
    ],
)
def test_mistake_is_answered_in_one_line(line, words, cli):
    assert_refused(cli(f"compare {line}"), words)


def assert_refused(done, words):
    assert done.code == 1
    assert done.out == ""
    assert done.err.startswith(f"pyclassify: error: {words}")
    assert done.err.count("\n") == 1


def test_experiments_of_like_names_are_named(cli):
    assert cli("compare --experiment testet").err.endswith("mlflow.db; nearest: tested\n")
    assert cli("compare --experiment x").err.endswith("mlflow.db; there are: Default, tested\n")


def test_metrics_of_like_names_are_named(cli):
    record()

    done = cli("compare --experiment tested --metric test_acuracy")

    words = "no finished run of experiment 'tested' has the metric 'test_acuracy'; nearest: test_ac"
    assert_refused(done, words)


def test_single_finished_run_has_nothing_to_be_compared_to(cli):
    run_id = record()
    record(status="FAILED")

    words = "experiment 'tested' has only one finished run with the metric 'test_accuracy', "
    assert_refused(cli("compare --experiment tested"), words + run_id)


def test_same_run_by_two_names_is_one_run(cli):
    run_id = record()

    assert_refused(cli(f"compare {run_id} {run_id[:10]}"), f"these are all run {run_id}; give two")


def test_deleted_run_is_told_from_one_that_never_was(cli):
    run_id = record("old")
    mlflow.MlflowClient().delete_run(run_id)

    words = f"run {run_id} (old) is deleted; `mlflow runs restore --run-id {run_id}` brings it ba"
    assert_refused(cli(f"compare {run_id} {record()}"), words)
    assert_refused(cli(f"compare {run_id[:10]} {record()}"), words)


def test_deleted_experiment_is_told_from_one_that_never_was(cli):
    client = mlflow.MlflowClient()
    client.delete_experiment(client.create_experiment("old"))

    assert_refused(cli("compare --experiment old"), "experiment 'old' is deleted; `mlflow experim")


def test_run_without_metrics_is_named(cli):
    run_id = record("early", metrics={}, status="FAILED")

    words = f"run {run_id} (early, FAILED) has no metrics to compare; leave it out"
    assert_refused(cli(f"compare {record()} {run_id}"), words)


def test_first_digits_that_two_runs_share_are_not_enough(cli, tmp_path):
    ids = ["abcdef01" * 4, "abcdef0123456789" * 2]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for run_id in ids:
            change = "UPDATE runs SET run_uuid = ? WHERE run_uuid = ?"
            database.execute(change, [run_id, record(metrics={})])
            database.commit()
    database.close()

    assert_refused(cli("compare abcdef01 12345678"), "abcdef01 is the beginning of more than one")


def test_folder_without_runs_is_left_without_a_database(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")

    assert main(["compare", NOWHERE, NOWHERE[::-1]]) == 1
    assert capsys.readouterr().err == (
        f"pyclassify: error: there are no runs at sqlite:///{tmp_path}/none.db; go to the folder "
        "where they were made, or name their place by MLFLOW_TRACKING_URI\n"
    )
    assert not (tmp_path / "none.db").exists()


def test_server_that_is_away_is_named_without_the_password(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    assert main(["compare", NOWHERE, NOWHERE[::-1]]) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "pyclassify: error: the runs at http://***@127.0.0.1:9 can't be read (API"
    )
    assert said.count("\n") == 1
    assert "secret" not in said


def test_verb_stands_first(cli):
    done = cli("--seed 3 compare")

    assert_refused(done, "compare stands before its options: pyclassify compare ...")
