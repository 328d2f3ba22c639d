"""A run whose job ends more than once, or in a way that SLURM tells late."""

import shutil

import mlflow
import pytest
from slurm_runs import note

from pyclassify.slurm import reconcile, report
from pyclassify.slurm.answers import Job
from pyclassify.slurm.reconcile import Ending

FELL = "a node of the job failed; submit it again"
MADE_ROOM = "the job had to make room for another; submit it again"
LATE = "the job's deadline came before its end"


@pytest.fixture
def client(empty_store, tmp_path, monkeypatch):
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return mlflow.MlflowClient()


@pytest.fixture
def run_id(client):
    return client.create_run(client.get_experiment_by_name("tested").experiment_id).info.run_id


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("COMPLETING NodeDown\nRUNNING", "FAILED", FELL),
        ("COMPLETING DeadLine\n", "FAILED", LATE),
        ("COMPLETING Preempted\n", "KILLED", MADE_ROOM),
        ("PREEMPTED None\n", "KILLED", MADE_ROOM),
        ("NODE_FAIL NodeDown\n", "FAILED", FELL),
        ("FAILED NonZeroExitCode\n", "FAILED", "the job was ended by signal 15"),
    ],
)
def test_queue_tells_why_where_accounting_is_late_or_absent(said, status, words):
    assert reconcile.of_script(143, said) == Ending(status, words, "FAILED" not in said)


@pytest.mark.parametrize(
    ("said", "state", "status", "words"),
    [
        ("COMPLETING None\nRUNNING", "NODE_FAIL", "FAILED", FELL),
        ("COMPLETING None\n", "PREEMPTED", "KILLED", MADE_ROOM),
        ("RUNNING None\nRUNNING", "DEADLINE", "FAILED", LATE),
        ("RUNNING None\nRUNNING", "FAILED", "FAILED", "the job was ended by signal 15"),
    ],
)
def test_what_the_script_guessed_gives_way_to_what_slurm_says(
    said, state, status, words, client, run_id
):
    ended = reconcile.of_job(Job("7", state))
    reconcile.settle(client, run_id, reconcile.of_script(143, said), "7", [])

    for _ in range(2):
        assert reconcile.settle(client, run_id, ended, "7", []) == status

    run = client.get_run(run_id)
    assert (run.info.status, note(run)) == (status, f"SLURM job 7: {words}.")


def test_what_slurm_says_stays_whatever_it_says_later(client, run_id):
    reconcile.settle(client, run_id, reconcile.of_script(143, "COMPLETING TimeLimit\n"), "7", [])

    ended = reconcile.of_job(Job("7", "CANCELLED"))
    assert reconcile.settle(client, run_id, ended, "7", []) == "FAILED"


def test_second_ending_of_a_job_takes_the_place_of_the_first(client, run_id, tmp_path, monkeypatch):
    (tmp_path / "err").write_text("one\n\n```\n\ntwo\n")
    client.set_tag(run_id, "mlflow.note.content", "Mine.")
    reconcile.settle(client, run_id, Ending("KILLED", "first"), "7", [tmp_path / "err"])
    client.set_tag(run_id, "mlflow.note.content", note(client.get_run(run_id)) + "\n\nMine too.")
    (tmp_path / "err").unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    assert report.start(run_id, "7") == 0
    assert note(client.get_run(run_id)) == "Mine.\n\nMine too."
    reconcile.settle(client, run_id, Ending("FAILED", "second"), "7", [])

    assert note(client.get_run(run_id)) == "Mine.\n\nMine too.\n\nSLURM job 7: second."


def test_status_of_the_training_after_a_requeue_is_no_guess(client, run_id, monkeypatch):
    reconcile.settle(client, run_id, reconcile.of_script(143, "COMPLETING None\n"), "7", [])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    report.start(run_id, "7")
    client.set_terminated(run_id, "FAILED")

    ended = reconcile.of_job(Job("7", "CANCELLED"))
    assert reconcile.settle(client, run_id, ended, "7", []) == "FAILED"


def test_run_that_finished_says_nothing_of_an_earlier_ending(client, run_id):
    reconcile.settle(client, run_id, Ending("KILLED", "why"), "7;west", [])
    client.set_terminated(run_id, "FINISHED")

    reconcile.settle(client, run_id, Ending("FINISHED"), "7", [])

    assert note(client.get_run(run_id)) == ""
