"""Submissions: the folders of logs, and `pyclassify slurm resume`."""

import os
import time
from pathlib import Path

import mlflow
import pytest

from pyclassify.cli import main
from pyclassify.slurm import client, config, plan
from pyclassify.slurm.submit import make_log_folders
from tests.support import restarting_project, slurm_jobs
from tests.support.phrases import mentions
from tests.support.slurm_jobs import (
    get_description,
    get_run,
    make_program,
    make_program_in_turn,
    read_log,
    submit_project,
    wait_for_status,
    write_project,
)
from tests.support.stores import experiment_id
from tests.support.waiting import wait_until


def resume(capsys, run_id, *options):
    """Run the command; returns its exit code, and what it wrote to stdout and stderr."""
    code = main.main(["slurm", "resume", run_id, *options])
    output = capsys.readouterr()
    return code, output.out, output.err


def begin(tmp_path, **config):
    """Submit the project that resumes from its last step, and wait until it has begun."""
    project = restarting_project.write(tmp_path / "project")
    given = {"gate": tmp_path / "gate", "gain": 1}
    submitted = submit_project(project, {"mem": "1000M", **config}, parameters=given)
    wait_until((tmp_path / "gate.0").exists, "the job has begun")
    return submitted


def test_resume_after_a_killed_script_continues_the_same_run(slurm, tmp_path, capsys):
    submitted = begin(tmp_path)
    run_id, first = submitted.run_id, submitted.job_id
    Path(get_run(run_id).data.tags["slurm_folder"], "progress").write_text("7")
    code, _, error = resume(capsys, run_id)
    assert code == 1
    assert mentions(error, run_id, f"{first} is RUNNING")

    slurm.run("scancel", "--signal=KILL", "--batch", first)
    slurm.wait_for(first, "FAILED")
    assert get_run(run_id).info.status == "RUNNING"  # no process was left to report the end
    (tmp_path / "gate").touch()
    code, out, _ = resume(capsys, run_id, "--time", "5")
    second = get_run(run_id).data.tags["slurm_job_id"]
    assert slurm.run("squeue", "-h", "-t", "all", "-j", second, "-o", "%l") == "5:00"

    run = wait_for_status(run_id)
    assert code == 0
    assert mentions(out, f"run {run_id} ", f"SLURM job {second}\n")
    assert (run.info.status, get_description(run)) == ("FINISHED", "")
    assert run.data.tags["slurm_job_ids"] == f"{first},{second}"
    assert run.data.tags["slurm_restarts"] == "0"
    assert "begins at 7" in read_log(submitted)
    assert len(mlflow.search_runs(output_format="list")) == 1
    assert slurm.wait_for(second, "COMPLETED", "FAILED") == "COMPLETED"
    assert mentions(resume(capsys, run_id)[2], "is FINISHED", "`mlflow run")


def test_second_job_of_a_run_starts_nothing_beside_the_first(slurm, tmp_path):
    submitted = begin(tmp_path)
    folder = Path(get_run(submitted).data.tags["slurm_folder"])

    second = slurm.run("sbatch", "--parsable", "--error=second", str(folder / "job.sh"))

    assert slurm.wait_for(second, "FAILED", "COMPLETED") == "FAILED"
    stderr = (folder / "second").read_text()
    assert mentions(
        stderr, submitted.run_id, f"job {submitted.job_id} of", "is RUNNING", "nothing is started"
    )
    assert get_run(submitted).info.status == "RUNNING"
    assert get_run(submitted).data.tags["slurm_job_ids"] == submitted.job_id
    (tmp_path / "gate").touch()
    assert wait_for_status(submitted).info.status == "FINISHED"


@pytest.fixture
def killed(store, tmp_path, monkeypatch):
    """Make a KILLED run of job 4, which has ended; SLURM refuses every other."""
    monkeypatch.setattr(client, "RETRY_DELAYS_SECONDS", ())
    (tmp_path / "bin").mkdir()
    slurm_jobs.prepend_to_path(monkeypatch, tmp_path / "bin")
    slurm_jobs.write_program(
        tmp_path / "bin", "squeue", make_program("4|TIMEOUT|TimeLimit|n1|1:00\n")
    )
    slurm_jobs.write_program(tmp_path / "bin", "sacct", make_program())
    slurm_jobs.write_program(
        tmp_path / "bin", "sbatch", make_program(stderr="sbatch: error: no more\n", code=1)
    )
    tags = {"slurm_folder": str(tmp_path / "run"), "slurm_job_id": "4", "slurm_submit_host": "here"}

    def make(**more):
        run_id = store.create_run(experiment_id(store), tags=tags | more).info.run_id
        store.set_terminated(run_id, "KILLED", end_time=7)
        return run_id

    return make


