"""`pyclassify slurm reconcile`: the status of all runs by what accounting has of their jobs."""

import os
import sqlite3
import sys
import time

import mlflow
import pytest

from pyclassify.cli.main import main
from pyclassify.slurm import client
from tests.support import slurm_jobs
from tests.support.phrases import mentions
from tests.support.slurm_jobs import (
    get_description,
    list_artifacts,
    make_program,
    make_program_in_turn,
)
from tests.support.stores import experiment_id


@pytest.fixture
def store(store, tmp_path, monkeypatch):
    """An `MlflowClient`; nothing waits between tries at SLURM."""
    monkeypatch.setattr(client, "RETRY_DELAYS_SECONDS", (0.0,))
    (tmp_path / "bin").mkdir()
    slurm_jobs.prepend_to_path(monkeypatch, tmp_path / "bin")
    return store


@pytest.fixture
def answer(tmp_path):
    """Have sacct print rows, and squeue have no job; returns how often sacct was run."""

    def put(*rows):
        text = "".join(f"{row}\n" for row in rows)
        slurm_jobs.write_program(
            tmp_path / "bin", "sacct", make_program_in_turn(tmp_path / "asked", (text,))
        )
        gone = make_program(stderr="slurm_load_jobs error: Invalid job id specified\n", code=1)
        slurm_jobs.write_program(tmp_path / "bin", "squeue", gone)
        return lambda: int((tmp_path / "asked").read_text())

    return put


def make(store, folder, job_id, status="RUNNING", start_time=None):
    """Make a run whose job was submitted an hour ago, or at another time."""
    began = start_time or int((time.time() - 3600) * 1000)
    tags = {"slurm_folder": str(folder), "slurm_job_id": str(job_id)}
    run_id = store.create_run(experiment_id(store), start_time=began, tags=tags).info.run_id
    store.update_run(run_id, status=status)
    return run_id


def row(job_id, state, start=0, seconds=60, gpus=0, step="", memory=""):
    """A row of sacct: submitted 30 minutes ago, started `start` seconds later."""
    submit = int(time.time() - 1800)
    allocated = f"cpu=1,gres/gpu={gpus},node=1" if gpus else "cpu=1,node=1"
    began = submit + start if seconds else "None"
    name = f"{job_id}.{step}" if step else job_id
    return f"{name}|{state}|0:0|n1|{seconds}|{submit}|{began}|{allocated}|{memory}"


@pytest.mark.parametrize(
    ("state", "status", "reason"),
    [
        ("COMPLETED", "FINISHED", ""),
        ("TIMEOUT", "FAILED", "time limit"),
        ("OUT_OF_MEMORY", "FAILED", "memory"),
        ("NODE_FAIL", "FAILED", "node of the job"),
        ("PREEMPTED", "KILLED", "preempted"),
        ("CANCELLED by 0", "KILLED", "cancelled by root"),
        ("BOOT_FAIL", "FAILED", "did not boot"),
        ("DEADLINE", "FAILED", "deadline"),
    ],
)
@pytest.mark.parametrize("before", ["SCHEDULED", "RUNNING", "FINISHED"])
def test_run_gets_the_status_of_its_job(
    store, answer, tmp_path, capsys, state, status, reason, before
):
    run_id = make(store, tmp_path, 7, before)
    answer(row(7, state))

    assert main(["slurm", "reconcile"]) == 0

    run = store.get_run(run_id)
    assert (run.info.status, run.data.tags["slurm_state"]) == (status, state.split()[0])
    assert reason in run.data.tags.get("mlflow.note.content", "")
    changed = f": {before} -> {status}" if status != before else "1 runs checked, 0 changed"
    assert changed in capsys.readouterr().out


@pytest.mark.parametrize("before", ["RUNNING", "FINISHED"])
@pytest.mark.parametrize(("state", "status"), [("COMPLETED", "KILLED"), ("TIMEOUT", "FAILED")])
def test_run_whose_training_was_interrupted_is_not_finished(
    store, answer, tmp_path, state, status, before
):
    run_id = make(store, tmp_path, 7, before)
    (tmp_path / "interrupted").touch()
    answer(row(7, state))

    assert main(["slurm", "reconcile"]) == 0

    run = store.get_run(run_id)
    assert run.info.status == status
    resume = f"`pyclassify slurm resume {run_id}`"
    assert (resume in get_description(run)) == (status == "KILLED")


