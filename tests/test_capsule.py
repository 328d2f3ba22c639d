"""The capsule of a run: what is in it, what stays out, and that it never costs a run."""

import json
import os
import tarfile
from importlib.metadata import version
from pathlib import Path

import mlflow
import pytest
import repositories
import yaml
from command_lines import SHAPES
from repositories import git

from pyclassify.tracking import capsule, changes, repository

SECRET = "hunter2-and-more"
CREDENTIALS = {
    "command": ["fit", "--data.token", SECRET, f"--data.url=https://me:{SECRET}@data.org/x"],
    "tracking_uri": f"mysql://me:pass/{SECRET}@db/runs",
    "data": {"name": "x", "source": f"https://data.org/x?user=me&sig_token={SECRET}&page=2"},
}


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a capsule of a run that starts in a folder, and give the capsule's folder."""

    def write(started_in, config=None, facts=None):
        monkeypatch.chdir(started_in)
        folder = tmp_path / "capsule"
        folder.mkdir()
        capsule.write(folder, config or {"seed_everything": 3}, facts or {}, ["runs"])
        return folder

    return write


def read(folder):
    return json.loads((folder / "capsule.json").read_text())


def test_run_keeps_its_capsule_and_its_data(cli):
    (run,) = cli(f"train {SHAPES} --seed 3 --accelerator cpu").runs

    client = mlflow.MlflowClient()
    facts = capsule.read_facts(client, run.info.run_id)
    assert facts["verb"] == "train"
    assert facts["command"][:2] == ["pyclassify", "train"]
    assert facts["command"][-4:] == ["--seed", "3", "--accelerator", "cpu"]
    assert facts["seed"] == 3
    assert facts["hardware"]["processes"] == 1
    sets = {name: each["images"] for name, each in facts["data"]["sets"].items()}
    assert sets == {"train": 40, "val": 20, "test": 20}
    logged = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert logged["test"].digest == facts["data"]["sets"]["test"]["digest"]
    assert json.loads(logged["train"].profile) == {"num_rows": 40, "num_classes": 10}


def test_capsule_is_there_when_the_run_fails_at_its_first_step(cli):
    with pytest.raises(ZeroDivisionError):
        cli(f"fit {SHAPES}", "--trainer.callbacks+=foreign.Bug")

    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("tested").experiment_id])
    assert run.info.status == "FAILED"
    assert capsule.read_facts(client, run.info.run_id)["verb"] == "fit"


def test_configuration_in_it_is_the_resolved_one(written):
    config = {"seed_everything": 3, "data": {"class_path": "x.Data"}}

    assert yaml.safe_load((written(Path(), config) / "config.yaml").read_text()) == config


def test_exact_versions_are_listed(written):
    lines = (written(Path()) / "packages.txt").read_text().splitlines()

    assert f"torch=={version('torch')}" in lines


def test_commit_and_changes_put_the_files_back_bit_by_bit(written, tmp_path):
    repo = repositories.start(tmp_path / "repo", {"net.py": "a\n", "logo.png": b"\0\1", "old": "x"})
    edited = {"net.py": "b", "logo.png": b"\0\2\xff", "staged.py": "s\n", "sub/new.py": "n\n"}
    repositories.write(repo, edited)
    git(repo, "add", "staged.py")
    (repo / "old").unlink()

    folder = written(repo / "sub")

    code = repository.Code(read(folder)["git"]["commit"], read(folder)["git"]["folder"])
    code.changes = (folder / "changes.diff").read_bytes()
    code.untracked = (folder / "untracked.tar").read_bytes()
    with repository.checked_out(repo, code, tmp_path / "tree") as started_in:
        assert started_in == tmp_path / "tree" / "sub"
        tree = tmp_path / "tree"
        assert git(tree, "diff", "--binary", "HEAD") == git(repo, "diff", "--binary", "HEAD")
        assert not (tree / "old").exists()
        for name in edited:
            assert (tree / name).read_bytes() == (repo / name).read_bytes()
    assert not tree.exists()
    assert len(git(repo, "worktree", "list").splitlines()) == 1


def test_users_settings_of_diffs_do_not_spoil_them(written, tmp_path):
    repo = repositories.start(tmp_path / "repo", {"net.py": "a\n"})
    for setting in ("diff.noprefix=true", "color.ui=always", "diff.external=false"):
        git(repo, "config", *setting.split("="))
    repositories.write(repo, {"net.py": "b\n"})

    assert b"--- a/net.py\n+++ b/net.py" in (written(repo) / "changes.diff").read_bytes()


