"""The errors of `pyclassify rerun`, and its reproducibility check."""

import json
import os
import subprocess
import sys

import mlflow
import pytest
import yaml

from pyclassify.cli.main import main
from pyclassify.runs.rerun import (
    compare_capsules,
    compare_metrics,
    format_reproducibility_check,
)
from tests.support import repositories
from tests.support.phrases import mentions
from tests.support.processes import ROOT
from tests.support.stores import experiment_id, list_runs

COMMIT = "0123456789" * 4


@pytest.fixture
def rerun(store, tmp_path, monkeypatch, capsys):
    """Run `pyclassify rerun` in a folder that is not a repository; returns its error."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code=1):
        assert main(["rerun", *words]) == code
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.count("\n") == 1
        assert output.err.startswith("pyclassify: error: ")
        return output.err

    return run


def make_run(facts, config="trainer: {logger: true}"):
    """Make a run with a capsule; returns its id."""
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment_id(client)).info.run_id
    facts = {"subcommand": "fit", "command": [], "started_in": "/", **facts}
    client.log_text(run_id, json.dumps(facts), "capsule/capsule.json")
    client.log_text(run_id, config, "capsule/config.yaml")
    return run_id


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ([], ["rerun", "RUN_ID", "`pyclassify rerun --help`"]),
        (["--max_epochs", "3"], ["rerun", "RUN_ID"]),
        (["0" * 32, "--config", "x.yaml"], ["rerun", "--config", "--max_epochs 3"]),
    ],
)
def test_invalid_command_line_exits_2(words, facts, rerun):
    assert mentions(rerun(*words, code=2), *facts)


def test_unknown_run_exits_1(rerun):
    assert mentions(rerun("0" * 32), "0" * 32, "sqlite:///")


def test_run_without_capsule_fails(rerun):
    other = mlflow.MlflowClient().create_run("0").info.run_id

    assert mentions(rerun(other[:8]), other, "capsule/")


def test_missing_commit_names_git_fetch(rerun, tmp_path, monkeypatch):
    run_id = make_run({"git": {"commit": COMMIT, "folder": ".", "remote": "git.org/x"}})
    monkeypatch.chdir(repositories.start(tmp_path / "other", {"a": "a"}))

    assert mentions(rerun(run_id), COMMIT, "`git fetch`", "git.org/x")


def test_folder_without_a_repository_fails(rerun, tmp_path):
    output = rerun(make_run({"git": {"commit": COMMIT, "folder": "."}}))

    assert mentions(output, tmp_path, "git repository")


def test_run_without_a_commit_fails(rerun):
    output = rerun(make_run({"git": {"missing": "git is not installed"}}))

    assert mentions(output, "commit", "(git is not installed)", "config.yaml")


def test_masked_setting_must_be_given(rerun):
    config = "trainer: {logger: true}\ndata: {init_args: {url: 'https://***@data.org'}}"
    run_id = make_run({"git": {"missing": "git is missing"}}, config)

    without = rerun(run_id)
    assert mentions(without, "data.url", "credentials", "https://***@data.org")
    assert "git is missing" in rerun(run_id, "--data.url=https://data.org")


def test_unreadable_store_is_named_without_its_password(rerun, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@localhost:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    output = rerun("0" * 32)
    assert "http://***@localhost:9" in output
    assert "secret" not in output


HELP = """
import contextlib, sys
from pyclassify.cli.main import main
for command in ("compare", "promote", "rollback", "resume", "rerun"):
    with contextlib.suppress(SystemExit):
        main([command, "--help"])
print("torch" in sys.modules, "mlflow" in sys.modules)
"""


def test_help_ends_with_examples_and_loads_neither_torch_nor_mlflow():
    output = subprocess.check_output([sys.executable, "-c", HELP], cwd=ROOT, text=True)

    assert output.endswith("False False\n")
    assert max(map(len, output.splitlines())) <= 80
    *helps, rerun = output.split("usage: ")[1:]
    assert rerun.startswith("pyclassify rerun RUN_ID [--OPTION VALUE ...]")
    for text in (*helps, rerun):
        command = text.split()[1]
        assert text.partition("examples:")[2].count(f"\n  pyclassify {command} ") >= 2


# Replaces this package at the run's commit, and records how it was started.
TRAINING = """
import json, os, pathlib, signal, sys

