"""Runs submitted to a real cluster: what they run, log and report, and how they end."""

import json
import logging
import os
import queue
import re
import sys
import threading

import mlflow
import pytest
from mlflow.exceptions import ExecutionException

from pyclassify.slurm import environment, submitted_run
from tests.support import processes, repositories, slurm_jobs
from tests.support.phrases import mentions
from tests.support.slurm_jobs import (
    TELLS,
    get_description,
    get_newest_run,
    get_run,
    list_artifacts,
    read_log,
    submit_project,
    wait_for_status,
    write_project,
)
from tests.support.waiting import scale


def test_run_of_a_job_has_its_status_tags_and_logs(slurm, tmp_path):
    project = write_project(tmp_path / "submitted", TELLS)

    config = {"job_name": "a 'job'", "exports": {"A": "b"}}
    submitted = submit_project(project, config, forks=False)
    scheduled = get_run(submitted)
    run = wait_for_status(submitted)
    submitted.wait()

    assert scheduled.info.status in ("SCHEDULED", "RUNNING")
    assert (run.info.status, run.data.params["said"]) == ("FINISHED", "hello")
    tags = {name: run.data.tags[f"slurm_{name}"] for name in ("job_id", "partition", "nodes")}
    assert tags == {"job_id": submitted.job_id, "partition": "main", "nodes": "n1"}
    assert run.data.tags["slurm_submit_host"] == os.uname().nodename
    names = {f"slurm/a 'job'-{submitted.job_id}.{ending}" for ending in ("out", "err")}
    assert list_artifacts(run) == {"slurm/job.sh", "slurm/backend_config.json", *names}
    assert f"I run in {tmp_path}/submitted-slurm/{run.info.run_id}/project\n" in read_log(submitted)


def test_failure_is_reported_at_once_with_the_last_lines_of_stderr(slurm, tmp_path):
    code = "import mlflow, sys\nmlflow.log_param('a', 1)\nsys.exit('the disk is on fire')"
    project = write_project(tmp_path / "submitted", code)

    with pytest.raises(ExecutionException, match=r"FAILED.*description"):
        submit_project(project, synchronous=True)

    run = get_newest_run()
    assert run.info.status == "FAILED"  # although MLflow sets FINISHED whenever Python exits
    job = run.data.tags["slurm_job_id"]
    assert mentions(
        get_description(run), f"SLURM job {job}: ", "exit code 1", "the disk is on fire"
    )


def test_submission_refused_by_sbatch_leaves_a_failed_run_with_its_message(slurm, tmp_path):
    project = write_project(tmp_path / "submitted", TELLS)
    with pytest.raises(ExecutionException, match="Invalid partition name"):
        submit_project(project, {"partition": "nowhere"})

    assert get_newest_run().info.status == "FAILED"
    assert "specified: nowhere" in get_description(get_newest_run())


def test_invalid_submission_fails_before_there_is_a_run(slurm, tmp_path):
    project = write_project(tmp_path / "submitted", TELLS, "devices: {default: 1}")
    with pytest.raises(ExecutionException, match=r"ntasks_per_node is 2\b.* devices is 1\b"):
        submit_project(project, {"ntasks_per_node": 2})
    with pytest.raises(ExecutionException, match=r"setup\b.* bash"):
        submit_project(project, {"setup": ["if true"]})
    with pytest.raises(ExecutionException, match=r"-P database\b.* credential"):
        submit_project(project, parameters={"database": "postgresql://me:pass@host/db"})

    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    assert mlflow.MlflowClient().search_runs([experiment]) == []


def test_folder_of_runs_that_can_not_be_made_fails_the_run_and_is_named(store, tmp_path):
    (tmp_path / "file").touch()
    project = write_project(tmp_path / "project", "")
    config = {"environment": "none", "work_dir": f"{tmp_path}/file/runs"}

    with pytest.raises(ExecutionException, match='"work_dir"'):
        submit_project(project, config, forks=False)

    assert get_newest_run().info.status == "FAILED"
    facts = ("SLURM submission: ", f"{tmp_path}/file/runs ", '"work_dir"')
    assert mentions(get_description(get_newest_run()), *facts)


