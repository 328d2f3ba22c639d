"""The commands of `pyclassify slurm`: before a submission, and by the id of a run."""

import os
from pathlib import Path

import mlflow
import pytest

from pyclassify.cli import main
from tests.support import processes
from tests.support.phrases import mentions
from tests.support.slurm_jobs import (
    get_newest_run,
    get_run,
    submit_project,
    wait_for_status,
    write_project,
)

ROOT = Path(__file__).parents[2]


def run_command(capsys, *argv):
    """Run a command; returns its exit code, and what it wrote to stdout and stderr."""
    code = main.main(["slurm", *map(str, argv)])
    output = capsys.readouterr()
    return code, output.out, output.err


def render(capsys, *argv):
    return run_command(
        capsys, "render", ROOT, "--backend-config", ROOT / "slurm/ulysses.json", *argv
    )


def test_render_takes_the_arguments_of_mlflow_run_and_makes_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")

    code, script, _ = render(capsys, "-P", "devices=2", "-P", "data_path=data", "-e", "main")

    assert code == 0
    assert "#SBATCH --gpus-per-node=2\n" in script
    assert f"export MLFLOW_TRACKING_URI=sqlite:///{tmp_path}/here/mlflow.db\n" in script
    assert f"--data_path {tmp_path}/here/data\n" in script
    assert [*tmp_path.rglob("*")] == [tmp_path / "here"]


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["-P", "devices=auto"], "devices is auto by -P devices=auto"),
        (["-P", "devices"], "-P takes NAME=VALUE, not devices"),
        (["--devices", "2"], "No such option '--devices'; the arguments of `mlflow run`"),
        (["-e", "maim"], "pyclassify: error: Could not find maim among entry points"),
        (["-P", "trainer.callbacks+=X"], "-P trainer.callbacks+ is no parameter's name to MLflow"),
        (["-P", "a//b=1"], "-P a//b is no parameter's name to MLflow"),
        (["-P", f"{'n' * 251}=1"], "up to 250 letters"),
        ([word for n in range(101) for word in ("-P", f"a{n}=1")], "101 parameters"),
    ],
)
def test_render_with_a_mistake_reports_it_in_one_line(argv, error, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    code, out, err = render(capsys, *argv)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert error in err


def test_submission_with_a_name_that_mlflow_refuses_makes_no_run(store):
    parameters = {"trainer.callbacks+": "X"}

    with pytest.raises(mlflow.exceptions.ExecutionException, match="recipe"):
        mlflow.projects.run(str(ROOT), backend="slurm", parameters=parameters, experiment_id="0")

    assert store.search_runs(["0"]) == []


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("{", "--backend-config { can't be read"),
        ("[]", "--backend-config [] is no object in JSON"),
        ("missing.json", "--backend-config missing.json can't be read (.*No such file"),
        ('{"tiem": 1}', "no key 'tiem' (nearest: time)"),
    ],
)
def test_render_with_an_unreadable_config_reports_it(given, error, capsys):
    code, _, err = run_command(capsys, "render", ROOT, "--backend-config", given)
    assert code == 1
    assert error.partition("(.*")[0] in err


@pytest.mark.parametrize("argv", [["--help"], ["status", "--help"], ["reconcile", "--help"]])
def test_help_loads_neither_mlflow_nor_torch(argv):
    code = f"""
import sys
from pyclassify.slurm import cli
try:
    cli.main({argv!r})
except SystemExit as end:
    assert end.code == 0
else:
    raise AssertionError("no help")
assert not {{"mlflow", "torch"}} & {{*sys.modules}}
"""
    shown = processes.run("-c", code, fresh=True, check=True).stdout
    assert shown.startswith("usage: pyclassify slurm")


def test_check_prints_when_the_job_would_start_and_makes_nothing(slurm, tmp_path, capsys):
    write_project(tmp_path / "submitted", "")
    before = set(slurm.run("squeue", "-h", "-o", "%i").split())

    code, out, _ = run_command(capsys, "check", ".", "--env-manager", "local")
    refused = run_command(
        capsys, "check", ".", "--backend-config", '{"partition": "no", "time": 5}'
    )

    assert (code, out.count("\n")) == (0, 1)
    assert "to start at" in out
    assert "Invalid partition name specified" in refused[2]
    assert set(slurm.run("squeue", "-h", "-o", "%i").split()) <= before
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    assert mlflow.MlflowClient().search_runs([experiment]) == []


