"""What `pyclassify rerun` can't do, and says in one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from pyclassify.cli import main
from tests.support import repositories

ROOT = Path(__file__).parents[1]
COMMIT = "0123456789" * 4


@pytest.fixture
def rerun(empty_store, tmp_path, monkeypatch, capsys):
    """Type `pyclassify rerun` in a folder of no repository, and give what it complains of."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)

    def run(*words):
        assert main(["rerun", *words]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        return said.err

    yield run
    mlflow.set_tracking_uri(None)


def make_run(facts, config="trainer: {logger: true}"):
    """Make a run with a capsule, and give its id."""
    client = mlflow.MlflowClient()
    run_id = client.create_run(client.get_experiment_by_name("tested").experiment_id).info.run_id
    facts = {"verb": "fit", "command": [], "started_in": "/", **facts}
    client.log_text(run_id, json.dumps(facts), "capsule/capsule.json")
    client.log_text(run_id, config, "capsule/config.yaml")
    return run_id


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "rerun was given no run's id, which a run shows as `run` in its last lines"),
        (["latest"], "'latest' is no run's id: 32 hexadecimal digits, or the first 8 or more"),
        (["0" * 32], f"there is no run {'0' * 32} at sqlite:///"),
        (["0" * 32, "--config", "x.yaml"], "rerun takes the configuration that the run had"),
    ],
)
def test_wrong_words_are_refused(words, complaint, rerun):
    assert rerun(*words).startswith(f"pyclassify: error: {complaint}")


def test_run_of_another_project_is_refused(rerun):
    other = mlflow.MlflowClient().create_run("0").info.run_id

    assert f"error: run {other} has no capsule (the artifacts capsule/)" in rerun(other[:8])


def test_missing_commit_is_named_with_what_to_do(rerun, tmp_path, monkeypatch):
    run_id = make_run({"git": {"commit": COMMIT, "folder": ".", "remote": "git.org/x"}})
    monkeypatch.chdir(repositories.start(tmp_path / "other", {"a": "a"}))

    said = f"lacks the run's commit {COMMIT}; `git fetch` it (the run's was of git.org/x)"
    assert said in rerun(run_id)


def test_folder_without_a_repository_is_refused(rerun, tmp_path):
    said = rerun(make_run({"git": {"commit": COMMIT, "folder": "."}}))

    assert f"{tmp_path} is in no git repository; go into the one that has the run's" in said


def test_run_without_a_commit_is_refused(rerun):
    said = rerun(make_run({"git": {"missing": "git is not installed"}}))

    assert "as its code was in no commit (git is not installed); its artifact config.yaml" in said


def test_setting_that_was_masked_must_be_given(rerun):
    config = "trainer: {logger: true}\ndata: {init_args: {url: 'https://***@data.org'}}"
    run_id = make_run({"git": {"missing": "no more to say"}}, config)

    without = rerun(run_id)
    assert "has data.url without its credentials, https://***@data.org; give it whole" in without
    assert "no more to say" in rerun(run_id, "--data.url=https://data.org")


def test_store_that_can_not_be_read_is_named_without_its_password(rerun, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@localhost:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    said = rerun("0" * 32)
    assert "the runs at http://***@localhost:9 can't be read" in said
    assert "secret" not in said


def test_help_needs_no_torch():
    code = "import sys; from pyclassify.cli import main; main(['rerun', '--help'])"
    code += "; print('torch' in sys.modules, 'mlflow' in sys.modules)"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)

    assert said.startswith("usage: pyclassify rerun RUN_ID [--OPTION VALUE ...]")
    assert said.endswith("False False\n")
