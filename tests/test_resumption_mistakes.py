"""What `pyclassify resume` can't do, and says in one line; and a run that another process holds."""

import json
import os
import shutil
import socket
import subprocess
import sys

import mlflow
import pytest

from pyclassify.cli import main
from pyclassify.tracking import capsule
from tests.support.command_lines import SHAPES
from tests.support.repositories import ROOT
from tests.support.spooled import TAKE


@pytest.fixture
def resume(empty_store, tmp_path, monkeypatch, capsys):
    """Type `pyclassify resume` in a folder of no repository, and give what it complains of."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()

    def run(*words):
        assert main(["resume", *words]) == 1
        said = capsys.readouterr()
        assert said.err.count("\n") == 1
        return said.err

    yield run
    mlflow.set_tracking_uri(None)


def make_run(folder, status="KILLED", tags=(), **facts):
    """Make a run with a capsule, and give its id."""
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tested").experiment_id
    run_id = client.create_run(experiment, tags=dict(tags)).info.run_id
    known = {
        "verb": "fit",
        "command": [],
        "started_in": str(folder),
        "host": socket.gethostname(),
        "git": {"missing": "git is not installed"},
        "package": capsule.digest_package(),
        "hardware": {"processes": 1, "threads": 1},
    }
    logger = {"class_path": "pyclassify.tracking.logger.RunLogger", "init_args": {}}
    logger["init_args"]["save_dir"] = "runs"
    config = {"trainer": {"logger": logger, "max_epochs": 3, "devices": 1}, "data": None}
    client.log_text(run_id, json.dumps({**known, **facts}), "capsule/capsule.json")
    client.log_text(run_id, json.dumps(config), "capsule/config.yaml")
    client.set_terminated(run_id, status)
    return run_id


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["0" * 32], f"there is no run {'0' * 32} at sqlite:///"),
        (["latest"], "'latest' is no run's id: 32 hexadecimal digits"),
        (["0" * 32, "--config", "x"], "resume takes one run's id and options, and was given --co"),
        (["0" * 32, "1" * 32], "resume takes one run's id and options, and was given 1111"),
        ([], "the following arguments are required: RUN_ID; `pyclassify resume --help` shows what"),
    ],
)
def test_wrong_words_are_refused(words, complaint, resume):
    assert resume(*words).startswith(f"pyclassify: error: {complaint}")


@pytest.mark.parametrize(
    ("made", "options", "complaint"),
    [
        ({"status": "FINISHED"}, "", "is FINISHED, after 3 epochs; give more to go on with it, --"),
        ({"status": "FINISHED"}, "--max_epochs 3", "is FINISHED, after 3 epochs; give more"),
        ({"verb": "test"}, "", "is of `pyclassify test`, which trains nothing; `pyclassify rerun"),
        ({"tags": {"slurm_folder": "/x"}}, "", "is of the backend slurm; `pyclassify slurm resume"),
        ({}, "--devices 2", "was trained by 1 processes, and with --trainer.devices 2 it can't be"),
        ({}, "--learning_rate 1", "--model.learning_rate makes it another training than that of"),
        (
            {"package": "0"},
            "",
            "in no commit (git is not installed), and pyclassify has changed",
        ),
    ],
)
def test_run_that_can_not_go_on_is_refused_with_the_next_move(
    made, options, complaint, resume, tmp_path
):
    assert complaint in resume(make_run(tmp_path, **made), *options.split())


def test_checkpoints_of_another_machine_are_named(resume, tmp_path):
    run_id = make_run(tmp_path / "elsewhere", host="node7")

    said = resume(run_id)
    where = f"the checkpoints of run {run_id} were in {tmp_path}/elsewhere/runs on node7, and this"
    assert where in said
    assert f"or make the run again by `pyclassify rerun {run_id}`" in said


def test_run_of_another_project_is_refused(resume):
    other = mlflow.MlflowClient().create_run("0").info.run_id

    assert f"run {other} has no capsule" in resume(other)


def test_parent_of_seeds_that_never_began_is_refused(resume):
    client = mlflow.MlflowClient()
    parent = client.create_run("0", tags={"pyclassify.seeds": "0 to 2"}).info.run_id

    assert f"run {parent} is the parent of seeds of which none got as far" in resume(parent)


@pytest.fixture
def hold():
    """Start a process that writes to a run of a folder."""
    started = []

    def run(folder):
        code = TAKE.format(folder=str(folder)) + "import time; print(flush=True); time.sleep(60)"
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
        started.append(process)
        process.stdout.readline()
        return process.pid

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_run_that_goes_on_is_left_to_it(resume, hold, tmp_path):
    run_id = make_run(tmp_path)
    pid = hold(tmp_path / "runs" / "spool" / run_id)

    assert f"run {run_id} goes on in process {pid} on " in resume(run_id)


def test_second_training_of_a_run_stops_and_leaves_it_as_it_is(cli, hold, tmp_path):
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("tested").experiment_id
    run_id = client.create_run(experiment).info.run_id
    pid = hold(tmp_path / "runs" / "spool" / run_id)
    os.environ["MLFLOW_RUN_ID"] = run_id

    done = cli(f"fit {SHAPES}")

    assert done.code == 1
    assert f"error: the run {run_id} is being written by process {pid} on" in done.err
    (run,) = done.runs
    assert run.info.status == "RUNNING"
    assert run.data.params == {}
