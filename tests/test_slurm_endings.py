"""A run whose job ends more than once, or in a way that SLURM tells late."""

import pytest

from pyclassify.slurm import delivery, reconcile, report
from pyclassify.slurm.answers import Job
from pyclassify.slurm.reconcile import Ending
from pyclassify.slurm.states import STATES
from pyclassify.tracking.spool import target
from pyclassify.tracking.spool.courier import Courier
from tests.support.slurm_jobs import note
from tests.support.stores import experiment_id

FELL, MADE_ROOM, LATE = (STATES[name].words for name in ("NODE_FAIL", "PREEMPTED", "DEADLINE"))


@pytest.fixture
def client(store):
    return store


@pytest.fixture
def run_id(client):
    return client.create_run(experiment_id(client)).info.run_id


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

    assert report.start(run_id, "7", tmp_path) == 0
    assert note(client.get_run(run_id)) == "Mine.\n\nMine too."
    reconcile.settle(client, run_id, Ending("FAILED", "second"), "7", [])

    # the form of this message
    assert note(client.get_run(run_id)) == "Mine.\n\nMine too.\n\nSLURM job 7: second."


def test_status_of_the_training_after_a_requeue_is_no_guess(client, run_id, tmp_path, monkeypatch):
    reconcile.settle(client, run_id, reconcile.of_script(143, "COMPLETING None\n"), "7", [])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    report.start(run_id, "7", tmp_path)
    client.set_terminated(run_id, "FAILED")

    ended = reconcile.of_job(Job("7", "CANCELLED"))
    assert reconcile.settle(client, run_id, ended, "7", []) == "FAILED"


def test_run_that_finished_says_nothing_of_an_earlier_ending(client, run_id):
    reconcile.settle(client, run_id, Ending("KILLED", "why"), "7;west", [])
    client.set_terminated(run_id, "FINISHED")

    reconcile.settle(client, run_id, Ending("FINISHED"), "7", [])

    assert note(client.get_run(run_id)) == ""


def test_what_an_earlier_start_left_in_the_spool_does_not_undo_a_later_one(
    client, run_id, tmp_path, monkeypatch
):
    target.prepare(tmp_path / "spool", client, run_id)
    (tmp_path / "attempts").write_text("6 0 -\n")
    spool = delivery.open_spool(tmp_path / "spool")
    spool.update_run(run_id, status="SCHEDULED")  # the server was away
    spool.set_tag(run_id, "slurm_job_ids", "6")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    report.start(run_id, "7", tmp_path)
    Courier(tmp_path / "spool" / run_id, client).deliver()

    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert (run.data.tags["slurm_job_ids"], run.data.tags["slurm_restarts"]) == ("6,7", "1")
