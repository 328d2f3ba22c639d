"""`SlurmRun` and its commands, also where a job ended silently or SLURM does not have it."""

import getpass
from types import SimpleNamespace

import pytest

from pyclassify.cli import main
from pyclassify.slurm import client as programs
from pyclassify.slurm import submitted_run
from pyclassify.slurm.states import STATES
from pyclassify.slurm.submitted_run import SlurmRun, make_job_logs
from tests.support import slurm_jobs
from tests.support.phrases import mentions
from tests.support.slurm_jobs import get_description, make_program, make_program_in_turn
from tests.support.stores import experiment_id

GONE = make_program(stderr="slurm_load_jobs error: Invalid job id specified\n", code=1)
DOWN = ("", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n", 1)
LIMIT = STATES["TIMEOUT"].reason
PENDING, RUNNING = ("4|PENDING|BeginTime||0:00\n",), ("4|RUNNING|None|n1|0:01\n",)


@pytest.fixture
def put(monkeypatch, tmp_path):
    """Put a program in the place of one of SLURM's; squeue has no job, and sacct's 4 timed out."""
    monkeypatch.setattr(programs, "RETRY_DELAYS_SECONDS", ())
    monkeypatch.setattr("pyclassify.slurm.cli._LOG_POLL_SECONDS", 0.0)
    slurm_jobs.prepend_to_path(monkeypatch, tmp_path)
    slurm_jobs.write_program(tmp_path, "squeue", GONE)
    slurm_jobs.write_program(tmp_path, "scancel", GONE)
    slurm_jobs.write_program(tmp_path, "sacct", slurm_jobs.make_sacct("2.6.5"))
    return lambda name, *answers: slurm_jobs.write_program(
        tmp_path, name, make_program_in_turn(tmp_path / f"{name}.turn", *answers)
    )


@pytest.fixture
def client(put, store):
    return store


@pytest.fixture
def running(client, tmp_path):
    """Make a RUNNING run of a job; returns its id."""

    def make(job_id="4"):
        tags = {"slurm_folder": str(tmp_path), "slurm_job_id": job_id}
        tags["slurm_output"] = f"{tmp_path}/%x-%j-%N.out"
        run_id = client.create_run(experiment_id(client), tags=tags).info.run_id
        client.update_run(run_id, status="RUNNING")
        return run_id

    return make


def run_command(capsys, *argv):
    code = main.main(["slurm", *argv])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_cancel_of_an_ended_job_prints_its_state(running, client, capsys):
    run_id = running()

    # the form of this message
    assert run_command(capsys, "cancel", run_id)[1] == (
        f"run {run_id}: FAILED\njob 4: already ended (TIMEOUT)\n"
    )
    assert "time limit" in get_description(client.get_run(run_id))


def test_cancel_of_a_job_without_a_record_sets_the_run_killed(running, client, capsys):
    run_id = running("99")

    assert run_command(capsys, "cancel", run_id)[1] == (
        f"run {run_id}: KILLED\njob 99: SLURM has no record of it\n"
    )
    by = f"KILLED by {getpass.getuser()}"
    assert mentions(get_description(client.get_run(run_id)), "SLURM job 99: ", "no record", by)


def test_cancel_with_squeue_unavailable_cancels(running, client, put, capsys):
    run_id = running()
    put("squeue", DOWN)
    put("sacct", DOWN)

    assert "job 4: cancelled" in run_command(capsys, "cancel", run_id)[1]
    assert client.get_run(run_id).info.status == "KILLED"


@pytest.mark.parametrize(
    ("answers", "status"),
    [((PENDING, RUNNING), "RUNNING"), ((PENDING, DOWN), "RUNNING"), ((PENDING,), "SCHEDULED")],
    ids=["started since", "silent since", "requeued"],
)
def test_get_status_is_scheduled_again_only_after_a_requeue(answers, status, running, client, put):
    submitted = SlurmRun(running(), "4")
    put("squeue", *answers)

    assert submitted.get_status() == status
    assert client.get_run(submitted.run_id).info.status == status


def test_get_status_leaves_a_status_set_meanwhile(running, client, put, monkeypatch):
    submitted = SlurmRun(running(), "4")
    put("squeue", PENDING)
    poll_job = submitted.poll_job

    def end_and_poll():
        client.set_terminated(submitted.run_id, "FINISHED")
        return poll_job()

    monkeypatch.setattr(submitted, "poll_job", end_and_poll)

    assert submitted.get_status() == "FINISHED"
    assert client.get_run(submitted.run_id).info.status == "FINISHED"


def test_logs_are_followed_with_the_controller_unavailable(running, put, tmp_path, capsys):
    (tmp_path / "-4-n1.out").write_text("one\n")
    put("squeue", DOWN, ("4|TIMEOUT|TimeLimit|n1|1:00\n",))
    put("sacct", DOWN)

    assert run_command(capsys, "logs", "-f", running())[:2] == (0, "one\n")


def test_job_logs_read_a_log_truncated_by_a_requeue_from_its_beginning(running, client, tmp_path):
    logs = make_job_logs(client.get_run(running()).data.tags, "4")
    log = tmp_path / "-4-n1.out"

    log.write_text("the first attempt\n")
    assert [*logs.read_new()] == ["the first attempt\n"]
    log.write_text("again\n")
    assert [*logs.read_new()] == ["again\n"]
    assert [*logs.read_new()] == []


def test_job_logs_read_whole_lines_and_bars_before_the_end(running, client, tmp_path):
    logs = make_job_logs(client.get_run(running()).data.tags, "4")
    log = tmp_path / "-4-n1.out"

    log.write_text("epoch 1/2: val_acc")
    assert [*logs.read_new()] == []
    log.write_text("epoch 1/2: val_accuracy 0.5\nbar: 1/9\rbar: 2/9")
    assert [*logs.read_new()] == ["epoch 1/2: val_accuracy 0.5\nbar: 1/9\rbar: 2/9"]
    log.write_text(log.read_text() + "\nkilled")
    assert [*logs.read_new()] == ["\n"]
    assert [*logs.read_new(is_last=True)] == ["killed"]


def test_status_of_an_ended_job_without_a_log_has_the_expected_path(running, tmp_path, capsys):
    run_id = running()
    where = f"no log: check that SLURM can write {tmp_path}/-4-*.out\n"

    status = run_command(capsys, "status", run_id)[1]

    assert status.endswith(f"job 4: TIMEOUT, {LIMIT}, 00:01:11\n{where}")
    assert run_command(capsys, "logs", run_id)[2].endswith(f"the run {run_id} has {where}")


def test_logs_of_a_waiting_job_fail(running, put, capsys):
    put("squeue", PENDING)

    assert mentions(run_command(capsys, "logs", running())[2], "no log yet", "not started")


def test_logs_of_a_cleared_folder_are_the_artifacts(running, client, capsys):
    run_id = running()
    files = {"job.sh": "#!/bin/bash\n", "backend_config.json": "{}", "a-4.out": "one\n"}
    for name, text in {**files, "a-4.err": "two\n"}.items():
        client.log_text(run_id, text, f"slurm/{name}")

    assert run_command(capsys, "logs", run_id) == (0, "two\none\n", "")


def test_cancel_leaves_a_run_that_has_ended_as_it_is(running, client, put, capsys):
    run_id = running()
    client.set_terminated(run_id, "FINISHED")
    put("squeue", RUNNING)

    assert run_command(capsys, "cancel", run_id)[:2] == (
        0,
        f"run {run_id}: FINISHED\njob 4: cancelled\n",
    )
    assert get_description(client.get_run(run_id)) == ""


def test_status_of_an_ended_run_passes_with_a_forgotten_job(running, client, capsys):
    run_id = running("99")
    client.set_terminated(run_id, "KILLED")

    assert run_command(capsys, "status", run_id)[:2] == (
        0,
        f"run {run_id}: KILLED\njob 99: SLURM has no record of it\n",
    )


def test_job_of_a_run_whose_submission_was_killed_is_found_by_its_folder(
    running, client, tmp_path, capsys
):
    run_id = running()
    client.delete_tag(run_id, "slurm_job_id")
    client.update_run(run_id, status="SCHEDULED")
    rows = f"print('5|{tmp_path}' if '%Z' in sys.argv[-1] else '5|PENDING|Priority||0:00')"
    slurm_jobs.write_program(tmp_path, "squeue", f"import sys\n{rows}")

    assert run_command(capsys, "status", run_id)[:2] == (
        0,
        f"run {run_id}: SCHEDULED\njob 5: PENDING, Priority, 0:00\n",
    )


def test_logs_of_a_killed_resume_are_those_of_its_new_job(running, client, tmp_path, capsys):
    run_id = running("")
    client.set_tag(run_id, "slurm_job_ids", "4,5")
    client.update_run(run_id, status="SCHEDULED")
    for job_id in (5, 6):
        (tmp_path / f"-{job_id}-n1.out").write_text(f"of job {job_id}\n")
    folders = f"'5|{tmp_path}\\n6|{tmp_path}\\n'"
    rows = f"print({folders} if '%Z' in sys.argv[-1] else '6|RUNNING|None|n1|0:01')"
    slurm_jobs.write_program(tmp_path, "squeue", f"import sys\n{rows}")

    status = run_command(capsys, "status", run_id)[1]

    assert mentions(status, "job 6: RUNNING", f"log: {tmp_path}/-6-n1.out")
    assert run_command(capsys, "logs", run_id) == (0, "of job 6\n", "")


def test_job_before_a_killed_resume_is_not_its_own(running, client, tmp_path, capsys):
    run_id = running("")
    client.set_tag(run_id, "slurm_job_ids", "4")
    client.update_run(run_id, status="SCHEDULED")
    slurm_jobs.write_program(tmp_path, "squeue", make_program(f"4|{tmp_path}\n"))

    code, _, error = run_command(capsys, "status", run_id)

    assert code == 1
    assert mentions(error, run_id, "has no job: ")
    assert client.get_run(run_id).info.status == "SCHEDULED"


def test_status_of_a_forgotten_job_fails_and_names_the_folder(running, client, tmp_path, capsys):
    run_id = running("99")

    code, _, error = run_command(capsys, "status", run_id)

    assert code == 1
    assert mentions(error, "squeue has no job 99", "sacct has no job 99", "RUNNING")
    assert mentions(error, tmp_path, f"`pyclassify slurm cancel {run_id}`")
    assert client.get_run(run_id).info.status == "RUNNING"


def wait_with(put, running, monkeypatch, *answers):
    """Wait for a job by squeue's answers; returns what is warned of."""
    warned = []
    logger = SimpleNamespace(info=print, warning=lambda form, *args: warned.append(form % args))
    monkeypatch.setattr(submitted_run, "_logger", logger)
    monkeypatch.setattr(submitted_run, "_MIN_POLL_SECONDS", 0.0)
    put("squeue", *[(f"4|{state}|{reason}||0:00\n",) for state, reason in answers])
    submitted = SlurmRun(running(), "4", verbose=True)
    submitted.wait()
    return warned


def test_wait_for_a_job_that_never_starts_says_once_what_to_change(put, running, monkeypatch):
    answers = [
        *[("PENDING", "None"), ("PENDING", "Priority"), ("PENDING", "PartitionTimeLimit")],
        *[("PENDING", "PartitionTimeLimit"), ("PENDING", "QOSMaxGRESPerJob")],
        *[("PENDING", "PartitionTimeLimit"), ("COMPLETED", "None")],
    ]
    warned = wait_with(put, running, monkeypatch, *answers)

    assert len(warned) == 2
    cancel = "`pyclassify slurm cancel "
    assert mentions(warned[0], "job 4 ", "PartitionTimeLimit", '"time"', '"partition"', cancel)
    assert mentions(warned[1], "job 4 ", "QOSMaxGRESPerJob", "-P devices", '"qos"', cancel)


def test_wait_for_a_job_that_waits_its_turn_warns_of_nothing(put, running, monkeypatch):
    answers = [("PENDING", "Priority"), ("PENDING", "Resources"), ("COMPLETED", "None")]
    assert wait_with(put, running, monkeypatch, *answers) == []


def test_status_of_a_job_that_never_starts_says_what_to_change(put, running, capsys):
    put("squeue", ("4|PENDING|AssocGrpGRESMinutes||0:00\n",))
    run_id = running()

    assert mentions(run_command(capsys, "status", run_id)[1], "AssocGrpGRESMinutes", '"account"')


def test_status_of_a_job_that_was_interrupted_is_killed(put, running, capsys, tmp_path):
    put("squeue", ("4|COMPLETED|None|n1|0:09\n",))
    put("sacct", DOWN)
    (tmp_path / "interrupted").touch()
    run_id = running()

    output = run_command(capsys, "status", run_id)[1]

    assert mentions(output, f"run {run_id}: KILLED", f"`pyclassify slurm resume {run_id}`")