def test_logs_and_status_of_a_run(slurm, tmp_path, capsys):
    project = write_project(tmp_path / "submitted", "print('one\\ntwo')")
    submitted = submit_project(project)

    followed = run_command(capsys, "logs", "-f", submitted.run_id)
    wait_for_status(submitted)
    code, out, _ = run_command(capsys, "status", submitted.run_id)

    assert "\none\ntwo\n" in followed[1]
    assert code == 0
    assert f"run {submitted.run_id}: FINISHED\njob {submitted.job_id}: COMPLETED, 00:" in out
    assert (
        f"log: {get_run(submitted).data.tags['slurm_folder']}/foreign-{submitted.job_id}.out" in out
    )


def test_status_of_a_waiting_job_has_the_reason_and_cancel_ends_it(slurm, tmp_path, capsys):
    project = write_project(tmp_path / "submitted", "")
    submitted = submit_project(project, {"sbatch_args": ["--begin=now+1hour"]})

    waits = run_command(capsys, "status", submitted.run_id[:8])
    cancelled = run_command(capsys, "cancel", submitted.run_id)

    assert f"{submitted.run_id}: SCHEDULED\njob {submitted.job_id}: PENDING, BeginTime" in waits[1]
    assert f"run {submitted.run_id}: KILLED" in cancelled[1]
    assert slurm.wait_for(submitted.job_id, "CANCELLED")


def test_status_of_a_run_of_another_backend_fails(slurm, capsys):
    with mlflow.start_run() as run:
        pass
    code, _, err = run_command(capsys, "status", run.info.run_id)
    assert code == 1
    assert mentions(err, run.info.run_id, "none of the backend", "slurm")


@pytest.mark.parametrize("verb", ["status", "logs", "cancel"])
def test_command_with_an_unknown_run_fails(capsys, verb, empty_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
    code, _, err = run_command(capsys, verb, "0123")
    assert (code, err.count("\n")) == (1, 1)
    assert mentions(err, "'0123'", "32 hexadecimal digits", "first 8")

    assert f"no run {'0' * 32} at" in run_command(capsys, verb, "0" * 32)[2]


def test_status_with_a_missing_store_fails_and_makes_none(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/nowhere.db")

    assert "there are no runs at sqlite:///" in run_command(capsys, "status", "0" * 32)[2]
    assert not (tmp_path / "nowhere.db").exists()


def test_status_with_the_server_away_fails_without_the_password(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    code, _, err = run_command(capsys, "status", "0" * 32)
    assert (code, err.count("\n")) == (1, 1)
    assert "://***@127.0.0.1:9" in err
    assert "secret" not in err


def test_logs_of_a_refused_run_fail(slurm, tmp_path, capsys):
    project = write_project(tmp_path / "submitted", "")
    with pytest.raises(mlflow.exceptions.ExecutionException):
        submit_project(project, {"partition": "nowhere"})

    run_id = get_newest_run().info.run_id
    assert mentions(run_command(capsys, "logs", run_id)[2], run_id, "has no job: ")


def test_clear_prints_the_folders_that_it_removes(slurm, tmp_path, capsys):
    project = write_project(tmp_path / "submitted", "")
    with pytest.raises(mlflow.exceptions.ExecutionException):
        submit_project(project, {"partition": "nowhere"})
    folder = get_newest_run().data.tags["slurm_folder"]

    assert run_command(capsys, "clear")[1] == ""  # it ended today
    assert run_command(capsys, "clear", "--days", "0", "-n")[1].startswith(
        f"would be removed: {folder} ("
    )
    assert os.path.isdir(folder)
    assert run_command(capsys, "clear", "--days", "0")[1].startswith(f"removed: {folder} (")
    assert not os.path.exists(folder)