def test_clean_tree_has_neither_diff_nor_tar(written, tmp_path):
    names = os.listdir(written(repositories.start(tmp_path / "repo", {"a": "a"})))

    assert sorted(names) == ["capsule.json", "config.yaml", "packages.txt"]


def test_what_runs_leave_behind_and_what_git_ignores_is_not_packed(written, tmp_path):
    repo = repositories.start(tmp_path / "repo", {".gitignore": "data/\n"})
    kept = {"net.py": "n"}
    left = {"mlflow.db": "1", "mlruns/0/x": "2", "runs/0/best.ckpt": "3", "data/1.png": "4"}
    repositories.write(repo, {**kept, **left})

    with tarfile.open(written(repo) / "untracked.tar") as tar:
        assert tar.getnames() == ["net.py"]


def test_files_over_the_limit_are_left_out_by_name_and_small_ones_kept(
    written, tmp_path, monkeypatch
):
    monkeypatch.setattr(changes, "LIMIT", 2**20)
    repo = repositories.start(tmp_path / "repo", {"tracked": b"a"})
    repositories.write(repo, {"a.bin": bytes(2**20), "net.py": "n", "tracked": os.urandom(2**21)})

    with pytest.warns(UserWarning, match=r"left out of the run's capsule: tracked is over the li"):
        folder = written(repo)

    assert read(folder)["git"]["left_out"].keys() == {"tracked", "a.bin"}
    with tarfile.open(folder / "untracked.tar") as tar:
        assert tar.getnames() == ["net.py"]


def test_no_credentials_are_in_any_file(written, tmp_path, monkeypatch):
    repo = repositories.start(tmp_path / "repo", {"a.py": "a\n", "b.py": "b\n"})
    git(repo, "remote", "add", "origin", f"https://me:{SECRET}@git.org/x.git")
    repositories.write(repo, {".env": f"X={SECRET}", "c.py": f'u = "redis://:{SECRET}@host"'})
    repositories.write(repo, {"a.py": f'u = "https://me:{SECRET}@host"\n', "b.py": "changed\n"})
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    config = {
        "trainer": {"logger": {"init_args": {"tracking_uri": f"https://me:{SECRET}@mlflow.org"}}},
        "data": {"init_args": {"password": SECRET, "urls": [f"s3://key:{SECRET}@bucket"]}},
    }

    with pytest.warns(UserWarning, match="may have credentials in it"):
        folder = written(repo, config, CREDENTIALS)

    for path in folder.iterdir():
        assert SECRET.encode() not in path.read_bytes(), path.name
    assert read(folder)["git"]["left_out"].keys() == {".env", "a.py", "c.py"}
    assert b"+changed" in (folder / "changes.diff").read_bytes()
    assert read(folder)["command"][1:3] == ["--data.token", "***"]
    assert read(folder)["git"]["remote"] == "https://***@git.org/x.git"


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda folder: None, "is in no git repository"),
        (lambda folder: git(folder, "init", "--quiet"), "has no commit yet"),
    ],
)
def test_without_a_commit_the_capsule_says_why(start, words, written, tmp_path, monkeypatch):
    monkeypatch.setattr(capsule, "PACKAGE", tmp_path)
    (tmp_path / "plain").mkdir()
    start(tmp_path / "plain")

    assert words in read(written(tmp_path / "plain"))["git"]["missing"]


def test_without_git_the_capsule_says_so(written, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert read(written(tmp_path))["git"] == {"missing": "git is not installed"}


def test_code_of_a_run_elsewhere_is_that_of_the_package(written, tmp_path, monkeypatch):
    repo = repositories.start(tmp_path / "repo", {"pyclassify/__init__.py": ""})
    monkeypatch.setattr(capsule, "PACKAGE", repo / "pyclassify")
    (tmp_path / "elsewhere").mkdir()

    facts = read(written(tmp_path / "elsewhere"))

    assert facts["git"]["commit"] == git(repo, "rev-parse", "HEAD")
    assert facts["git"]["folder"] == "."


def test_capsule_that_can_not_be_kept_costs_a_warning(empty_store):
    client = mlflow.MlflowClient(f"sqlite:///{empty_store}")

    with pytest.warns(UserWarning, match=r"the run has no capsule, and can't be made again"):
        capsule.keep(client, "0" * 32, {}, {})