def test_metrics_of_all_attempts_are_logged_once(store, answer, tmp_path):
    run_id = make(store, tmp_path, 7)
    answer(
        row(7, "REQUEUED", start=10, seconds=1000, gpus=2),
        row(7, "CANCELLED", step="0", memory="2048K"),
        row(7, "COMPLETED", start=30, seconds=800, gpus=2),
        row(7, "COMPLETED", step="0", memory="1.5G"),
    )

    main(["slurm", "reconcile"])
    main(["slurm", "reconcile"])

    assert store.get_run(run_id).data.metrics == {
        "attempts": 2,
        "elapsed_seconds": 1800,
        "gpu_hours": 1.0,
        "max_rss_mb": 1610.6,
        "queue_seconds": 40,
    }
    assert len(store.get_metric_history(run_id, "gpu_hours")) == 1


def test_dry_run_changes_nothing(store, answer, tmp_path, capsys):
    run_id = make(store, tmp_path, 7)
    answer(row(7, "TIMEOUT"))
    before = store.get_run(run_id).to_dictionary()

    main(["slurm", "reconcile", "--dry-run"])

    assert store.get_run(run_id).to_dictionary() == before
    out = capsys.readouterr().out
    (line,) = [each for each in out.splitlines() if run_id in each]
    assert line.startswith(f"run {run_id} ({before['info']['run_name']}): RUNNING -> FAILED, ")
    assert "time limit" in line
    assert "1 runs checked, 1 would change" in out


@pytest.mark.parametrize(("here", "status"), [(True, "FAILED"), (False, "RUNNING")])
def test_forgotten_job_fails_its_run_on_its_own_cluster_alone(
    store, answer, tmp_path, here, status
):
    run_id = make(store, tmp_path if here else "/of/another/cluster", 7)
    answer()

    main(["slurm", "reconcile"])

    assert store.get_run(run_id).info.status == status


def test_job_id_reused_since_is_another_jobs(store, answer, tmp_path):
    run_id = make(store, "/of/another/cluster", 7)
    years_ago = row(7, "TIMEOUT").replace(str(int(time.time() - 1800)), "1400000000")
    answer(years_ago)

    main(["slurm", "reconcile"])

    assert store.get_run(run_id).info.status == "RUNNING"


def test_runs_under_a_run_end_with_its_job(store, answer, tmp_path):
    run_id = make(store, tmp_path, 7)
    experiment = store.get_run(run_id).info.experiment_id
    child = store.create_run(experiment, tags={"mlflow.parentRunId": run_id}).info.run_id
    answer(row(7, "TIMEOUT"))

    main(["slurm", "reconcile"])

    assert store.get_run(child).info.status == "FAILED"


def test_dry_run_names_the_runs_under_a_run_and_ends_none(store, answer, tmp_path, capsys):
    run_id = make(store, tmp_path, 7)
    experiment = store.get_run(run_id).info.experiment_id
    open_yet, ended = (
        store.create_run(experiment, tags={"mlflow.parentRunId": run_id}).info.run_id
        for _ in range(2)
    )
    store.set_terminated(ended, "FINISHED")
    answer(row(7, "TIMEOUT"))

    main(["slurm", "reconcile", "--dry-run"])

    out = capsys.readouterr().out
    assert mentions(out, run_id, open_yet, "1 runs checked, 2 would change")
    assert ended not in out
    status = {each: store.get_run(each).info.status for each in (run_id, open_yet, ended)}
    assert status == {run_id: "RUNNING", open_yet: "RUNNING", ended: "FINISHED"}
    main(["slurm", "reconcile"])
    status = {each: store.get_run(each).info.status for each in (run_id, open_yet, ended)}
    assert status == {run_id: "FAILED", open_yet: "FAILED", ended: "FINISHED"}


