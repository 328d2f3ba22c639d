"""Jobs that can't reach the tracking server: their logs are spooled, and uploaded later."""

import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from pyclassify.cli import main
from pyclassify.slurm import plan
from tests.support.phrases import mentions
from tests.support.restarting_server import Server
from tests.support.slurm_jobs import (
    get_description,
    get_run,
    list_artifacts,
    read_log,
    submit_project,
    write_project,
)

# Its first attempt fails, and its second resumes.
LOGS = """
    import os, sys
    from pathlib import Path
    import mlflow
    from pyclassify.spool import store

    store.register_scheme()
    progress = Path(os.environ["PYCLASSIFY_PROGRESS"])
    begins = int(progress.read_text()) if progress.exists() else 0
    progress.write_text("2")
    with mlflow.start_run():
        for step in range(begins, begins + 2):
            mlflow.log_metric("loss", 1 - step / 4, step=step)
    sys.exit(0 if begins else 3)
"""


@pytest.fixture(scope="module")
def server(empty_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    server = Server(shutil.copy(empty_store, folder), folder / "artifacts")
    yield server
    server.stop()


@pytest.fixture
def run_while_away(slurm, server, monkeypatch):
    """Submit a job with the server up, run it with the server down, and upload its spool."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")

    def run(host, submit):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{host}:{server.port}")
        with server.available():
            tags = get_run(submit()).data.tags
        job_id, folder = tags["slurm_job_id"], Path(tags["slurm_folder"])
        slurm.run("scontrol", "release", job_id)
        slurm.wait_for(job_id, "COMPLETED", "FAILED")
        with server.available():
            assert get_run(folder.name).info.status == "SCHEDULED"
            assert main.main(["sync", str(folder / "spool")]) == 0
            run = get_run(folder.name)
            logs = {"out": read_log(folder.name), "err": read_log(folder.name, "err")}
            return SimpleNamespace(job_id=job_id, run=run, files=list_artifacts(run), **logs)

    yield run
    mlflow.set_tracking_uri(None)


def submit_held(folder, code, **config):
    """Give the call that submits a project whose job waits to be released."""
    given = {"mem": "1000M", "sbatch_args": ["--hold"], **config}
    return lambda: submit_project(write_project(folder / "project", code), given)


def submit_again(run_id):
    """Give the call that does so once more."""

    def resume():
        assert main.main(["slurm", "resume", run_id]) == 0
        return run_id

    return resume


def test_nodes_without_network_need_no_server_and_their_run_goes_on(run_while_away, tmp_path):
    first = run_while_away("localhost", submit_held(tmp_path, LOGS, tracking="spool"))
    assert (first.run.info.status, first.run.data.metrics) == ("FAILED", {"loss": 0.75}), first.err
    assert mentions(get_description(first.run), f"SLURM job {first.job_id}: ", "exit code 3")
    assert f"slurm/foreign-{first.job_id}.out" in first.files

    second = run_while_away("localhost", submit_again(first.run.info.run_id))

    run, jobs = second.run, f"{first.job_id},{second.job_id}"
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 0.25}), second.err
    assert (run.data.tags["slurm_job_ids"], run.data.tags["slurm_job_id"]) == (jobs, second.job_id)
    assert get_description(run) == ""


def test_server_that_is_away_costs_a_job_neither_its_start_nor_its_end(run_while_away, tmp_path):
    code = "print('it ran')\nexit(3)"

    job = run_while_away(socket.gethostname(), submit_held(tmp_path, code))

    assert "it ran" in job.out
    assert job.err.count("the report did not reach MLflow") == 2
    assert job.run.info.status == "FAILED"
    assert mentions(get_description(job.run), f"SLURM job {job.job_id}: ", "exit code 3")
    assert job.run.data.tags["slurm_job_ids"] == job.job_id
    assert f"slurm/foreign-{job.job_id}.err" in job.files


def test_script_of_a_spooled_job_knows_nothing_of_the_server(tmp_path, monkeypatch):
    monkeypatch.chdir(write_project(tmp_path / "here", "pass"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pass@localhost:5000")
    config = {"tracking": "spool", "work_dir": f"{tmp_path}/a b", "ENV_MANAGER": "local"}

    made = plan.make_plan(".", "main", {}, None, config)
    text = made.render_script("RUN_ID", "1")

    assert f"MLFLOW_TRACKING_URI=spool://{tmp_path}/a%20b/RUN_ID/spool\n" in text
    assert "localhost" not in text
    assert "password" not in text
