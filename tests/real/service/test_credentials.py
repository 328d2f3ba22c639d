"""A user's password reaches a SLURM job, and nothing that others read."""

import base64
import subprocess
from pathlib import Path

import mlflow
import pytest
from mlflow.utils.credentials import read_mlflow_creds

from tests.support import service as service_parts
from tests.support.slurm_jobs import get_run, submit_project, write_project
from tests.support.waiting import wait_until

WAITS = """
    import time
    from pathlib import Path
    import mlflow

    with mlflow.start_run():
        mlflow.log_metric("loss", 0.5)
        mlflow.log_text("hello", "said.txt")
        Path({waits!r}).touch()
        while not Path({may_end!r}).exists():
            time.sleep(0.1)
"""
pytestmark = [pytest.mark.service, pytest.mark.slurm]
AS_NOBODY = "env --ignore-environment PATH=/usr/bin:/bin setpriv --reuid=65534 --regid=65534"
AS_NOBODY = [*AS_NOBODY.split(), "--clear-groups"]


def take_from_file(patch, account):
    """Leave it to the file of `settle`."""


def take_from_variables(patch, account):
    Path.home().joinpath(".mlflow/credentials").unlink()
    for name, value in zip(("USERNAME", "PASSWORD"), account, strict=True):
        patch.setenv(f"MLFLOW_TRACKING_{name}", value)


@pytest.fixture(params=[take_from_file, take_from_variables])
def account(request, slurm, proxy, people, tmp_path, monkeypatch):
    """Ada's, whose password MLflow finds here in the one way or the other."""
    service_parts.settle(monkeypatch, proxy, people["ada"], tmp_path / "home")
    request.param(monkeypatch, people["ada"])
    service_parts.work_in(monkeypatch, request.node.name)
    return people["ada"]


def lines_of(*command):
    return subprocess.run(command, capture_output=True, check=True).stdout


def contents(*folders):
    return {str(path): path.read_bytes() for each in folders for path in files_in(Path(each))}


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def seen_while_it_runs(slurm, job_id):
    """What any user of the cluster is told of a job and its processes."""
    return {
        "scontrol show job": slurm.run("scontrol", "show", "job", "--details", job_id).encode(),
        "script": slurm.run("scontrol", "write", "batch_script", job_id, "-").encode(),
        "sacct": slurm.run("sacct", f"--jobs={job_id}", "--format=ALL").encode(),
        "ps": lines_of("ps", "-eww", "-o", "args"),
        "environments": lines_of(*AS_NOBODY, "sh", "-c", "cat /proc/[0-9]*/environ || true"),
    }


def kept_afterwards(slurm, service, run):
    """What is kept of a run, on the cluster and by the service, and what their daemons wrote."""
    artifacts = mlflow.MlflowClient().download_artifacts(run.info.run_id, "")
    return {
        "run": str(run.to_dictionary()).encode(),
        "database": service.daemons.run("pg_dump").encode(),
        **contents(artifacts, run.data.tags["slurm_folder"]),
        **{str(each): each.read_bytes() for each in slurm.folder.glob("*.[lo][ou][gt]")},
        **{str(each): each.read_bytes() for each in service.folder.glob("*.out")},
    }


def test_password_reaches_the_job_and_nothing_that_others_read(slurm, service, account, tmp_path):
    waits, may_end = tmp_path / "waits", tmp_path / "may-end"
    code = WAITS.format(waits=str(waits), may_end=str(may_end))
    submitted = submit_project(write_project(tmp_path / "project", code), {"mem": "1000M"})
    wait_until(waits.exists, "the job's script to wait")
    job_id = get_run(submitted).data.tags["slurm_job_id"]
    seen = seen_while_it_runs(slurm, job_id)
    may_end.touch()
    slurm.wait_for(job_id, "COMPLETED", "FAILED")
    run = get_run(submitted)

    seen |= kept_afterwards(slurm, service, run)
    password = account[1].encode()
    secrets = [password, base64.b64encode(f"{account[0]}:".encode() + password)]
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 0.5})
    assert not [name for name, text in seen.items() if any(each in text for each in secrets)]
    for name, known in (("script", b"#SBATCH"), ("ps", b"train.py"), ("database", b"scrypt:")):
        assert known in seen[name]  # the search was of the right things


def test_file_of_the_page_is_the_users_alone(proxy, tmp_path, monkeypatch):
    account = ("ada", "100% of %s")  # which the parser of such files would take for its own
    service_parts.settle(monkeypatch, proxy, account, tmp_path / "home")

    kept = tmp_path / "home/.mlflow/credentials"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert read_mlflow_creds() == account
