"""What `pyclassify rerun` can't do, and says in one line."""

import json
import os
import subprocess
import sys

import mlflow
import pytest
import yaml

from pyclassify.cli.main import main
from tests.support import repositories
from tests.support.phrases import mentions
from tests.support.processes import ROOT
from tests.support.stores import experiment_id, list_runs

COMMIT = "0123456789" * 4


@pytest.fixture
def rerun(store, tmp_path, monkeypatch, capsys):
    """Type `pyclassify rerun` in a folder of no repository, and give what it complains of."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        assert main(["rerun", *words]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert said.err.startswith("pyclassify: error: ")
        return said.err

    return run


def make_run(facts, config="trainer: {logger: true}"):
    """Make a run with a capsule, and give its id."""
    client = mlflow.MlflowClient()
    run_id = client.create_run(experiment_id(client)).info.run_id
    facts = {"verb": "fit", "command": [], "started_in": "/", **facts}
    client.log_text(run_id, json.dumps(facts), "capsule/capsule.json")
    client.log_text(run_id, config, "capsule/config.yaml")
    return run_id


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        ([], ["rerun", "run's id"]),
        (["latest"], ["'latest'", "32 hexadecimal digits", "first 8"]),
        (["0" * 32], ["0" * 32, "sqlite:///"]),
        (["0" * 32, "--config", "x.yaml"], ["rerun", "configuration"]),
    ],
)
def test_wrong_words_are_refused(words, facts, rerun):
    assert mentions(rerun(*words), *facts)


def test_run_of_another_project_is_refused(rerun):
    other = mlflow.MlflowClient().create_run("0").info.run_id

    assert mentions(rerun(other[:8]), other, "capsule/")


def test_missing_commit_is_named_with_what_to_do(rerun, tmp_path, monkeypatch):
    run_id = make_run({"git": {"commit": COMMIT, "folder": ".", "remote": "git.org/x"}})
    monkeypatch.chdir(repositories.start(tmp_path / "other", {"a": "a"}))

    assert mentions(rerun(run_id), COMMIT, "`git fetch`", "git.org/x")


def test_folder_without_a_repository_is_refused(rerun, tmp_path):
    said = rerun(make_run({"git": {"commit": COMMIT, "folder": "."}}))

    assert mentions(said, tmp_path, "git repository")


def test_run_without_a_commit_is_refused(rerun):
    said = rerun(make_run({"git": {"missing": "git is not installed"}}))

    assert mentions(said, "commit", "(git is not installed)", "config.yaml")


def test_setting_that_was_masked_must_be_given(rerun):
    config = "trainer: {logger: true}\ndata: {init_args: {url: 'https://***@data.org'}}"
    run_id = make_run({"git": {"missing": "no more to say"}}, config)

    without = rerun(run_id)
    assert mentions(without, "data.url", "credentials", "https://***@data.org")
    assert "no more to say" in rerun(run_id, "--data.url=https://data.org")


def test_store_that_can_not_be_read_is_named_without_its_password(rerun, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@localhost:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    said = rerun("0" * 32)
    assert "http://***@localhost:9" in said
    assert "secret" not in said


def test_help_needs_no_torch():
    code = "import sys; from pyclassify.cli.main import main; main(['rerun', '--help'])"
    code += "; print('torch' in sys.modules, 'mlflow' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)

    assert said.startswith("usage: pyclassify rerun RUN_ID [--OPTION VALUE ...]")
    assert said.endswith("False False\n")


# In the place of this package at the run's commit: it notes what it was started with.
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
def test_training_that_ends_without_a_word_gives_its_run_a_status(
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
    assert made.data.tags["pyclassify.overridden"] == "--max_epochs 3"
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
