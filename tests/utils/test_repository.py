"""The code in a run's capsule: the commit, what was changed, and what was new."""

import io
import os
import tarfile

import pytest

from pyclassify.tracking import capsule
from pyclassify.utils import repository
from tests.support import repositories
from tests.support.repositories import git


def test_worktree_has_the_files_bitwise_identical(write_capsule, tmp_path):
    repo = repositories.start(tmp_path / "repo", {"net.py": "a\n", "logo.png": b"\0\1", "old": "x"})
    edited = {"net.py": "b", "logo.png": b"\0\2\xff", "staged.py": "s\n", "sub/new.py": "n\n"}
    repositories.write(repo, edited)
    git(repo, "add", "staged.py")
    (repo / "old").unlink()

    folder, facts = write_capsule(repo / "sub")

    code = repository.Code(facts["git"]["commit"], facts["git"]["folder"])
    code.changes = (folder / "changes.diff").read_bytes()
    code.untracked = (folder / "untracked.tar").read_bytes()
    with repository.check_out_worktree(repo, code, tmp_path / "tree") as started_in:
        assert started_in == tmp_path / "tree" / "sub"
        tree = tmp_path / "tree"
        assert git(tree, "diff", "--binary", "HEAD") == git(repo, "diff", "--binary", "HEAD")
        assert not (tree / "old").exists()
        for name in edited:
            assert (tree / name).read_bytes() == (repo / name).read_bytes()
    assert not tree.exists()
    assert len(git(repo, "worktree", "list").splitlines()) == 1


def pack(name, kind=tarfile.REGTYPE, mode=0o644):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode, entry.linkname = kind, mode, "/etc/passwd"
        entry.size = 3 if kind == tarfile.REGTYPE else 0
        tar.addfile(entry, io.BytesIO(b"new"))
    return packed.getvalue()


def test_untracked_file_is_unpacked_with_its_mode_but_no_special_bits(tmp_path):
    repository._unpack_files(pack("sub/run.sh", mode=0o4750), tmp_path)

    assert (tmp_path / "sub/run.sh").read_bytes() == b"new"
    assert (tmp_path / "sub/run.sh").stat().st_mode & 0o7777 == 0o750


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (pack("../x"), r"untracked file \.\./x .*outside .*tree"),
        (pack("/x/y"), "untracked file /x/y .*outside .*tree"),
        (pack("out/x"), "untracked file out/x .*outside .*tree"),
        (pack("x", tarfile.SYMTYPE), "untracked x .*regular file"),
        (pack("x", tarfile.LNKTYPE), "untracked x .*regular file"),
        (pack("x", tarfile.FIFOTYPE), "untracked x .*regular file"),
    ],
)
def test_tar_that_reaches_beyond_its_folder_raises(packed, words, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "out").symlink_to(tmp_path)  # as a commit may have it

    with pytest.raises(OSError, match=words):
        repository._unpack_files(packed, tree)

    assert [each.name for each in tmp_path.iterdir()] == ["tree"]
    assert [each.name for each in tree.iterdir()] == ["out"]


def test_users_settings_of_diffs_do_not_spoil_them(write_capsule, tmp_path):
    repo = repositories.start(tmp_path / "repo", {"net.py": "a\n"})
    for setting in ("diff.noprefix=true", "color.ui=always", "diff.external=false"):
        git(repo, "config", *setting.split("="))
    repositories.write(repo, {"net.py": "b\n"})

    folder, _ = write_capsule(repo)

    assert b"--- a/net.py\n+++ b/net.py" in (folder / "changes.diff").read_bytes()


def test_clean_tree_has_neither_diff_nor_tar(write_capsule, tmp_path):
    folder, _ = write_capsule(repositories.start(tmp_path / "repo", {"a": "a"}))

    assert sorted(os.listdir(folder)) == ["capsule.json", "config.yaml", "packages.txt"]


def test_files_left_by_runs_and_ignored_files_are_not_packed(write_capsule, tmp_path):
    repo = repositories.start(tmp_path / "repo", {".gitignore": "data/\n"})
    kept = {"net.py": "n"}
    left = {"mlflow.db": "1", "mlruns/0/x": "2", "runs/0/best.ckpt": "3", "data/1.png": "4"}
    repositories.write(repo, {**kept, **left})

    folder, _ = write_capsule(repo)

    with tarfile.open(folder / "untracked.tar") as tar:
        assert tar.getnames() == ["net.py"]


def test_files_of_the_database_are_left_out_and_a_dump_of_it_is_listed(tmp_path):
    repo = repositories.start(tmp_path / "repo", {"net.py": "n"})
    database = ("mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlflow.db-journal")
    repositories.write(repo, dict.fromkeys((*database, "mlflow.db.sql"), "x"))

    names, left_out = repository.list_project_files(repo)

    assert (sorted(names), left_out) == (["mlflow.db.sql", "net.py"], {})


def test_files_over_the_limit_are_left_out_and_small_ones_packed(
    write_capsule, tmp_path, monkeypatch
):
    monkeypatch.setattr(repository, "MAX_CHANGES_BYTES", 2**20)
    repo = repositories.start(tmp_path / "repo", {"tracked": b"a"})
    repositories.write(repo, {"a.bin": bytes(2**20), "net.py": "n", "tracked": os.urandom(2**21)})

    with pytest.warns(UserWarning, match=r"capsule: tracked .*limit"):
        folder, facts = write_capsule(repo)

    assert facts["git"]["left_out"].keys() == {"tracked", "a.bin"}
    with tarfile.open(folder / "untracked.tar") as tar:
        assert tar.getnames() == ["net.py"]


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (lambda folder: None, "is in no git repository"),
        (lambda folder: git(folder, "init", "--quiet"), "has no commit yet"),
    ],
)
def test_without_a_commit_the_capsule_says_why(start, words, write_capsule, tmp_path, monkeypatch):
    monkeypatch.setattr(capsule, "PACKAGE_FOLDER", tmp_path)
    (tmp_path / "plain").mkdir()
    start(tmp_path / "plain")

    _, facts = write_capsule(tmp_path / "plain")

    assert words in facts["git"]["missing"]


def test_without_git_the_capsule_says_so(write_capsule, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    _, facts = write_capsule(tmp_path)

    assert facts["git"] == {"missing": "git is not installed"}


def test_code_of_a_run_outside_of_a_repository_is_that_of_the_package(
    write_capsule, tmp_path, monkeypatch
):
    repo = repositories.start(tmp_path / "repo", {"pyclassify/__init__.py": ""})
    monkeypatch.setattr(capsule, "PACKAGE_FOLDER", repo / "pyclassify")
    (tmp_path / "elsewhere").mkdir()

    _, facts = write_capsule(tmp_path / "elsewhere")

    assert facts["git"]["commit"] == git(repo, "rev-parse", "HEAD")
    assert facts["git"]["folder"] == "."
