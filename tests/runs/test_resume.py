"""The errors of `pyclassify resume`, and how it starts the training."""

import json
import os
import socket

import mlflow
import pytest

from pyclassify.cli.main import main
from pyclassify.spool.records import create_from_server, format_spool_uri
from pyclassify.spool.store import register_scheme
from pyclassify.tracking import capsule
from tests.support import processes
from tests.support.phrases import mentions
from tests.support.processes import PIPE, ROOT
from tests.support.spooled import ACQUIRE
from tests.support.stores import experiment_id
from tests.support.trainings import SHAPES


@pytest.fixture
def resume(store, tmp_path, monkeypatch, capsys):
    """Run `pyclassify resume` in a folder that is not a repository; returns its error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()

    def run(*words, code=1):
        assert main(["resume", *words]) == code
        output = capsys.readouterr()
        assert output.err.count("\n") == 1
        assert output.err.startswith("pyclassify: error: ")
        return output.err

    return run


def make_run(folder, status="KILLED", tags=(), **facts):
    """Make a run with a capsule; returns its id."""
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment_id(client), tags=dict(tags)).info.run_id
    log_capsule(client, run_id, folder, **facts)
    client.set_terminated(run_id, status)
    return run_id


def log_capsule(client, run_id, folder, **facts):
    known = {
        "subcommand": "fit",
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


def test_capsule_that_was_not_uploaded_before_the_kill_is_uploaded(resume, tmp_path):
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment_id(client)).info.run_id
    assert mentions(resume(run_id), "no capsule", "pyclassify sync")
    root = tmp_path / "runs" / "spool"
    create_from_server(root, client, run_id)
    register_scheme()
    log_capsule(mlflow.MlflowClient(format_spool_uri(root)), run_id, tmp_path, subcommand="test")
    assert mentions(resume(run_id), "`pyclassify test`", f"`pyclassify rerun {run_id}`")


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["0" * 32, "--config", "x"], ["one run's ID", "'--config'"]),
        (["0" * 32, "1" * 32], ["one run's ID", "1" * 32]),
        ([], ["RUN_ID", "`pyclassify resume --help`"]),
    ],
)
def test_invalid_command_line_exits_2(words, facts, resume):
    assert mentions(resume(*words, code=2), *facts)


def test_unknown_run_exits_1(resume):
    assert mentions(resume("0" * 32), "0" * 32, "sqlite:///")


@pytest.mark.parametrize(
    ("made", "options", "facts"),
    [
        ({"status": "FINISHED"}, "", ["FINISHED", "3 epochs", "--max_epochs 6"]),
        ({"status": "FINISHED"}, "--max_epochs 3", ["FINISHED", "3 epochs", "--max_epochs 6"]),
        ({"subcommand": "test"}, "", ["`pyclassify test`", "`pyclassify rerun"]),
        ({"tags": {"slurm_folder": "/x"}}, "", ["slurm", "`pyclassify slurm resume"]),
        ({}, "--devices 2", ["1 processes", "--trainer.devices 2", "--allow-inexact"]),
        ({}, "--learning_rate 1", ["--model.learning_rate", "--allow-inexact"]),
        ({"package": "0"}, "", ["(git is not installed)", "pyclassify has changed"]),
    ],
)
def test_run_that_can_not_resume_names_the_next_command(made, options, facts, resume, tmp_path):
    run_id = make_run(tmp_path, **made)

    assert mentions(resume(run_id, *options.split()), run_id, *facts)


def test_checkpoints_of_another_machine_fail(resume, tmp_path):
    run_id = make_run(tmp_path / "elsewhere", host="node7")

    output = resume(run_id)
    assert mentions(output, f"run {run_id}", f"{tmp_path}/elsewhere/runs on node7")
    assert f"`pyclassify rerun {run_id}`" in output


def test_run_without_capsule_fails(resume):
    other = mlflow.MlflowClient().create_run("0").info.run_id

    assert mentions(resume(other), f"run {other}", "capsule")


def test_parent_without_any_capsule_fails(resume):
    client = mlflow.MlflowClient()
    parent = client.create_run("0", tags={"pyclassify.seeds": "0 to 2"}).info.run_id

    assert mentions(resume(parent), f"run {parent}", "parent of seeds")


# Replaces this package, in the folder that the run was started in.
TRAINING = (
    "import os, pathlib, signal, sys\npathlib.Path('words').write_text(' '.join(sys.argv[1:]))\n"
)
KILLS_ITSELF = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def train(store, tmp_path, monkeypatch, capsys):
    """Run `pyclassify resume` with a fake training; returns the exit code and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "pyclassify").mkdir()
    (tmp_path / "pyclassify" / "__init__.py").touch()

    def run(code, *words):
        (tmp_path / "pyclassify" / "__main__.py").write_text(TRAINING + code)
        return main(["resume", *words]), capsys.readouterr().err

    return run


