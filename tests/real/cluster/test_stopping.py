"""Stopping a run on a real cluster, and warning it."""

import json
import re
import shutil
import signal

import mlflow
import pytest

from pyclassify.tracking import run
from pyclassify.utils.launcher import STATUS_BY_SLURM_ENV
from tests.support import processes, slurm_python
from tests.support.phrases import mentions
from tests.support.slurm_jobs import (
    TELLS,
    get_description,
    get_newest_run,
    get_run,
    prepend_to_path,
    read_log,
    submit_project,
    wait_for_status,
    write_program,
    write_project,
)
from tests.support.waiting import wait_until


def test_ctrl_c_while_waiting_cancels_the_job_and_marks_the_run_killed(slurm, tmp_path):
    write_project(tmp_path / "submitted", "import time\nprint('here', flush=True)\ntime.sleep(300)")
    words = ["-m", "mlflow", "run", ".", "--env-manager", "local", "--backend", "slurm"]
    config = json.dumps({"wait": True, "environment": slurm_python.environment()})
    waiting = processes.start(
        *words, "--backend-config", config, stdout=processes.PIPE, stderr=processes.PIPE
    )
    wait_until(lambda: "here\n" in waiting.read(), "the log's tail is shown")

    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate()

    assert waiting.returncode != 0
    assert re.search(r"Job \d+: cancelled; run \w+: KILLED", err)
    assert get_newest_run().info.status == "KILLED"
    assert slurm.wait_for(get_newest_run().data.tags["slurm_job_id"], "CANCELLED") == "CANCELLED"


def test_submitted_run_is_cancelled_and_described(slurm, tmp_path):
    submitted = submit_project(
        write_project(tmp_path / "submitted", TELLS), {"sbatch_args": ["--hold"]}
    )
    assert submitted.get_status() == "SCHEDULED"

    submitted.cancel()

    assert submitted.wait() is False
    assert submitted.get_status() == "KILLED"
    assert mentions(
        get_description(get_run(submitted)), f"SLURM job {submitted.job_id}: ", "cancelled by root"
    )


def test_job_that_ends_before_its_cancel_arrives_keeps_its_own_end(slurm, tmp_path, monkeypatch):
    code = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.1)"
    submitted = submit_project(write_project(tmp_path / "submitted", code))
    wait_for_status(submitted, "RUNNING")
    folder = get_run(submitted).data.tags["slurm_folder"]
    (tmp_path / "bin").mkdir()
    late = f"""
import pathlib, subprocess, sys, time
pathlib.Path({folder!r}, "project", "go").touch()
asked = ["squeue", "-h", "-t", "all", "-o", "%T", "-j", sys.argv[-1]]
while subprocess.check_output(asked) != b"COMPLETED\\n":
    time.sleep(0.2)
subprocess.run([{shutil.which("scancel")!r}, *sys.argv[1:]], check=True)
"""
    write_program(tmp_path / "bin", "scancel", late)
    prepend_to_path(monkeypatch, tmp_path / "bin")

    assert submitted.cancel() == "already ended (COMPLETED)"
    assert get_run(submitted).info.status == "FINISHED"


def test_warning_for_the_script_alone_reaches_the_training(slurm, tmp_path):
    code = """
        import signal, sys, time
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(print("warned")))
        print("ready", flush=True)
        time.sleep(300)
    """
    project = write_project(tmp_path / "submitted", code)
    submitted = submit_project(project, {"signal": "B:USR1@60", "time": 10})
    wait_until(lambda: "ready" in read_log(submitted), "the training is ready")

    slurm.run("scancel", "--signal=USR1", "--batch", submitted.job_id)

    assert wait_for_status(submitted).info.status == "FINISHED"
    assert "warned" in read_log(submitted)


@pytest.mark.parametrize(("of_the_job", "status"), [(True, "RUNNING"), (False, "KILLED")])
def test_stop_leaves_the_status_of_the_jobs_run_to_slurm(of_the_job, status, slurm, monkeypatch):
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    run_id = mlflow.MlflowClient().create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    monkeypatch.setenv(STATUS_BY_SLURM_ENV, run_id if of_the_job else "another")

    run.start_run(None, None, None)
    run.set_final_status("KILLED")  # as on SIGTERM, which a time limit sends too
    run.end_run("KILLED")

    assert mlflow.active_run() is None  # which MLflow would call FINISHED when Python exits
    assert get_run(run_id).info.status == status  # a job's run may have runs under it
