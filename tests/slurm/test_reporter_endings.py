"""A run whose job ends more than once, or in a way that SLURM tells late."""

import shutil

import pytest
from mlflow.exceptions import MlflowException

from pyclassify.slurm import reporter
from pyclassify.slurm.states import STATES, Job
from pyclassify.slurm.status import (
    Outcome,
    apply_outcome,
    derive_outcome,
    derive_script_outcome,
)
from pyclassify.spool import records
from pyclassify.spool.uploader import Uploader
from tests.support.phrases import mentions
from tests.support.slurm_jobs import artifacts, note
from tests.support.stores import experiment_id

FELL, MADE_ROOM, LATE = (STATES[name].reason for name in ("NODE_FAIL", "PREEMPTED", "DEADLINE"))


@pytest.fixture
def client(store):
    return store


@pytest.fixture
def run_id(client):
    return client.create_run(experiment_id(client)).info.run_id


@pytest.fixture
def job(run_id, tmp_path, monkeypatch):
    """Have this process report of job 7 of the run, whose folder is `tmp_path`; gives the logs."""
    told = {"MLFLOW_RUN_ID": run_id, "SLURM_JOB_ID": "7", "PYCLASSIFY_SPOOL": f"{tmp_path}/spool"}
    told |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    logs = [tmp_path / "a-7.out", tmp_path / "a-7.err"]
    for log in logs:
        log.write_text(f"of {log.name}\n")
    return [*map(str, logs)]


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
    assert derive_script_outcome(143, said) == Outcome(status, words, "FAILED" not in said)


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
    outcome = derive_outcome(Job("7", state))
    apply_outcome(client, run_id, derive_script_outcome(143, said), "7", [])

    for _ in range(2):
        assert apply_outcome(client, run_id, outcome, "7", []) == status

    run = client.get_run(run_id)
    assert (run.info.status, note(run)) == (status, f"SLURM job 7: {words}.")


def test_what_slurm_says_stays_whatever_it_says_later(client, run_id):
    apply_outcome(client, run_id, derive_script_outcome(143, "COMPLETING TimeLimit\n"), "7", [])

    outcome = derive_outcome(Job("7", "CANCELLED"))
    assert apply_outcome(client, run_id, outcome, "7", []) == "FAILED"


def test_second_ending_of_a_job_takes_the_place_of_the_first(client, run_id, tmp_path, monkeypatch):
    (tmp_path / "err").write_text("one\n\n```\n\ntwo\n")
    client.set_tag(run_id, "mlflow.note.content", "Mine.")
    apply_outcome(client, run_id, Outcome("KILLED", "first"), "7", [tmp_path / "err"])
    client.set_tag(run_id, "mlflow.note.content", note(client.get_run(run_id)) + "\n\nMine too.")
    (tmp_path / "err").unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    assert reporter.report_start(run_id, "7", tmp_path) == 0
    assert note(client.get_run(run_id)) == "Mine.\n\nMine too."
    apply_outcome(client, run_id, Outcome("FAILED", "second"), "7", [])

    # the form of this message
    assert note(client.get_run(run_id)) == "Mine.\n\nMine too.\n\nSLURM job 7: second."


def test_status_of_the_training_after_a_requeue_is_no_guess(client, run_id, tmp_path, monkeypatch):
    apply_outcome(client, run_id, derive_script_outcome(143, "COMPLETING None\n"), "7", [])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    reporter.report_start(run_id, "7", tmp_path)
    client.set_terminated(run_id, "FAILED")

    outcome = derive_outcome(Job("7", "CANCELLED"))
    assert apply_outcome(client, run_id, outcome, "7", []) == "FAILED"


def test_run_that_finished_says_nothing_of_an_earlier_ending(client, run_id):
    apply_outcome(client, run_id, Outcome("KILLED", "why"), "7;west", [])
    client.set_terminated(run_id, "FINISHED")

    apply_outcome(client, run_id, Outcome("FINISHED"), "7", [])

    assert note(client.get_run(run_id)) == ""


def test_what_an_earlier_start_left_in_the_spool_does_not_undo_a_later_one(
    client, run_id, tmp_path, monkeypatch
):
    records.create_from_server(tmp_path / "spool", client, run_id)
    (tmp_path / "attempts").write_text("6 0 -\n")
    spool = reporter.open_spool(tmp_path / "spool")
    spool.update_run(run_id, status="SCHEDULED")  # the server was away
    spool.set_tag(run_id, "slurm_job_ids", "6")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    reporter.report_start(run_id, "7", tmp_path)
    Uploader(tmp_path / "spool" / run_id, client).upload()

    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    assert (run.data.tags["slurm_job_ids"], run.data.tags["slurm_restarts"]) == ("6,7", "1")


@pytest.mark.parametrize(
    ("attempts", "step", "limit", "code", "status", "facts"),
    [
        ("7 0 3\n", "5", "2", 75, "SCHEDULED", []),
        ("7 0 -\n", "", "2", 75, "SCHEDULED", []),  # the training does not say its steps
        ("6 0 1\n6 1 3\n7 0 3\n", "5", "2", 75, "SCHEDULED", []),  # job 6 had starts of its own
        ("7 0 3\n7 1", "5", "2", 75, "SCHEDULED", []),  # a line that a full disk cut off
        ("", "5", "1", 75, "SCHEDULED", []),
        ("7 0 5\n", "5", "2", 0, "FAILED", ["step 5", "resume {run_id} --time TIME`"]),
        (
            *("7 0 1\n7 1 3\n", "5", "2", 0, "FAILED"),
            ["2 times", '"requeue_attempts" is 2', "resume {run_id}`"],
        ),
    ],
)
def test_job_that_was_stopped_starts_again_while_it_gains_steps_and_has_starts_left(
    attempts, step, limit, code, status, facts, client, run_id, job, tmp_path
):
    (tmp_path / "attempts").write_text(attempts)
    (tmp_path / "progress").write_text(step)

    assert reporter.main(["end", "75", "RUNNING None\n", *job, limit]) == code

    run = client.get_run(run_id)
    assert run.info.status == status
    if facts:
        facts = [fact.format(run_id=run_id) for fact in facts]
        facts = ["SLURM job 7: ", f"`pyclassify slurm resume {run_id}", *facts]
    assert mentions(note(run), *facts)
    assert bool(note(run)) == bool(facts)


