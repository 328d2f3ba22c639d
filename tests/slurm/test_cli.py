"""The commands of `pyclassify slurm`: their help and errors, and what they print."""

import argparse
import os
import re
from pathlib import Path

import mlflow.cli
import pytest
from mlflow.utils import env_manager

from pyclassify.cli import main
from pyclassify.slurm import cli
from pyclassify.utils.options import CommandParser
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
    ("argv", "code", "error"),
    [
        (["-P", "devices=auto"], 2, "invalid devices: auto (expected an integer from 1, "),
        (["-P", "devices"], 2, "invalid -P: 'devices' (expected NAME=VALUE, such as devices=2)\n"),
        (["-P", "devices=1", "-P", "devices=2"], 2, "-P devices is given twice"),
        (["-P", "api_token=0123456789"], 2, "-P api_token looks like a credential"),
        (["--devices", "2"], 2, "unknown option '--devices'; see `pyclassify slurm render --help`"),
        (["--env-manager", "pip"], 2, "invalid --env-manager: 'pip' (expected local"),
        (["-e", "maim"], 1, "pyclassify: error: Could not find maim among entry points"),
        (["-P", "trainer.callbacks+=X"], 2, "invalid name of -P: trainer.callbacks+ (expected "),
        (["-P", "a//b=1"], 2, "invalid name of -P: a//b (expected up to 250 letters"),
        (["-P", f"{'n' * 251}=1"], 2, "up to 250 letters"),
        ([word for n in range(101) for word in ("-P", f"a{n}=1")], 2, "101 parameters (expected "),
    ],
)
def test_render_with_an_invalid_argument_fails_in_one_line(argv, code, error, capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    exit_code, out, err = render(capsys, *argv)
    assert (exit_code, out, err.count("\n")) == (code, "", 1)
    assert error in err


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ([], "the following arguments are required: COMMAND; see `pyclassify slurm --help`"),
        (["stauts"], "unknown command 'stauts'. Did you mean 'status'? See `pyclassify slurm "),
        (["status"], "the following arguments are required: RUN_ID; see `pyclassify slurm status "),
        (["render", "-P", "x"], "the following arguments are required: URI; see `pyclassify slurm"),
        (["logs", "0123", "--folow"], "unknown option '--folow'. Did you mean '--follow'? See "),
        (["clear", "--days", "-1"], "invalid --days: -1 (expected a number from 0)"),
        (["clear", "--days", "nan"], "invalid --days: nan (expected a number from 0)"),
        (["resume", "0123", "--time", "soon"], "invalid --time: 'soon' (expected minutes, "),
    ],
)
def test_usage_error_exits_2_and_names_the_next_command(argv, error, capsys):
    code, out, err = run_command(capsys, *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"pyclassify: error: {error}")


def test_render_and_check_declare_the_parameters_of_mlflow_run():
    declared = [
        (
            sorted(each.opts),
            each.name,
            getattr(each, "is_flag", False),
            getattr(each, "multiple", False),
        )
        for each in mlflow.cli.run.params
    ]
    parser = CommandParser("slurm")
    cli._add_mlflow_arguments(parser)
    ours = [
        (
            sorted(each.option_strings) or [each.dest],
            each.dest,
            isinstance(each, argparse._StoreTrueAction),
            isinstance(each, argparse._AppendAction),
        )
        for each in parser._actions[1:]  # without --help
    ]

    assert sorted(ours) == sorted(declared)
    managers = next(each.choices for each in parser._actions if each.dest == "env_manager")
    known = vars(env_manager)
    assert {*managers} == {
        known[name] for name in known if name.isupper() and isinstance(known[name], str)
    }


def test_submission_with_a_name_that_mlflow_refuses_makes_no_run(store):
    parameters = {"trainer.callbacks+": "X"}

    with pytest.raises(mlflow.exceptions.ExecutionException, match="recipe"):
        mlflow.projects.run(str(ROOT), backend="slurm", parameters=parameters, experiment_id="0")

    assert store.search_runs(["0"]) == []


@pytest.mark.parametrize(
    ("given", "code", "error"),
    [
        ("{", 2, "--backend-config { is not valid JSON ("),
        ("[]", 2, "--backend-config [] is not a JSON object; give a file that ends with .json"),
        ('{"mem": 1, "mem": 2}', 2, "'mem' in --backend-config"),
        ("missing.json", 1, "--backend-config missing.json can't be read (No such file"),
        ('{"tiem": 1}', 2, "unknown key 'tiem' in the backend config. Did you mean 'time'?"),
        ('{"time": "soon"}', 2, "invalid time in the backend config: 'soon' (expected minutes"),
        ('{"setup": ["if true"]}', 2, "setup in the backend config is not valid bash ("),
        ('{"environment": "./none"}', 1, "environment is './none' in the backend config, but "),
    ],
)
def test_check_with_an_invalid_config_fails(given, code, error, capsys):
    exit_code, _, err = run_command(capsys, "check", ROOT, "--backend-config", given)
    assert (exit_code, err.count("\n")) == (code, 1)
    assert error in err


def test_help_of_the_group_has_one_line_for_each_command(capsys):
    with pytest.raises(SystemExit) as end:
        run_command(capsys, "--help")

    shown = capsys.readouterr().out
    assert end.value.code == 0
    for name, (summary, *_) in cli._HELP.items():
        assert re.search(rf"^  {name} +{re.escape(summary)}$", shown, re.MULTILINE)


@pytest.mark.parametrize("name", cli._HELP)
def test_help_of_each_command_has_complete_clauses_and_two_examples(name, capsys):
    with pytest.raises(SystemExit):
        run_command(capsys, name, "--help")

    shown = capsys.readouterr().out
    assert cli._HELP[name][0] in shown
    _, examples = shown.split("\nexamples:\n")
    assert len(examples.splitlines()) == 2
    assert all(line.startswith(f"  pyclassify slurm {name}") for line in examples.splitlines())


@pytest.mark.parametrize("argv", [["--help"], ["status", "--help"], ["render", "--help"]])
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
    assert mentions(
        err, run.info.run_id, "was not submitted to SLURM", "`mlflow run --backend slurm`"
    )


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_command_with_an_unknown_run_fails(capsys, command, empty_store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_store}")
    code, _, err = run_command(capsys, command, "012")
    assert (code, err.count("\n")) == (2, 1)
    assert mentions(err, "'012'", "32 hexadecimal digits", "first 4")

    assert f"no run {'0' * 32} at" in run_command(capsys, command, "0" * 32)[2]


def test_status_with_a_missing_store_fails_and_makes_none(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/nowhere.db")

    assert "there is no database at sqlite:///" in run_command(capsys, "status", "0" * 32)[2]
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