@pytest.mark.parametrize(
    ("before", "state", "status"),
    [
        ("RUNNING", "PENDING", "SCHEDULED"),
        ("SCHEDULED", "RUNNING", "RUNNING"),
        ("RUNNING", "COMPLETING", "RUNNING"),
        ("FAILED", "RUNNING", "FAILED"),  # the training has set it
    ],
)
@pytest.mark.parametrize("known_by", ["squeue", "sacct"])
def test_run_of_a_job_that_has_not_ended_waits_or_runs_with_it(
    store, answer, tmp_path, capsys, before, state, status, known_by
):
    run_id = make(store, tmp_path, 7, before)
    answer(*([row(7, state)] if known_by == "sacct" else []))
    if known_by == "squeue":
        queued = make_program(f"7|{state}|None|n1|0:05\n8|RUNNING|None|n2|0:05\n")
        slurm_jobs.write_program(tmp_path / "bin", "squeue", queued)

    main(["slurm", "reconcile", "--dry-run"])
    would, now = capsys.readouterr().out, store.get_run(run_id).info.status
    main(["slurm", "reconcile"])

    assert now == before
    assert (f": {before} -> {status}\n" in would) == (before != status)
    run = store.get_run(run_id)
    assert run.info.status == status
    assert "slurm_state" not in run.data.tags  # so the next call checks the run
    assert run.data.metrics == {}


def test_state_is_that_of_the_last_attempt_in_any_order(store, answer, tmp_path):
    run_id = make(store, tmp_path, 7)
    first = row(7, "REQUEUED", start=10, seconds=100).split("|")
    first[5:7] = (str(int(each) - 600) for each in first[5:7])
    answer(row(7, "COMPLETED", start=30, seconds=800), "|".join(first))

    main(["slurm", "reconcile"])

    run = store.get_run(run_id)
    assert (run.info.status, run.data.tags["slurm_state"]) == ("FINISHED", "COMPLETED")
    assert run.data.metrics["queue_seconds"] == 40
    assert run.data.metrics["elapsed_seconds"] == 900


def test_job_of_a_run_whose_submission_was_killed_is_found_by_its_folder(store, answer, tmp_path):
    run_id = make(store, tmp_path / "run", 7, "SCHEDULED")
    store.delete_tag(run_id, "slurm_job_id")
    answer(row(6, "COMPLETED"), row(7, "TIMEOUT"))
    queued = make_program(f"6|{tmp_path}/other\n7|{tmp_path}/run\n")
    slurm_jobs.write_program(tmp_path / "bin", "squeue", queued)

    main(["slurm", "reconcile"])

    run = store.get_run(run_id)
    assert (run.info.status, run.data.tags["slurm_state"]) == ("FAILED", "TIMEOUT")


@pytest.fixture
def resumed(store, answer, tmp_path):
    """Make a run whose resume was killed: its first job was 6, whose end sacct has too."""

    def make_resumed(queued=(), status="SCHEDULED", submitted=0.0):
        folder = tmp_path / "run"
        folder.mkdir()
        (folder / "job.sh").touch()
        os.utime(folder / "job.sh", (time.time() - submitted,) * 2)
        run_id = make(store, folder, "", status)
        store.set_tag(run_id, "slurm_job_ids", "5,6")
        store.set_tag(run_id, "slurm_error", f"{folder}/%j.err")
        folders = "".join(f"{each.partition('|')[0]}|{folder}\n" for each in queued)
        states = "".join(f"{each}\n" for each in queued)
        rows = f"print({folders!r} if '%Z' in sys.argv[-1] else {states!r}, end='')"
        slurm_jobs.write_program(tmp_path / "bin", "squeue", f"import sys\n{rows}")
        return run_id

    return make_resumed


ENDED = "6|TIMEOUT|TimeLimit|n1|1:00"


@pytest.mark.parametrize(("state", "status"), [("PENDING", "SCHEDULED"), ("RUNNING", "RUNNING")])
def test_job_of_a_killed_resume_is_found_by_its_folder(
    store, answer, resumed, tmp_path, state, status
):
    answer(row(6, "TIMEOUT"))
    run_id = resumed([ENDED, f"8|{state}|Priority||0:00"], submitted=3600.0)

    assert main(["slurm", "reconcile"]) == 0
    assert main(["slurm", "reconcile"]) == 0

    run = store.get_run(run_id)
    assert (run.info.status, get_description(run)) == (status, "")
    assert not run.data.tags.get("slurm_state")  # so the next call checks the run


