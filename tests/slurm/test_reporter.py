"""The reports of a job's start and end, also of a requeued job."""

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
from tests.support.slurm_jobs import get_description, list_artifacts
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
    """Have this process report job 7 of the run, whose folder is `tmp_path`; returns the logs."""
    variables = {
        "MLFLOW_RUN_ID": run_id,
        "SLURM_JOB_ID": "7",
        "PYCLASSIFY_SPOOL": f"{tmp_path}/spool",
    }
    variables |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    logs = [tmp_path / "a-7.out", tmp_path / "a-7.err"]
    for log in logs:
        log.write_text(f"of {log.name}\n")
    return [*map(str, logs)]


def test_start_after_a_requeue_removes_the_first_reason(client, run_id, tmp_path, monkeypatch):
    (tmp_path / "err").write_text("one\n\n```\n\ntwo\n")
    client.set_tag(run_id, "mlflow.note.content", "Mine.")
    apply_outcome(client, run_id, Outcome("KILLED", "first"), "7", [tmp_path / "err"])
    client.set_tag(
        run_id, "mlflow.note.content", get_description(client.get_run(run_id)) + "\n\nMine too."
    )
    (tmp_path / "err").unlink()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")

    assert reporter.report_start(run_id, "7", tmp_path) == 0
    assert get_description(client.get_run(run_id)) == "Mine.\n\nMine too."
    apply_outcome(client, run_id, Outcome("FAILED", "second"), "7", [])

    # the form of this message
    assert get_description(client.get_run(run_id)) == "Mine.\n\nMine too.\n\nSLURM job 7: second."


def test_start_after_a_requeue_forgets_the_guess(client, run_id, tmp_path, monkeypatch):
    apply_outcome(client, run_id, derive_script_outcome(143, "COMPLETING None\n"), "7", [])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    reporter.report_start(run_id, "7", tmp_path)
    client.set_terminated(run_id, "FAILED")

    outcome = derive_outcome(Job("7", "CANCELLED"))
    assert apply_outcome(client, run_id, outcome, "7", []) == "FAILED"


def test_start_is_not_undone_by_earlier_records_in_the_spool(client, run_id, tmp_path, monkeypatch):
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
        ("7 0 -\n", "", "2", 75, "SCHEDULED", []),  # the training does not write its steps
        ("6 0 1\n6 1 3\n7 0 3\n", "5", "2", 75, "SCHEDULED", []),  # job 6 was restarted itself
        ("7 0 3\n7 1", "5", "2", 75, "SCHEDULED", []),  # a line that a full disk cut off
        ("", "5", "1", 75, "SCHEDULED", []),
        ("7 0 5\n", "5", "2", 0, "FAILED", ["step 5", "resume {run_id} --time TIME`"]),
        (
            *("7 0 1\n7 1 3\n", "5", "2", 0, "FAILED"),
            ["2 times", '"requeue_attempts" is 2', "resume {run_id}`"],
        ),
    ],
)
def test_end_after_a_stop_requeues_while_steps_are_gained_and_starts_left(
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
    assert mentions(get_description(run), *facts)
    assert bool(get_description(run)) == bool(facts)


def test_end_without_a_file_of_starts_requeues(client, run_id, job):
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
def test_end_without_requeue_sets_a_final_status(code, status, facts, client, run_id, job, capsys):
    assert reporter.main(["end", code, "RUNNING None\n", *job]) == 0

    run = client.get_run(run_id)
    assert run.info.status == status
    assert mentions(get_description(run), *(fact.format(run_id=run_id) for fact in facts))
    assert list_artifacts(run) == {"slurm/a-7.out", "slurm/a-7.err"}
    assert mentions(capsys.readouterr().out, run_id, status)


def test_refused_requeue_fails_the_run(client, run_id, job):
    client.update_run(run_id, status="SCHEDULED")

    assert reporter.main(["refused", "Job is disabled", *job]) == 0

    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert mentions(
        get_description(run), "(Job is disabled)", f"`pyclassify slurm resume {run_id}`"
    )
    assert list_artifacts(run) == {"slurm/a-7.out", "slurm/a-7.err"}


def test_start_tags_the_job_and_its_nodes(client, run_id, job, monkeypatch):
    client.set_tag(run_id, "slurm_job_id", "7;west")  # as sbatch gave it
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    monkeypatch.setenv("SLURM_JOB_PARTITION", "long")

    assert reporter.main(["start"]) == 0

    run = client.get_run(run_id)
    assert run.info.status == "RUNNING"
    tags = {name: text for name, text in run.data.tags.items() if name.startswith("slurm_")}
    assert tags == {
        "slurm_job_id": "7;west",
        "slurm_job_ids": "7",
        "slurm_restarts": "0",
        "slurm_nodes": "n[1-2]",
        "slurm_partition": "long",
    }


def test_start_beside_an_older_job_starts_nothing(client, run_id, job, tmp_path, capsys):
    client.update_run(run_id, status="SCHEDULED")

    assert reporter.main(["start", "6 RUNNING"]) == reporter.NOTHING_STARTED_EXIT_CODE

    stderr = capsys.readouterr().err
    assert mentions(stderr, run_id, "RUNNING", "`scancel 6`", f"`pyclassify slurm resume {run_id}`")
    assert client.get_run(run_id).info.status == "SCHEDULED"
    assert not (tmp_path / "attempts").exists()


@pytest.mark.parametrize("how", ["FINISHED", "FAILED", "KILLED", "deleted"])
def test_start_of_an_ended_run_starts_nothing(how, client, run_id, job, capsys):
    if how == "deleted":
        client.delete_run(run_id)
    else:
        client.set_terminated(run_id, how)
    before = client.get_run(run_id).to_dictionary()

    assert reporter.main(["start"]) == reporter.NOTHING_STARTED_EXIT_CODE

    assert mentions(capsys.readouterr().err, run_id, how)
    assert client.get_run(run_id).to_dictionary() == before


def test_end_with_the_server_away_is_spooled_and_uploaded(
    client, run_id, job, tmp_path, monkeypatch, capsys
):
    records.create_from_server(tmp_path / "spool", client, run_id)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")

    assert reporter.main(["end", "3", "RUNNING None\n", *job]) == 0

    stderr = capsys.readouterr().err
    assert mentions(stderr, f"`pyclassify sync {tmp_path}/spool`", "://***@127.0.0.1:9")
    assert "secret" not in stderr
    assert client.get_run(run_id).info.status == "RUNNING"
    Uploader(tmp_path / "spool" / run_id, client).upload()
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert mentions(get_description(run), "SLURM job 7: ", "exit code 3")
    logs = {each.path for each in client.list_artifacts(run_id, "slurm")}
    assert logs == {"slurm/a-7.out", "slurm/a-7.err"}


def test_end_with_the_server_away_and_no_spool_raises(run_id, job, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    with pytest.raises(MlflowException, match=r"127\.0\.0\.1"):
        reporter.main(["end", "3", "RUNNING None\n", *job])

    assert not (tmp_path / "spool").exists()


def test_end_of_a_run_unknown_to_the_server_raises_and_spools_nothing(
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
