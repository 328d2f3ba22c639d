"""The snapshot of a project, and what its parameters then name."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.projects._project_spec import EntryPoint

from pyclassify.cli.main import main
from pyclassify.slurm import cli, snapshot
from pyclassify.slurm.topology import resolve_paths
from pyclassify.spool.uploader import Uploader
from pyclassify.utils import repository
from tests.support import ports, repositories, spooled
from tests.support.phrases import mentions
from tests.support.stores import experiment_id


def take(project, tmp_path):
    folder = tmp_path / "work" / "run"
    folder.mkdir(parents=True)
    names, left_out = repository.list_project_files(project, without=folder.parent)
    snapshot.take_snapshot(project, folder, names, left_out)
    files = {
        str(path.relative_to(folder / "project"))
        for path in (folder / "project").rglob("*")
        if not path.is_dir() and ".git/" not in str(path)
    }
    return folder, files, left_out


def test_tracked_and_unignored_files_are_copied_as_they_are(tmp_path):
    project = repositories.start(
        tmp_path / "project",
        {".gitignore": "data/\n", "train.py": "old", "gone.py": "", "package/run.sh": "#!/bin/sh"},
    )
    (project / "package/run.sh").chmod(0o755)
    more = {"train.py": "new", "untracked.py": "1", "data/x": "big", "mlruns/0/a": "", ".env": "K"}
    repositories.write(project, more)
    (project / "gone.py").unlink()

    folder, files, left_out = take(project, tmp_path)

    assert files == {".gitignore", "train.py", "package/run.sh", "untracked.py"}
    assert (folder / "project/train.py").read_text() == "new"
    assert os.access(folder / "project/package/run.sh", os.X_OK)
    assert left_out == {".env": "may contain credentials"}


def test_commit_and_diff_are_noted(tmp_path):
    project = repositories.start(tmp_path / "project", {"train.py": "old\n"})
    repositories.write(project, {"train.py": "new\n"})

    folder, _, _ = take(project, tmp_path)

    facts = json.loads((folder / "snapshot.json").read_text())
    assert facts["commit"] == repositories.git(project, "rev-parse", "HEAD")
    assert "+new" in (folder / "changes.diff").read_text()


def test_snapshot_is_a_checkout_of_the_commit_with_the_changes(tmp_path):
    project = repositories.start(tmp_path / "project", {"train.py": "old\n"})
    repositories.write(project, {"train.py": "new\n", "more.py": ""})

    folder, _, _ = take(project, tmp_path)

    git = repositories.git
    copy = folder / "project"
    assert git(copy, "rev-parse", "HEAD") == git(project, "rev-parse", "HEAD")
    assert git(copy, "status", "--porcelain") == "M train.py\n?? more.py"
    assert git(copy, "diff", "HEAD") == git(project, "diff", "HEAD")


def test_project_in_no_repository_is_copied_without_what_runs_and_installs_leave(tmp_path):
    files = {"MLproject": "", "a/b.py": "", "mlruns/0/meta.yaml": "", ".venv/pyvenv.cfg": ""}
    project = tmp_path / "project"
    project.mkdir()
    repositories.write(project, files)
    with (project / "big.bin").open("wb") as big:
        big.truncate(repository.MAX_FILE_BYTES + 1)

    _, copied, left_out = take(project, tmp_path)

    assert copied == {"MLproject", "a/b.py"}
    assert left_out == {"big.bin": "is larger than 50 MB"}


def test_file_that_is_not_regular_is_left_out(tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    repositories.write(project, {"MLproject": ""})
    os.mkfifo(project / "pipe")  # without a writer: a read would block forever

    _, copied, left_out = take(project, tmp_path)

    assert copied == {"MLproject"}
    assert left_out == {"pipe": "is not a regular file"}


def test_project_is_copied_whole_where_git_is_not_installed(tmp_path, monkeypatch):
    project = repositories.start(tmp_path / "project", {"train.py": "", ".gitignore": "data/\n"})
    repositories.write(project, {"data/x": "1", "mlruns/0/a": ""})
    monkeypatch.setenv("PATH", str(tmp_path))

    folder, copied, left_out = take(project, tmp_path)

    assert (copied, left_out) == ({"train.py", ".gitignore", "data/x"}, {})
    assert json.loads((folder / "snapshot.json").read_text())["commit"] == ""


def test_repository_that_git_can_not_read_is_an_error(tmp_path):
    project = repositories.start(tmp_path / "project", {"train.py": ""})
    (project / ".git/config").write_text("[core\n")

    with pytest.raises(OSError, match=r"git .* config"):
        repository.list_project_files(project)


def test_project_in_a_folder_of_a_repository_has_its_commit_and_its_own_files(tmp_path):
    files = {"project/MLproject": "", "project/train.py": "old\n", "more.py": ""}
    root = repositories.start(tmp_path / "root", files)
    repositories.write(root, {"project/train.py": "new\n"})

    folder, copied, _ = take(root / "project", tmp_path)

    assert copied == {"MLproject", "train.py"}
    facts = json.loads((folder / "snapshot.json").read_text())
    assert facts["commit"] == repositories.git(root, "rev-parse", "HEAD")
    assert "+new" in (folder / "changes.diff").read_text()
    assert not (folder / "project/.git").exists()


def test_copied_reporter_starts_without_any_package(tmp_path):
    project = repositories.start(tmp_path / "project", {"train.py": ""})

    folder, _, _ = take(project, tmp_path)

    # Until it asks MLflow it imports the standard library and what was copied alone.
    command = [
        sys.executable,
        "-S",
        "-c",
        "import pyclassify.slurm.reporter as module; print(module)",
    ]
    started = subprocess.run(
        command, cwd=folder / "reporter", capture_output=True, text=True, check=True
    )
    assert str(folder / "reporter") in started.stdout


def test_submodule_is_copied_with_its_files(tmp_path):
    library = repositories.start(tmp_path / "library", {"a.py": "1", ".gitignore": "*.bin\n"})
    project = repositories.start(tmp_path / "project", {"train.py": ""})
    repositories.add_submodule(project, library, "lib")
    repositories.write(project, {"lib/b.py": "2", "lib/c.bin": "3"})

    folder, copied, _ = take(project, tmp_path)

    names = {name for name in copied if name.startswith("lib/") and "/.git/" not in name}
    assert names == {"lib/.gitignore", "lib/a.py", "lib/b.py"}
    copy = folder / "project/lib"
    assert repositories.git(copy, "rev-parse", "HEAD") == repositories.git(
        library, "rev-parse", "HEAD"
    )
    assert repositories.git(copy, "status", "--porcelain") == "?? b.py"


@pytest.mark.parametrize("in_git", [False, True])
def test_loops_of_links_are_links_in_the_snapshot(tmp_path, in_git):
    project = tmp_path / "project"
    (project / "deep").mkdir(parents=True)
    links = {"a": "b", "b": "a", "self": ".", "me": "me", "deep/up": "..", "out": "../c"}
    for name, target in links.items():
        (project / name).symlink_to(target)
    (tmp_path / "c").symlink_to("d")
    (tmp_path / "d").symlink_to("c")
    if in_git:
        repositories.start(project, {})

    folder, _, left_out = take(project, tmp_path)

    assert left_out == {}
    copied = {path.name for path in (folder / "project").rglob("*") if path.is_symlink()}
    assert {"a", "b", "me", "out"} <= copied
    assert os.readlink(folder / "project/a") == "b"


def test_links_out_of_the_project_are_kept(tmp_path):
    (tmp_path / "data").mkdir()
    project = repositories.start(tmp_path / "project", {"inside.txt": "1"})
    (project / "data").symlink_to("../data")
    (project / "near").symlink_to("inside.txt")

    folder, _, _ = take(project, tmp_path)

    assert os.readlink(folder / "project/data") == str(tmp_path / "data")
    assert os.readlink(folder / "project/near") == "inside.txt"


def test_work_dir_in_the_project_is_not_copied(tmp_path):
    project = repositories.start(tmp_path, {"train.py": ""})
    take(project, tmp_path)
    shutil.move(tmp_path / "work/run", tmp_path / "work/earlier")

    _, files, _ = take(project, tmp_path)

    assert files == {"train.py"}


@pytest.mark.parametrize(
    ("given", "placed"),
    [
        ({"data_path": "data"}, {"data_path": "/here/data"}),
        ({"data_path": "inside"}, {"data_path": "inside"}),
        ({"data_path": "/abs"}, {"data_path": "/abs"}),
        ({"data.data_path": "data"}, {"data.data_path": "/here/data"}),
        ({"ckpt_path": "0123456789abcdef"}, {"ckpt_path": "0123456789abcdef"}),
        ({"weights": "DEFAULT"}, {"weights": "DEFAULT"}),
        ({"model.weights": "inside"}, {"model.weights": "inside"}),
        ({"table": "t.csv"}, {"table": "/here/t.csv"}),
        ({"table": "inside"}, {"table": "/run/project/inside"}),
        ({"table": "s3://bucket/t.csv"}, {"table": "s3://bucket/t.csv"}),
        ({"name": "data"}, {"name": "data"}),
    ],
)
def test_path_parameters_mean_the_same_in_the_job(given, placed):
    entry_point = EntryPoint("main", {"table": "path", "name": "string"}, "true")
    where = (Path("/run/project"), Path("/here"))
    assert resolve_paths(given, entry_point, {"inside"}.__contains__, *where) == placed


def test_folders_of_ended_runs_are_cleared_and_no_others(tmp_path, store):
    old, recent, going = (store.create_run(experiment_id(store)).info.run_id for _ in range(3))
    store.set_terminated(old, "FAILED", int((time.time() - 8 * 86_400) * 1000))
    store.set_terminated(recent)
    for name in (old, recent, going, "someone elses"):
        repositories.write(tmp_path / "work" / name, {"snapshot.json": "{}", "project/a": "1"})
    repositories.write(tmp_path / "work" / "no run's", {"a": "1"})

    would = [
        folder.name for folder, _ in cli.remove_old_folders(tmp_path / "work", 7, dry_run=True)
    ]
    [*_] = cli.remove_old_folders(tmp_path / "work", 7)

    assert would == [old]
    left = {path.name for path in (tmp_path / "work").iterdir()}
    assert left == {recent, going, "someone elses", "no run's"}


def test_clear_with_the_server_away_says_so_and_removes_nothing(tmp_path, monkeypatch, capsys):
    url = f"http://127.0.0.1:{ports.free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    repositories.write(tmp_path / "work" / ("0" * 32), {"snapshot.json": "{}"})

    assert main(["slurm", "clear", f"{tmp_path}/work"]) == 1

    error = capsys.readouterr().err
    assert mentions(error, "pyclassify: error: ", url)
    assert error.count("\n") == 1
    assert (tmp_path / "work" / ("0" * 32)).is_dir()


def test_clear_without_a_store_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    (tmp_path / "work").mkdir()

    assert main(["slurm", "clear", f"{tmp_path}/work"]) == 1

    assert mentions(
        capsys.readouterr().err, "pyclassify: error: there is no database at ", "none.db"
    )
    assert not (tmp_path / "none.db").exists()


def test_folder_of_runs_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OSError, match=rf'{tmp_path}/work is not a folder; .*"work_dir"'):
        [*cli.remove_old_folders(tmp_path / "work", 7)]


def test_folder_stays_that_holds_what_no_server_has(tmp_path, empty_store, monkeypatch):
    with spooled.open_run_with_spool(empty_store, tmp_path) as made:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.there.tracking_uri)
        folder = tmp_path / "work" / made.run_id
        repositories.write(folder, {"snapshot.json": "{}"})
        made.client.log_metric(made.run_id, "loss", 0.5, step=1)
        (tmp_path / "spool").rename(folder / "spool")
        made.there.set_terminated(made.run_id, "FAILED", int((time.time() - 8 * 86_400) * 1000))

        assert [*cli.remove_old_folders(tmp_path / "work", 7)] == []
        Uploader(folder / "spool" / made.run_id, made.there).upload()
        [(cleared, _)] = cli.remove_old_folders(tmp_path / "work", 7)

    assert cleared == folder