@pytest.mark.parametrize(
    ("submitted", "status", "state"), [(5.0, "SCHEDULED", ""), (3600.0, "FAILED", "UNKNOWN")]
)
def test_resume_without_a_job_is_lost_after_a_while_and_not_the_job_before(
    store, answer, resumed, tmp_path, submitted, status, state
):
    answer(row(6, "COMPLETED"))
    run_id = resumed([ENDED], submitted=submitted)

    assert main(["slurm", "reconcile"]) == 0

    run = store.get_run(run_id)
    assert (run.info.status, run.data.tags.get("slurm_state", "")) == (status, state)
    lost = "SLURM job: SLURM has no record of the job, so how it ended is unknown."
    assert get_description(run) == (lost if state else "")


def test_job_found_by_its_folder_is_named_with_its_logs(store, answer, resumed, tmp_path):
    run_id = resumed([ENDED, "8|NODE_FAIL|NodeDown|n1|0:05"])
    (tmp_path / "run" / "8.err").write_text("the last line\n")
    answer(row(8, "NODE_FAIL"))
    folder = tmp_path / "run"
    slurm_jobs.write_program(tmp_path / "bin", "squeue", make_program(f"6|{folder}\n8|{folder}\n"))

    main(["slurm", "reconcile"])

    run = store.get_run(run_id)
    assert get_description(run).startswith("SLURM job 8: a node of the job failed")
    assert mentions(get_description(run), "the last line")
    assert list_artifacts(run) == {"slurm/8.err"}


def test_run_that_is_resumed_while_slurm_is_asked_stays(store, answer, tmp_path, monkeypatch):
    run_id = make(store, tmp_path, 7)
    answer(row(7, "TIMEOUT"))
    list_accounting = client.list_accounting

    def list_and_resume(*args):
        accounting = list_accounting(*args)
        store.update_run(run_id, status="SCHEDULED")
        store.set_tag(run_id, "slurm_job_id", "")
        return accounting

    monkeypatch.setattr(client, "list_accounting", list_and_resume)

    assert main(["slurm", "reconcile"]) == 0

    run = store.get_run(run_id)
    assert (run.info.status, get_description(run)) == ("SCHEDULED", "")
    assert not run.data.tags.get("slurm_state")


def test_metrics_of_an_ended_job_wait_until_accounting_has_it(store, answer, tmp_path):
    run_id = make(store, tmp_path, 7)
    answer()
    slurm_jobs.write_program(
        tmp_path / "bin", "squeue", make_program("7|TIMEOUT|TimeLimit|n1|1:00\n")
    )

    main(["slurm", "reconcile"])
    main(["slurm", "reconcile"])

    run = store.get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("FAILED", {})
    assert get_description(run).count("time limit") == 1
    assert not run.data.tags.get("slurm_state")  # so the next call checks the run
    (tmp_path / "asked").unlink()
    answer(row(7, "TIMEOUT", gpus=1))
    main(["slurm", "reconcile"])
    run = store.get_run(run_id)
    assert (run.info.status, run.data.tags["slurm_state"]) == ("FAILED", "TIMEOUT")
    assert (run.data.metrics["attempts"], run.data.metrics["elapsed_seconds"]) == (1, 60)
    assert len(store.get_metric_history(run_id, "attempts")) == 1


def test_job_that_slurm_does_not_have_yet_is_not_lost(store, answer, tmp_path):
    run_id = make(store, tmp_path, 7, "SCHEDULED", start_time=int(time.time() * 1000))
    answer()

    main(["slurm", "reconcile"])

    run = store.get_run(run_id)
    assert run.info.status == "SCHEDULED"
    assert "slurm_state" not in run.data.tags


def test_runs_are_listed_beyond_the_first_page(store, answer, tmp_path, capsys):
    run_id = make(store, tmp_path, 7)
    fill(tmp_path / "mlflow.db", run_id, 1000)  # of what a store gives at once
    answer(row(7, "TIMEOUT"))

    main(["slurm", "reconcile"])

    assert "1 runs checked, 1 changed" in capsys.readouterr().out
    assert store.get_run(run_id).info.status == "FAILED"