def test_job_without_a_file_of_its_starts_may_start_again(client, run_id, job):
    assert reporter.main(["end", "75", "RUNNING None\n", *job, "1"]) == 75

    assert client.get_run(run_id).info.status == "SCHEDULED"


@pytest.mark.parametrize(
    ("code", "status", "facts"),
    [
        ("0", "FINISHED", []),
        ("3", "FAILED", ["SLURM job 7: ", "exit code 3", "of a-7.err"]),
        ("75", "KILLED", ["SLURM job 7: ", "`pyclassify slurm resume {run_id}`", "of a-7.err"]),
    ],
)
def test_job_that_starts_once_gives_its_run_a_final_status(
    code, status, facts, client, run_id, job, capsys
):
    assert reporter.main(["end", code, "RUNNING None\n", *job]) == 0

    run = client.get_run(run_id)
    assert run.info.status == status
    assert mentions(note(run), *(fact.format(run_id=run_id) for fact in facts))
    assert artifacts(run) == {"slurm/a-7.out", "slurm/a-7.err"}
    assert mentions(capsys.readouterr().out, run_id, status)


def test_run_whose_job_slurm_does_not_start_again_failed(client, run_id, job):
    client.update_run(run_id, status="SCHEDULED")

    assert reporter.main(["refused", "Job is disabled", *job]) == 0

    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert mentions(note(run), "(Job is disabled)", f"`pyclassify slurm resume {run_id}`")
    assert artifacts(run) == {"slurm/a-7.out", "slurm/a-7.err"}


def test_start_is_told_with_the_job_and_where_it_is(client, run_id, job, monkeypatch):
    client.set_tag(run_id, "slurm_job_id", "7;west")  # as sbatch gave it
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "long")

    assert reporter.main(["start"]) == 0

    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    told = {name: text for name, text in run.data.tags.items() if name.startswith("slurm_")}
    assert told == {
        "slurm_job_id": "7;west",
        "slurm_job_ids": "7",
        "slurm_restarts": "0",
        "slurm_nodes": "n[1-2]",
        "slurm_partition": "long",
    }


def test_job_starts_nothing_while_an_older_one_of_its_run_lives(
    client, run_id, job, tmp_path, capsys
):
    client.update_run(run_id, status="SCHEDULED")

    assert reporter.main(["start", "6 RUNNING"]) == reporter.NOTHING_STARTED_EXIT_CODE

    said = capsys.readouterr().err
    assert mentions(said, run_id, "RUNNING", "`scancel 6`", f"`pyclassify slurm resume {run_id}`")
    assert client.get_run(run_id).info.status == "SCHEDULED"
    assert not (tmp_path / "attempts").exists()


@pytest.mark.parametrize("how", ["FINISHED", "FAILED", "KILLED", "deleted"])
def test_job_of_a_run_that_has_ended_starts_nothing(how, client, run_id, job, capsys):
    if how == "deleted":
        client.delete_run(run_id)
    else:
        client.set_terminated(run_id, how)
    before = client.get_run(run_id).to_dictionary()

    assert reporter.main(["start"]) == reporter.NOTHING_STARTED_EXIT_CODE

    assert mentions(capsys.readouterr().err, run_id, how)
    assert client.get_run(run_id).to_dictionary() == before


def test_end_that_no_server_hears_is_kept_and_delivered(
    client, run_id, job, tmp_path, monkeypatch, capsys
):
    records.create_from_server(tmp_path / "spool", client, run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")

    assert reporter.main(["end", "3", "RUNNING None\n", *job]) == 0

    said = capsys.readouterr().err
    assert mentions(said, f"`pyclassify sync {tmp_path}/spool`", "://***@127.0.0.1:9")
    assert "secret" not in said
    assert client.get_run(run_id).info.status == "RUNNING"
    Uploader(tmp_path / "spool" / run_id, client).upload()
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert mentions(note(run), "SLURM job 7: ", "exit code 3")
    logs = {each.path for each in client.list_artifacts(run_id, "slurm")}
    assert logs == {"slurm/a-7.out", "slurm/a-7.err"}


def test_end_that_no_server_hears_is_an_error_where_there_is_no_spool(
    run_id, job, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    with pytest.raises(MlflowException, match=r"127\.0\.0\.1"):
        reporter.main(["end", "3", "RUNNING None\n", *job])

    assert not (tmp_path / "spool").exists()


def test_run_that_the_server_does_not_have_is_an_error_and_not_kept(
    client, run_id, job, tmp_path, monkeypatch, empty_store
):
    records.create_from_server(tmp_path / "spool", client, run_id)
    spool = tmp_path / "spool" / run_id
    before = read_files(spool)
    (tmp_path / "other").mkdir()
    other = shutil.copy(empty_store, tmp_path / "other")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")

    with pytest.raises(MlflowException, match=run_id) as unknown:
        reporter.main(["end", "3", "RUNNING None\n", *job])

    assert unknown.value.error_code == "RESOURCE_DOES_NOT_EXIST"
    assert read_files(spool) == before


def read_files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