path = pathlib.Path(sys.argv[sys.argv.index("--config") + 1])
noted = {"words": sys.argv[1:], "config": path.read_text(), "folder": os.getcwd()}
noted |= {name: os.environ[name] for name in json.loads(os.environ["NAMES"])}
pathlib.Path(os.environ["NOTED"]).write_text(json.dumps(noted))
"""


@pytest.mark.parametrize(
    ("ends", "code", "status"),
    [("os.kill(os.getpid(), signal.SIGKILL)", 137, "KILLED"), ("sys.exit(3)", 3, "FAILED")],
)
def test_training_that_does_not_end_its_run_has_it_ended(
    store, ends, code, status, tmp_path, monkeypatch
):
    names = ["MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "OMP_NUM_THREADS", "PYTHONPATH"]
    files = {"pyclassify/__init__.py": "", "pyclassify/__main__.py": TRAINING + ends}
    root = repositories.start(tmp_path / "root", files)
    paths = (root / "lib", tmp_path / "elsewhere")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("NOTED", str(tmp_path / "noted"))
    monkeypatch.setenv("NAMES", json.dumps(names))
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.chdir(root)
    commit = repositories.git(root, "rev-parse", "HEAD")
    facts = {"git": {"commit": commit, "folder": "."}, "hardware": {"threads": 3}}
    source = make_run(facts, "trainer: {logger: true}\nregister: {name: mine}")

    assert main(["rerun", source, "--max_epochs", "3"]) == code

    (made,) = (run for run in list_runs(store) if run.info.run_id != source)
    assert made.info.status == status
    assert made.data.tags["pyclassify.source_run"] == source
    assert made.data.tags["pyclassify.overrides"] == "--max_epochs 3"
    noted = json.loads((tmp_path / "noted").read_text())
    assert (noted["words"][0], noted["words"][-2:]) == ("fit", ["--max_epochs", "3"])
    assert yaml.safe_load(noted["config"])["register"] == {"name": None}
    tree = noted["folder"]
    assert [noted[name] for name in names] == [
        made.info.run_id,
        made.info.experiment_id,
        "3",
        os.pathsep.join([f"{tree}/lib", str(paths[1])]),
    ]
    assert not os.path.exists(tree)
    assert repositories.git(root, "worktree", "list").count("\n") == 0


LOSSES = {"train_loss": [0.1 + 0.2, 0.25, 0.125]}


@pytest.fixture
def log(module_store):
    """Log a run with these metrics; returns its id."""
    client = module_store
    experiment = experiment_id(client)

    def make(metrics):
        run_id = client.create_run(experiment).info.run_id
        for name, values in metrics.items():
            for step, value in enumerate(values):
                client.log_metric(run_id, name, value, step=step)
        return run_id

    make.client = client
    return make


@pytest.mark.parametrize(
    ("then", "now", "is_same", "facts"),
    [
        # the forms of these messages
        (LOSSES, LOSSES, True, ["bitwise identical to run {id}: train_loss at all 3 steps"]),
        (
            LOSSES,
            {"train_loss": [0.3, 0.25, 0.375]},
            False,
            [
                "not bitwise identical to run {id}: train_loss differs at 2 of 3 steps, first at "
                "step 0 (0.30000000000000004 -> 0.3), by at most 0.25"
            ],
        ),
        # of the same kinds
        (
            LOSSES,
            {"train_loss": [0.1 + 0.2, 0.25]},
            True,
            ["bitwise identical to run {id}", "train_loss at 2 of 3 steps"],
        ),
        (
            {"train_loss": [float("nan")]},
            {"train_loss": [float("nan")]},
            True,
            ["bitwise identical to run {id}", "train_loss at all 1 steps"],
        ),
        (
            {"test_loss": [0.5], "test_accuracy": [0.75], "seconds": [3]},
            {"test_loss": [0.5], "test_accuracy": [0.75], "seconds": [4]},
            True,
            ["bitwise identical to run {id}", "test_accuracy and test_loss at all 2 steps"],
        ),
        ({"x": [1]}, {"x": [1]}, False, ["{id}", "{other}", "no loss"]),
    ],
)
def test_compare_metrics_is_bitwise(then, now, is_same, facts, log):
    run_id, other = log(then), log(now)

    same, output = compare_metrics(log.client, run_id, other)

    assert mentions(output, *(each.format(id=run_id, other=other) for each in facts))
    assert same == is_same


def write_capsule(folder, facts=(), config=(), packages="torch==2.11.0\n"):
    folder.mkdir()
    hardware = {"cpu": "x", "threads": 2, "memory_gb": 8}
    sets = {"train": {"images": 1, "digest": "abc"}}
    whole = {"git": {"left_out": {}}, "package": "1", "python": "3.11.2", "hardware": hardware}
    whole |= {"data": {"splits": sets}, **dict(facts)}
    (folder / "capsule.json").write_text(json.dumps(whole))
    settings = {"model": {"init_args": {"learning_rate": 0.1}}, **dict(config)}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "packages.txt").write_text(packages)
    return folder


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({}, None),
        (
            {"packages": "torch==2.12.0\nnumpy==2.0\n"},
            # the form of this message
            ["versions: torch 2.11.0 -> 2.12.0, numpy none -> 2.0"],
        ),
        (
            {"facts": {"hardware": {"cpu": "x", "threads": 4, "memory_gb": 9}}},
            ["hardware", "threads 2 -> 4"],
        ),
        ({"facts": {"python": "3.12.0"}}, ["python", "3.11.2", "3.12.0"]),
        (
            {"facts": {"data": {"splits": {"train": {"images": 1, "digest": "def"}}}}},
            ["data", "train", "abc", "def"],
        ),
        ({"facts": {"data": None}}, ["data", "train", "abc", "none"]),
        ({"facts": {"package": "2"}}, ["code", "digest 1 -> 2"]),
        (
            {"config": {"model": {"init_args": {"learning_rate": 0.2}}}},
            ["settings", "model.learning_rate", "0.1", "0.2"],
        ),
        ({"config": {"trainer": {"logger": {"init_args": {"save_dir": "/x"}}}}}, None),
        ({"config": {"data": {"init_args": {"data_path": "/x"}}}}, None),
        (
            {
                "facts": {"weights": {"sha256": "7be5"}},
                "config": {"model": {"init_args": {"learning_rate": 0.1, "weights": "/x"}}},
            },
            ["weights", "none", "7be5"],
        ),
    ],
)
def test_compare_capsules_lists_what_can_change_a_loss(changed, facts, tmp_path):
    then, now = write_capsule(tmp_path / "then"), write_capsule(tmp_path / "now", **changed)

    lines = [*compare_capsules(then, now)]

    assert len(lines) == (facts is not None)
    assert facts is None or mentions(lines[0], *facts)
    assert "memory_gb" not in str(lines)


def test_compare_capsules_names_missing_files(tmp_path):
    facts = {"git": {"left_out": {"a.bin": "exceeds the limit"}}}
    then, now = write_capsule(tmp_path / "then", facts), write_capsule(tmp_path / "now")

    (line,) = compare_capsules(then, now)
    assert mentions(line, "files", "source run lacks a.bin")


@pytest.mark.parametrize(
    ("packages", "overridden", "facts"),
    [
        ("torch==2.11.0\n", "", ["no cause", "code", "configuration", "versions", "data"]),
        ("torch==2.11.0\n", "--seed 1", ["overridden options: --seed 1"]),
        ("torch==3.0\n", "", ["possible cause: versions: torch 2.11.0 -> 3.0"]),
    ],
)
def test_reproducibility_check_of_different_runs_names_causes(
    packages, overridden, facts, log, tmp_path
):
    runs = log(LOSSES), log({"train_loss": [0.5]})
    then = write_capsule(tmp_path / "then")
    now = write_capsule(tmp_path / "now", packages=packages)

    first, line = format_reproducibility_check(log.client, *runs, then, now, overridden)

    assert first.startswith("not bitwise identical to run ")
    assert mentions(line, *facts)


def test_reproducibility_check_of_identical_runs_names_overrides(log, tmp_path):
    runs = log(LOSSES), log({"train_loss": LOSSES["train_loss"][:2]})
    folders = [write_capsule(tmp_path / name) for name in ("then", "now")]

    lines = format_reproducibility_check(log.client, *runs, *folders, "--max_epochs 1")

    assert lines[0].endswith("train_loss at 2 of 3 steps")
    assert lines[1:] == ["overridden options: --max_epochs 1"]
