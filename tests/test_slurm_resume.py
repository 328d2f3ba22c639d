"""`pyclassify slurm resume`: a run's job submitted again, under the same run."""

import shutil
from pathlib import Path

import mlflow
import pytest

from pyclassify import cli
from pyclassify.slurm import programs
from tests.support import restarting_project, slurm_programs
from tests.support.slurm_programs import say
from tests.support.slurm_runs import log, note, read, submit, wait_for_status
from tests.support.waiting import wait_until


def resume(capsys, run_id, *options):
    """Run the verb; returns its exit code, and what it wrote to stdout and stderr."""
    code = cli.main(["slurm", "resume", run_id, *options])
    said = capsys.readouterr()
    return code, said.out, said.err


def begin(tmp_path, **config):
    """Submit the project that goes on where it stopped, and wait until it has begun."""
    project = restarting_project.write(tmp_path / "project")
    given = {"gate": tmp_path / "gate", "gain": 1}
    submitted = submit(project, {"mem": "1000M", **config}, parameters=given)
    wait_until((tmp_path / "gate.0").exists, seconds=60)
    return submitted


def test_run_whose_script_was_killed_goes_on_under_the_same_run(slurm, tmp_path, capsys):
    submitted = begin(tmp_path)
    run_id, first = submitted.run_id, submitted.job_id
    Path(read(run_id).data.tags["slurm_folder"], "progress").write_text("7")
    code, _, error = resume(capsys, run_id)
    assert code == 1
    assert f"the run {run_id} has a job that has not ended: {first} is RUNNING; let it" in error

    slurm.run("scancel", "--signal=KILL", "--batch", first)
    slurm.wait_for(first, "FAILED")
    assert read(run_id).info.status == "RUNNING"  # nobody could say so
    (tmp_path / "gate").touch()
    code, out, _ = resume(capsys, run_id, "--time", "5")
    second = read(run_id).data.tags["slurm_job_id"]

    run = wait_for_status(run_id)
    assert code == 0
    assert f"run {run_id} is submitted again as SLURM job {second}\n" in out
    assert (run.info.status, note(run)) == ("FINISHED", "")
    assert run.data.tags["slurm_job_ids"] == f"{first},{second}"
    assert run.data.tags["slurm_restarts"] == "0"
    assert "begins at 7" in log(submitted)
    assert len(mlflow.search_runs(output_format="list")) == 1
    assert slurm.wait_for(second, "COMPLETED", "FAILED") == "COMPLETED"
    assert slurm.accounting(second, "timelimit") == "00:05:00"
    assert "is FINISHED, and has nothing to go on with; `mlflow run" in resume(capsys, run_id)[2]


def test_second_job_of_a_run_starts_nothing_while_the_first_lives(slurm, tmp_path):
    submitted = begin(tmp_path)
    folder = Path(read(submitted).data.tags["slurm_folder"])

    second = slurm.run("sbatch", "--parsable", "--error=second", str(folder / "job.sh"))

    assert slurm.wait_for(second, "FAILED", "COMPLETED", seconds=60) == "FAILED"
    words = f"the run {submitted.run_id} is job {submitted.job_id}'s, which is RUNNING; nothing is"
    assert words in (folder / "second").read_text()
    assert read(submitted).info.status == "RUNNING"
    assert read(submitted).data.tags["slurm_job_ids"] == submitted.job_id
    (tmp_path / "gate").touch()
    assert wait_for_status(submitted).info.status == "FINISHED"


@pytest.fixture
def killed(empty_store, tmp_path, monkeypatch):
    """Make a KILLED run of job 4, which has ended; SLURM refuses every other."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr(programs, "PAUSES", ())
    (tmp_path / "bin").mkdir()
    slurm_programs.first_on_path(monkeypatch, tmp_path / "bin")
    slurm_programs.put(tmp_path / "bin", "squeue", say("4|TIMEOUT|TimeLimit|n1|1:00\n"))
    slurm_programs.put(tmp_path / "bin", "sacct", say())
    slurm_programs.put(tmp_path / "bin", "sbatch", say(stderr="sbatch: error: no more\n", code=1))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tested").experiment_id
    tags = {"slurm_folder": str(tmp_path / "run"), "slurm_job_id": "4", "slurm_submit_host": "here"}

    def make(**more):
        run_id = client.create_run(experiment, tags=tags | more).info.run_id
        client.set_terminated(run_id, "KILLED", end_time=7)
        return run_id

    yield make
    mlflow.set_tracking_uri(None)


def test_run_stays_as_it_was_when_slurm_refuses_its_job(killed, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "job.sh").touch()
    (tmp_path / "run" / "backend_config.json").write_text("{}")
    run_id = killed()

    assert resume(capsys, run_id)[::2] == (1, "pyclassify: error: no more\n")

    run = read(run_id)
    assert (run.info.status, run.info.end_time) == ("KILLED", 7)
    assert run.data.tags["slurm_job_id"] == "4"


def test_run_whose_folder_was_cleared_has_nothing_to_go_on_from(killed, tmp_path, capsys):
    run_id = killed()
    code, _, error = resume(capsys, run_id)
    assert code == 1
    assert f"the run {run_id} has no {tmp_path}/run/job.sh any more, or here alone sees it" in error
    assert "`mlflow run --backend slurm` submits a new run" in error