def test_killed_training_kills_its_run(train, store, tmp_path):
    run_id = make_run(tmp_path, "FAILED")

    code, output = train(KILLS_ITSELF, run_id, "--max_epochs", "5")

    assert code == 137
    run = store.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["pyclassify.resumed_with"] == "--max_epochs=5"
    assert (tmp_path / "words").read_text().startswith("fit --config ")
    assert (tmp_path / "words").read_text().endswith(" --max_epochs=5")
    where = tmp_path / "runs" / run.info.experiment_id / run_id / "checkpoints" / "resume"
    assert mentions(output, run_id, f"no checkpoint in {where}", "beginning")


def test_exit_code_and_status_are_those_of_the_training(train, store, tmp_path):
    run_id = make_run(tmp_path, "FAILED")

    assert train("sys.exit(3)", run_id)[0] == 3

    run = store.get_run(run_id)
    assert run.info.status == "FAILED"
    assert "pyclassify.resumed_with" not in run.data.tags


def test_resume_names_the_last_checkpoint_and_other_threads(train, store, tmp_path, monkeypatch):
    run_id = make_run(tmp_path)
    experiment = store.get_run(run_id).info.experiment_id
    folder = tmp_path / "runs" / experiment / run_id / "checkpoints" / "resume"
    folder.mkdir(parents=True)
    for step in (96, 104):
        (folder / f"step={step:08}.ckpt").touch()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    code, output = train("", run_id)

    assert code == 0
    assert f"{folder}/step=00000104.ckpt\n" in output
    assert mentions(output, "warning", "1 threads", "OMP_NUM_THREADS is 2")


def test_allow_inexact_resumes_with_the_current_code(train, tmp_path):
    run_id = make_run(tmp_path, package="0")

    assert train("", run_id, "--allow-inexact")[0] == 0

    assert (tmp_path / "words").read_text().endswith(" --resume.allow_inexact=true")


@pytest.fixture
def lock_run():
    """Start a process that writes to a run of a folder."""
    started = []

    def run(folder):
        code = (
            ACQUIRE.format(folder=str(folder)) + "import time; print(flush=True); time.sleep(600)"
        )
        process = processes.start("-c", code, fresh=True, cwd=ROOT, stdout=PIPE)
        started.append(process)
        process.stdout.readline()
        return process.pid

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_running_run_fails(resume, lock_run, tmp_path):
    run_id = make_run(tmp_path)
    pid = lock_run(tmp_path / "runs" / "spool" / run_id)

    assert mentions(resume(run_id), f"run {run_id}", f"process {pid} on {socket.gethostname()}")


def test_second_training_of_a_run_fails_and_leaves_it_running(cli, lock_run, tmp_path):
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment_id(client)).info.run_id
    pid = lock_run(tmp_path / "runs" / "spool" / run_id)
    os.environ["MLFLOW_RUN_ID"] = run_id

    done = cli(f"fit {SHAPES}")

    assert done.code == 1
    assert mentions(done.err, f"error: the run {run_id}", f"process {pid} on")
    (run,) = done.runs
    assert run.info.status == "RUNNING"
    assert run.data.params == {}