def fill(database, run_id, count):
    """Copy a run many times, each newer and with the final state of its job."""
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
    with sqlite3.connect(database) as connection:
        columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(runs)")]
        made = {"run_uuid": "printf('%032d', i)", "start_time": "start_time + i"}
        values = ", ".join(made.get(name, f'"{name}"') for name in columns)
        connection.execute(
            f"INSERT INTO runs {numbers} SELECT {values} FROM runs, n WHERE run_uuid = ?",
            (count, run_id),
        )
        for name, text in (("slurm_folder", "/of/another"), ("slurm_state", "COMPLETED")):
            connection.execute(
                f"INSERT INTO tags (key, value, run_uuid) {numbers}"
                " SELECT ?, ?, printf('%032d', i) FROM n",
                (count, name, text),
            )
    connection.close()


@pytest.mark.parametrize("program", ["sacct", "squeue"])
def test_nothing_changes_where_slurm_refuses(store, answer, tmp_path, capsys, program):
    run_id = make(store, tmp_path, 7)
    answer()
    denied = make_program(stderr=f"{program}: error: Access denied\n", code=1)
    slurm_jobs.write_program(tmp_path / "bin", program, denied)

    assert main(["slurm", "reconcile"]) == 1

    assert mentions(capsys.readouterr().err, "Access denied")
    assert store.get_run(run_id).info.status == "RUNNING"


def test_nothing_changes_where_slurm_does_not_answer(store, tmp_path, capsys):
    run_id = make(store, tmp_path, 7)
    down = "sacct: error: slurm_persist_conn_open: Unable to connect to SlurmDBD\n"
    slurm_jobs.write_program(tmp_path / "bin", "sacct", make_program(stderr=down, code=1))

    assert main(["slurm", "reconcile"]) == 1

    assert "SlurmDBD" in capsys.readouterr().err
    assert store.get_run(run_id).info.status == "RUNNING"


def test_accounting_is_asked_once_for_many_runs(store, answer, tmp_path):
    runs = [make(store, tmp_path, 1000 + n, "FINISHED") for n in range(100)]
    asked = answer(*(row(1000 + n, "COMPLETED") for n in range(100)))

    main(["slurm", "reconcile"])

    assert asked() == 1
    assert {store.get_run(each).data.tags["slurm_state"] for each in runs} == {"COMPLETED"}


def test_real_cluster_is_asked(slurm, tmp_path):
    store = mlflow.MlflowClient()
    eats = f"{sys.executable} -c 'import time; x = [0] * 25_000_000; time.sleep(2)'"
    eats += f"; until [ -e {tmp_path}/may-end ]; do sleep 0.1; done"
    requeued = slurm.submit(eats, "--requeue", "--gpus-per-node=2")
    waits, fails = slurm.submit("sleep 60", "--hold"), slurm.submit("exit 3")
    slurm.wait_for(requeued, "RUNNING")
    slurm.run("scontrol", "requeue", requeued)
    slurm.wait_for(requeued, "PENDING")
    (tmp_path / "may-end").touch()
    # Started in the second of its requeue, slurmd takes it for killed already.
    slurm.run("scontrol", "update", f"JobId={requeued}", "StartTime=now+2")
    runs = {job: make(store, tmp_path, job) for job in (requeued, waits, fails)}
    slurm.wait_for(requeued, "COMPLETED")
    slurm.run("scancel", waits)
    slurm.wait_for(waits, "CANCELLED")

    main(["slurm", "reconcile"])

    read = {job: store.get_run(runs[job]) for job in runs}
    assert {job: run.info.status for job, run in read.items()} == {
        requeued: "FINISHED",
        waits: "KILLED",
        fails: "FAILED",
    }
    took = read[requeued].data.metrics
    assert took["attempts"] == 2
    assert took["gpu_hours"] == pytest.approx(2 * took["elapsed_seconds"] / 3600, abs=1e-3)
    assert 150 < took["max_rss_mb"] < 300
    assert read[waits].data.metrics["attempts"] == 0
