"""`pyclassify slurm`: what is shown before a submission, and what is done by a run's id."""

import os
from pathlib import Path

import mlflow
import pytest

from pyclassify.cli import main
from tests.support import processes
from tests.support.phrases import mentions
from tests.support.slurm_jobs import newest, read, submit, wait_for_status, write_project

ROOT = Path(__file__).parents[2]


def say(capsys, *words):
    """Run a verb; returns its exit code, and what it wrote to stdout and stderr."""
    code = main.main(["slurm", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def render(capsys, *words):
    return say(capsys, "render", ROOT, "--backend-config", ROOT / "slurm/ulysses.json", *words)


def test_render_takes_what_mlflow_run_takes_and_makes_nothing(tmp_path, monkeypatch, capsys):
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
    ("words", "error"),
    [
        (["-P", "devices=auto"], "devices is auto by -P devices=auto"),
        (["-P", "devices"], "-P takes NAME=VALUE, not devices"),
        (["--devices", "2"], "No such option '--devices'; the arguments of `mlflow run`"),
        (["-e", "maim"], "pyclassify: error: Could not find maim among entry points"),
    ],
)
def test_mistakes_are_told_in_one_line(words, error, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    code, out, err = render(capsys, *words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert error in err


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("{", "--backend-config { can't be read"),
        ("[]", "--backend-config [] is no object in JSON"),
        ("missing.json", "--backend-config missing.json can't be read (.*No such file"),
        ('{"tiem": 1}', "no key 'tiem' (nearest: time)"),
    ],
)
def test_configuration_that_can_not_be_read_is_told(given, error, capsys):
    code, _, err = say(capsys, "render", ROOT, "--backend-config", given)
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


def test_check_says_when_the_job_would_start_and_makes_nothing(slurm, tmp_path, capsys):
    write_project(tmp_path / "submitted", "")
    before = set(slurm.run("squeue", "-h", "-o", "%i").split())

    code, out, _ = say(capsys, "check", ".", "--env-manager", "local")
    refused = say(capsys, "check", ".", "--backend-config", '{"partition": "no", "time": 5}')

    assert (code, out.count("\n")) == (0, 1)
    assert "to start at" in out
    assert "Invalid partition name specified" in refused[2]
    assert set(slurm.run("squeue", "-h", "-o", "%i").split()) <= before
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    assert mlflow.MlflowClient().search_runs([experiment]) == []


def test_run_is_watched_by_its_id(slurm, tmp_path, capsys):
    project = write_project(tmp_path / "submitted", "print('one\\ntwo')")
    submitted = submit(project)

    followed = say(capsys, "logs", "-f", submitted.run_id)
    wait_for_status(submitted)
    code, out, _ = say(capsys, "status", submitted.run_id)

    assert "\none\ntwo\n" in followed[1]
    assert code == 0
    assert f"run {submitted.run_id}: FINISHED\njob {submitted.job_id}: COMPLETED, 00:" in out
    assert f"log: {read(submitted).data.tags['slurm_folder']}/foreign-{submitted.job_id}.out" in out


def test_job_that_waits_says_why_and_is_cancelled(slurm, tmp_path, capsys):
    project = write_project(tmp_path / "submitted", "")
    submitted = submit(project, {"sbatch_args": ["--begin=now+1hour"]})

    waits = say(capsys, "status", submitted.run_id[:8])
    cancelled = say(capsys, "cancel", submitted.run_id)

    assert f"{submitted.run_id}: SCHEDULED\njob {submitted.job_id}: PENDING, BeginTime" in waits[1]
    assert f"run {submitted.run_id}: KILLED" in cancelled[1]
    assert slurm.wait_for(submitted.job_id, "CANCELLED")


def test_run_of_another_backend_is_told(slurm, capsys):
    with mlflow.start_run() as run:
        pass
    code, _, err = say(capsys, "status", run.info.run_id)
    assert code == 1
    assert mentions(err, run.info.run_id, "none of the backend", "slurm")


@pytest.mark.parametrize("verb", ["status", "logs", "cancel"])
def test_id_of_no_run_is_told(capsys, verb, empty_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
    code, _, err = say(capsys, verb, "0123")
    assert (code, err.count("\n")) == (1, 1)
    assert mentions(err, "'0123'", "32 hexadecimal digits", "first 8")

    assert f"no run {'0' * 32} at" in say(capsys, verb, "0" * 32)[2]


def test_store_that_is_not_there_is_told_and_not_made(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/nowhere.db")

    assert "there are no runs at sqlite:///" in say(capsys, "status", "0" * 32)[2]
    assert not (tmp_path / "nowhere.db").exists()


def test_server_that_is_away_is_told_without_the_password(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    code, _, err = say(capsys, "status", "0" * 32)
    assert (code, err.count("\n")) == (1, 1)
    assert "://***@127.0.0.1:9" in err
    assert "secret" not in err


def test_run_that_slurm_did_not_take_has_no_job(slurm, tmp_path, capsys):
    project = write_project(tmp_path / "submitted", "")
    with pytest.raises(mlflow.exceptions.ExecutionException):
        submit(project, {"partition": "nowhere"})

    run_id = newest().info.run_id
    assert mentions(say(capsys, "logs", run_id)[2], run_id, "has no job: ")


def test_clear_says_what_goes(slurm, tmp_path, capsys):
    project = write_project(tmp_path / "submitted", "")
    with pytest.raises(mlflow.exceptions.ExecutionException):
        submit(project, {"partition": "nowhere"})
    folder = newest().data.tags["slurm_folder"]

    assert say(capsys, "clear")[1] == ""  # it ended today
    assert say(capsys, "clear", "--days", "0", "-n")[1].startswith(f"would be removed: {folder} (")
    assert os.path.isdir(folder)
    assert say(capsys, "clear", "--days", "0")[1].startswith(f"removed: {folder} (")
    assert not os.path.exists(folder)