def test_resume_refused_by_slurm_restores_the_run(killed, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.sh").touch()
    (tmp_path / "run" / "backend_config.json").write_text("{}")
    run_id = killed()

    assert resume(capsys, run_id)[::2] == (1, "pyclassify: error: no more\n")

    run = get_run(run_id)
    assert (run.info.status, run.info.end_time) == ("KILLED", 7)
    assert run.data.tags["slurm_job_id"] == "4"


def test_resume_of_a_cleared_folder_fails(killed, tmp_path, capsys):
    run_id = killed()
    code, _, error = resume(capsys, run_id)
    assert code == 1
    assert mentions(error, run_id, f"{tmp_path}/run/job.sh ", "does not exist", "(here)")
    assert "`mlflow run --backend slurm`" in error


def refuse_nothing(tmp_path):
    """Have sbatch take the job as 8, and the run's folder have what is submitted."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.sh").touch()
    (tmp_path / "run" / "backend_config.json").write_text("{}")
    code = f"import sys\nopen({str(tmp_path / 'given')!r}, 'w').write(' '.join(sys.argv[1:]))"
    slurm_jobs.write_program(tmp_path / "bin", "sbatch", f"{code}\nprint(8)")


GONE = make_program(stderr="slurm_load_jobs error: Invalid job id specified\n", code=1)
ENDS = (("4|COMPLETING|TimeLimit|n1|1:00\n",), ("4|TIMEOUT|TimeLimit|n1|1:00\n",))


@pytest.mark.parametrize("queue", ["ends", "forgotten", "never taken"])
def test_resume_after_the_jobs_end_submits_again(killed, store, queue, tmp_path, capsys):
    refuse_nothing(tmp_path)
    os.utime(tmp_path / "run" / "job.sh", (0, 0))
    run_id = killed(slurm_job_id="" if queue == "never taken" else "4")
    store.set_tag(run_id, "mlflow.note.content", "Mine.\n\nSLURM job 4: it ended.")
    if queue != "never taken":
        code = GONE if queue == "forgotten" else make_program_in_turn(tmp_path / "asked", *ENDS)
        slurm_jobs.write_program(tmp_path / "bin", "squeue", code)

    code, out, _ = resume(capsys, run_id, "--time", "1:30:00")

    assert code == 0
    assert mentions(out, run_id, "SLURM job 8\n")
    assert (tmp_path / "given").read_text() == f"--parsable --time=1:30:00 {tmp_path}/run/job.sh"
    run = get_run(run_id)
    assert (run.info.status, run.data.tags["slurm_job_id"]) == ("SCHEDULED", "8")
    assert time.time() - (tmp_path / "run" / "job.sh").stat().st_mtime < 60  # `reconcile` reads it
    if queue != "never taken":
        assert get_description(run) == "Mine."


def test_resume_with_an_invalid_time_changes_nothing(killed, tmp_path, capsys):
    refuse_nothing(tmp_path)
    run_id = killed()

    code, _, error = resume(capsys, run_id, "--time", "soon")

    assert code == 2
    assert mentions(error, "--time", "'soon'", "minutes")
    assert not (tmp_path / "given").exists()
    assert (get_run(run_id).info.status, get_run(run_id).data.tags["slurm_job_id"]) == (
        "KILLED",
        "4",
    )


def test_resume_of_a_run_without_a_job_names_the_other_command(store, killed, capsys):
    run_id = store.create_run(experiment_id(store)).info.run_id

    code, _, error = resume(capsys, run_id)

    assert code == 1
    assert mentions(error, run_id, f"`pyclassify resume {run_id}`")


def test_log_folders_are_made(tmp_path):
    parsed = config.parse_config(
        {"output": "logs/out/%j.out", "error": str(tmp_path / "else/%j.err")}
    )
    make_log_folders(tmp_path / "run", parsed)
    assert (tmp_path / "run/logs/out").is_dir()
    assert (tmp_path / "else").is_dir()


def test_make_log_folders_failing_names_the_folder(tmp_path):
    (tmp_path / "job.sh").touch()
    parsed = config.parse_config({"output": "job.sh/%j.out"})
    with pytest.raises(OSError, match=r'job\.sh.*"output"'):
        make_log_folders(tmp_path, parsed)


def test_job_name_of_a_project_is_a_file_name(tmp_path):
    project = write_project(tmp_path, "")
    text = (project / "MLproject").read_text()
    (project / "MLproject").write_text(text.replace("foreign", '"mine/and\\nyours"'))

    planned = plan.make_plan(str(project), "main", {}, None, {"environment": "none"})

    assert planned.job_name == "mine-and-yours"
    assert "#SBATCH --job-name=mine-and-yours\n" in planned.render_script("RUN_ID", "1")