def test_submission_warns_of_files_left_out_and_of_a_database_on_a_network(
    store, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
    monkeypatch.setattr(environment, "_detect_file_system", lambda path: "nfs4")
    (tmp_path / "bin").mkdir()
    slurm_jobs.prepend_to_path(monkeypatch, tmp_path / "bin")
    slurm_jobs.write_program(tmp_path / "bin", "sbatch", slurm_jobs.make_program("8\n"))
    project = write_project(tmp_path / "project", "")
    (project / ".env").write_text("TOKEN=0123456789")
    config = {"environment": "none", "work_dir": f"{tmp_path}/runs"}

    submitted = submit_project(project, config, forks=False)

    warned = [each.getMessage() for each in caplog.records if each.levelname == "WARNING"]
    assert mentions("\n".join(warned), ".env may contain credentials", "mlflow.db", "(nfs4)")
    run = get_run(submitted)
    assert (run.info.status, run.data.tags["slurm_job_id"]) == ("SCHEDULED", "8")
    copied = {path.name for path in (tmp_path / "runs" / submitted.run_id / "project").iterdir()}
    assert copied == {"MLproject", "train.py"}


def test_wait_for_a_job_over_the_time_limit_of_its_partition_warns_what_to_change(
    slurm, tmp_path, monkeypatch
):
    warnings = queue.Queue()
    monkeypatch.setattr(
        submitted_run._logger, "warning", lambda form, *args: warnings.put(form % args)
    )
    project = write_project(tmp_path / "submitted", TELLS)
    submitted = submit_project(project, {"time": "UNLIMITED"}, forks=False)
    waiter = threading.Thread(target=submitted.wait)
    waiter.start()

    warning = warnings.get(timeout=scale(60))
    slurm.run("scancel", submitted.job_id)
    waiter.join(scale(60))

    assert not waiter.is_alive()
    cancel = f"`pyclassify slurm cancel {submitted.run_id}`"
    # PartitionTimeLimit, or PartitionConfig until SLURM has checked all limits.
    assert re.search(r"because of Partition(TimeLimit|Config): ", warning)
    assert mentions(warning, '"time"', '"partition"', cancel)
    assert get_run(submitted).info.status == "KILLED"


def test_edit_after_the_submission_changes_nothing(slurm, tmp_path):
    project = write_project(tmp_path / "submitted", "print('the old code')")

    submitted = submit_project(project, {"sbatch_args": ["--begin=now+2"]})
    write_project(project, "print('the new code')")
    wait_for_status(submitted)

    assert "the old code" in read_log(submitted)


def test_project_of_a_git_uri_runs_from_its_snapshot(slurm, tmp_path, monkeypatch):
    code = "import mlflow\nprint('from git')"
    repository = write_project(tmp_path / "repository", code)
    repositories.start(repository, {})
    for name, value in {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{repository.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://git.example.org/foreign",
    }.items():
        monkeypatch.setenv(name, value)

    submitted = submit_project("https://git.example.org/foreign")
    folder = get_run(submitted).data.tags["slurm_folder"]
    wait_for_status(submitted)

    assert "from git" in read_log(submitted)
    with open(f"{folder}/snapshot.json") as file:
        commit = json.load(file)["commit"]
    assert commit == repositories.git(repository, "rev-parse", "HEAD")


def test_importing_the_backend_takes_no_library_that_mlflow_has_not_imported():
    code = """
import sys
import mlflow.projects, mlflow.tracking
before = {*sys.modules}
import pyclassify.slurm.submit
assert "torch" not in sys.modules
print(*{name.partition(".")[0] for name in {*sys.modules} - before})
import pyclassify.slurm.reconcile, pyclassify.slurm.reporter, pyclassify.slurm.cli
assert "torch" not in sys.modules
"""
    imported = processes.run("-c", code, fresh=True, check=True).stdout.split()
    assert {*imported} - sys.stdlib_module_names == {"pyclassify"}
