"""The code in a run's capsule: the commit, the diff and the untracked files."""

import io
import os
import shutil
import subprocess
import tarfile

import pytest

from pyclassify.runs import restore as restore_module
from pyclassify.tracking import capsule
from pyclassify.utils import git as git_module
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
    with repository.check_out_code(repo, code, tmp_path / "tree") as started_in:
        assert started_in == tmp_path / "tree" / "sub"
        tree = tmp_path / "tree"
        assert git(tree, "diff", "--binary", "HEAD") == git(repo, "diff", "--binary", "HEAD")
        assert not (tree / "old").exists()
        for name in edited:
            assert (tree / name).read_bytes() == (repo / name).read_bytes()
    assert not tree.exists()
    assert len(git(repo, "worktree", "list").splitlines()) == 1


def restore(folder, facts, repo, target):
    """Check a capsule's code out, and read its files."""
    root, code = restore_module.find_code(folder, facts["git"], "0" * 32, repo)
    with repository.check_out_code(root, code, target):
        return read_files(target)


def read_files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


def use_settings(*settings):
    def change(repo):
        for setting in settings:
            git(repo, "config", *setting.split("=", 1))
        repositories.write(repo, {"net.py": "a\nb\nc\nd changed\ne\nf\ng\nh\n", "new.py": "n\r\n"})

    return change


def use_attributes(attributes, **files):
    def change(repo):
        repositories.write(repo, {".gitattributes": attributes, "net.py": "one\ntwo\n"})
        git(repo, "add", ".gitattributes", "net.py")
        git(repo, "commit", "--quiet", "--message", "Convert")
        repositories.write(repo, {name.replace("_", "."): text for name, text in files.items()})
        git(repo, "add", "net.py")  # git now calls the file unchanged

    return change


def convert_line_ends(value, later=""):
    """The files have CRLF and the commit LF; git's index has known the files for a while."""

    def change(repo):
        git(repo, "config", "core.autocrlf", value)
        repositories.write(repo, {"net.py": "a\r\nb\r\nc\r\nd\r\ne\r\nf\r\ng\r\nh\r\n"})
        os.utime(repo / "net.py", (1_000_000_000, 1_000_000_000))
        git(repo, "add", "net.py")
        if later:
            git(repo, "config", "core.autocrlf", later)

    return change


def keep_line_ends(repo):
    """The commit has CRLF, and git would check out LF."""
    repositories.write(repo, {"net.py": "a\r\nb\r\n"})
    git(repo, "commit", "--quiet", "--all", "--message", "CRLF")
    git(repo, "config", "core.autocrlf", "input")


def hide_changes(flag):
    def change(repo):
        git(repo, "update-index", flag, "net.py")
        repositories.write(repo, {"net.py": "hidden\n"})

    return change


def leave_conflict(repo):
    git(repo, "checkout", "--quiet", "-b", "other")
    repositories.write(repo, {"net.py": "theirs\n"})
    git(repo, "commit", "--quiet", "--all", "--message", "Theirs")
    git(repo, "checkout", "--quiet", "main")
    repositories.write(repo, {"net.py": "ours\n"})
    git(repo, "commit", "--quiet", "--all", "--message", "Ours")
    subprocess.run(["git", "merge", "other"], cwd=repo, capture_output=True)


def change_names(repo):
    repositories.write(repo, {"a file.py": "1", "ü.py": "2", 'q"uote.py': "3", "[x].py": "4"})
    git(repo, "add", "a file.py", "ü.py", 'q"uote.py')
    (repo / "net.py").rename(repo / "renamed.py")


def add_filter(repo):
    git(repo, "config", "filter.strip.clean", "tr -d x")
    use_attributes("*.py filter=strip\n", net_py="oxne\n")(repo)


def replace_kinds(repo):
    (repo / "net.py").unlink()
    repositories.write(repo, {"net.py/inner.py": "i"})
    (repo / "logo.png").chmod(0o755)
    (repo / "link.py").symlink_to("net.py/inner.py")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(use_settings("diff.context=0", "diff.interHunkContext=0"), id="context"),
        pytest.param(use_settings("diff.noprefix=true"), id="noprefix"),
        pytest.param(use_settings("diff.mnemonicPrefix=true"), id="mnemonicPrefix"),
        pytest.param(use_settings("diff.external=false", "color.ui=always"), id="external"),
        pytest.param(use_settings("diff.orderFile=net.py", "diff.renames=copies"), id="orderFile"),
        pytest.param(use_settings("diff.suppressBlankEmpty=true"), id="suppressBlankEmpty"),
        pytest.param(use_settings("apply.whitespace=fix", "core.whitespace=cr-at-eol"), id="fix"),
        pytest.param(use_settings("core.safecrlf=true", "core.autocrlf=true"), id="safecrlf"),
        pytest.param(use_settings("core.splitIndex=true"), id="splitIndex"),
        pytest.param(use_settings("core.quotePath=false"), id="quotePath"),
        pytest.param(convert_line_ends("true"), id="autocrlf"),
        pytest.param(convert_line_ends("Yes"), id="autocrlf-Yes"),
        pytest.param(convert_line_ends("true", later="false"), id="autocrlf-once"),
        pytest.param(keep_line_ends, id="autocrlf-input"),
        pytest.param(use_attributes("* text=auto\n", net_py="one\r\ntwo\r\n"), id="text"),
        pytest.param(use_attributes("*.py eol=crlf\n", net_py="one\ntwo\n"), id="eol"),
        pytest.param(use_attributes("*.py ident\n", net_py="one\ntwo\n# $Id$\n"), id="ident"),
        pytest.param(
            use_attributes(
                "*.txt text working-tree-encoding=UTF-16LE\n", words_txt="ü\n".encode("utf-16le")
            ),
            id="encoding",
        ),
        pytest.param(add_filter, id="filter"),
        pytest.param(hide_changes("--assume-unchanged"), id="assume-unchanged"),
        pytest.param(hide_changes("--skip-worktree"), id="skip-worktree"),
        pytest.param(leave_conflict, id="conflict"),
        pytest.param(change_names, id="names"),
        pytest.param(replace_kinds, id="kinds"),
    ],
)
def test_capsule_restores_the_files_byte_for_byte(change, write_capsule, tmp_path):
    start = {"net.py": "a\nb\nc\nd\ne\nf\ng\nh\n", "logo.png": b"\0\1", "words.txt": "w\n"}
    repo = repositories.start(tmp_path / "repo", start)
    change(repo)
    before = read_files(repo)
    status = git(repo, "status", "--porcelain")

    folder, facts = write_capsule(repo)

    assert facts["git"]["left_out"] == {}
    assert restore(folder, facts, repo, tmp_path / "tree") == before
    assert git(repo, "status", "--porcelain") == status


def test_diff_leaves_out_unchanged_files_of_git_lfs(tmp_path):
    repo = repositories.start(tmp_path / "repo", {".gitattributes": "*.bin filter=lfs\n"})
    git(repo, "config", "filter.lfs.clean", "echo pointer")
    repositories.write(repo, {"large.bin": "content that is longer than its pointer\n"})
    os.utime(repo / "large.bin", (1_000_000_000, 1_000_000_000))
    git(repo, "add", "large.bin")
    git(repo, "commit", "--quiet", "--message", "Large")

    diff = repository.diff_tracked_files(git_module.Repository(repo), {})

    assert diff == b""


def test_check_out_code_fetches_what_a_partial_clone_lacks(tmp_path):
    origin = repositories.start(tmp_path / "origin", {"net.py": "first\n"})
    git(origin, "config", "uploadpack.allowFilter", "true")
    commit = git(origin, "rev-parse", "HEAD").strip()
    repositories.write(origin, {"net.py": "second\n"})
    git(origin, "commit", "--quiet", "--all", "--message", "Second")
    git(tmp_path, "clone", "--quiet", "--filter=blob:none", origin.as_uri(), "clone")
    code = repository.Code(commit)

    with repository.check_out_code(tmp_path / "clone", code, tmp_path / "tree") as folder:
        text = (folder / "net.py").read_text()

    assert text == "first\n"


@pytest.fixture
def nested(tmp_path):
    """A repository with a submodule that has another one, and with two unrelated repositories."""
    deep = repositories.start(tmp_path / "deep", {"deep.py": "d\n"})
    library = repositories.start(tmp_path / "library", {"net.py": "a\n", "old.py": "o\n"})
    repo = repositories.start(tmp_path / "repo", {"train.py": "t\n", ".gitignore": "cache/\n"})
    repositories.add_submodule(repo, library, "libs/net")
    repositories.add_submodule(repo / "libs/net", deep, "deep")
    git(repo, "commit", "--quiet", "--all", "--message", "Add a submodule")
    repositories.start(repo / "copied", {"copied.py": "c\n"})
    (repo / "begun").mkdir()
    git(repo / "begun", "init", "--quiet")
    repositories.write(repo, {"begun/begun.py": "b\n"})
    return repo


def test_capsule_restores_submodules_and_nested_repositories(nested, write_capsule, tmp_path):
    git(nested / "libs/net", "commit", "--quiet", "--all", "--message", "Not in the parent")
    edited = {"net.py": "b\r\n", "new.py": "n\n", "deep/deep.py": "e\n", "deep/x.py": "x\n"}
    repositories.write(nested / "libs/net", edited)
    repositories.write(nested / "copied", {"copied.py": "edited\n", "new.py": "n\n"})
    before = read_files(nested)

    folder, facts = write_capsule(nested)

    repositories_facts = facts["git"]["repositories"]
    assert repositories_facts.keys() == {"libs/net", "libs/net/deep", "copied"}
    commit = git(nested / "libs/net", "rev-parse", "HEAD")
    assert repositories_facts["libs/net"]["commit"] == commit
    assert restore(folder, facts, nested, tmp_path / "tree") == before
    assert (folder / "repositories/libs/net/changes.diff").exists()


@pytest.mark.parametrize("setting", ["diff.submodule=log", "diff.ignoreSubmodules=all"])
def test_settings_for_submodules_change_nothing(setting, nested, write_capsule, tmp_path):
    git(nested, "config", *setting.split("="))
    repositories.write(nested / "libs/net", {"net.py": "b\n"})

    folder, facts = write_capsule(nested)

    assert restore(folder, facts, nested, tmp_path / "tree") == read_files(nested)


def test_missing_submodule_is_named_with_the_command(nested, write_capsule, tmp_path):
    folder, facts = write_capsule(nested)
    git(nested, "submodule", "deinit", "--force", "libs/net")
    shutil.rmtree(nested / "libs/net", ignore_errors=True)

    with pytest.raises(ValueError, match=r"git submodule update --init libs/net"):
        restore(folder, facts, nested, tmp_path / "tree")


def test_files_of_a_submodule_without_its_repository_are_packed(nested, write_capsule, tmp_path):
    shutil.rmtree(nested / "libs/net/deep")
    (nested / "libs/net/.git").unlink()
    before = read_files(nested)

    folder, facts = write_capsule(nested)

    assert restore(folder, facts, nested, tmp_path / "tree") == before


def test_variables_of_a_git_hook_do_not_lead_to_another_repository(
    write_capsule, tmp_path, monkeypatch
):
    other = repositories.start(tmp_path / "other", {"a": "a"})
    repo = repositories.start(tmp_path / "repo", {"net.py": "a\n"})
    repositories.write(repo, {"net.py": "b\n"})
    before = read_files(repo)
    commit = git(repo, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git/index"))
    monkeypatch.setenv("GIT_DIFF_OPTS", "--unified=0")

    folder, facts = write_capsule(repo)

    assert facts["git"]["commit"] == commit
    assert restore(folder, facts, repo, tmp_path / "tree") == before


def test_diff_that_does_not_restore_a_file_is_reported(write_capsule, tmp_path, monkeypatch):
    repo = repositories.start(tmp_path / "repo", {"net.py": "a\n", "b.py": "b\n"})
    repositories.write(repo, {"net.py": "c\n"})
    diff = git_module.Comparison.diff
    changed = lambda *args: diff(*args).replace(b"+c", b"+d")  # noqa: E731
    monkeypatch.setattr(git_module.Comparison, "diff", changed)

    with pytest.warns(UserWarning, match=r"capsule: net\.py"):
        _, facts = write_capsule(repo)

    assert facts["git"]["left_out"].keys() == {"net.py"}


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@needs_root
def test_repository_of_another_owner_is_recorded(write_capsule, tmp_path):
    repo = repositories.start(tmp_path / "repo", {"net.py": "a\n"})
    repositories.write(repo, {"net.py": "b\n", "new.py": "n\n"})
    commit, before = git(repo, "rev-parse", "HEAD"), read_files(repo)
    for path in (repo, *repo.rglob("*")):
        os.chown(path, 12345, 12345)

    folder, facts = write_capsule(repo)

    assert facts["git"]["commit"] == commit
    assert restore(folder, facts, repo, tmp_path / "tree") == before


def test_programs_that_a_repository_names_are_not_started(write_capsule, tmp_path):
    repo = repositories.start(tmp_path / "repo", {"net.py": "a\n", ".gitattributes": "* diff=x"})
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    for name in ("core.fsmonitor", "diff.external", "diff.x.textconv", "core.pager", "core.editor"):
        git(repo, "config", name, str(program))
    repositories.write(repo, {"net.py": "b\n", ".git/hooks/post-index-change": "#!/bin/sh\nfalse"})

    write_capsule(repo)

    assert not (tmp_path / "started").exists()


def test_repository_that_git_can_not_read_is_a_warning_with_the_reason(write_capsule, tmp_path):
    repo = repositories.start(tmp_path / "repo", {"net.py": "a\n"})
    repositories.write(repo, {".git/config": "[core\n"})

    with pytest.warns(UserWarning, match=r"could not record .*bad config line 1"):
        _, facts = write_capsule(repo)

    assert "bad config line 1" in facts["git"]["missing"]


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
    ("packed", "message"),
    [
        (pack("../x"), r"untracked file \.\./x .*outside .*tree"),
        (pack("/x/y"), "untracked file /x/y .*outside .*tree"),
        (pack("out/x"), "untracked file out/x .*outside .*tree"),
        (pack("x", tarfile.SYMTYPE), "untracked x .*regular file"),
        (pack("x", tarfile.LNKTYPE), "untracked x .*regular file"),
        (pack("x", tarfile.FIFOTYPE), "untracked x .*regular file"),
    ],
)
def test_tar_with_a_path_outside_its_folder_raises(packed, message, tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "out").symlink_to(tmp_path)  # as a commit may have it

    with pytest.raises(OSError, match=message):
        repository._unpack_files(packed, tree)

    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
    assert [path.name for path in tree.iterdir()] == ["out"]


def test_settings_of_the_user_do_not_change_the_diff(write_capsule, tmp_path):
    repo = repositories.start(tmp_path / "repo", {"net.py": "a\n"})
    for setting in ("diff.noprefix=true", "color.ui=always", "diff.external=false"):
        git(repo, "config", *setting.split("="))
    repositories.write(repo, {"net.py": "b\n"})

    folder, _ = write_capsule(repo)

    assert b"--- a/net.py\n+++ b/net.py" in (folder / "changes.diff").read_bytes()


def test_clean_tree_has_neither_diff_nor_tar(write_capsule, tmp_path):
    folder, _ = write_capsule(repositories.start(tmp_path / "repo", {"a": "a"}))

    assert sorted(os.listdir(folder)) == ["capsule.json", "config.yaml", "packages.txt"]


def test_outputs_of_runs_and_ignored_files_are_not_packed(write_capsule, tmp_path):
    repo = repositories.start(tmp_path / "repo", {".gitignore": "data/\n"})
    code = {"net.py": "n"}
    outputs = {"mlflow.db": "1", "mlruns/0/x": "2", "runs/0/best.ckpt": "3", "data/1.png": "4"}
    repositories.write(repo, {**code, **outputs})

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
    ("start", "reason"),
    [
        (lambda folder: None, "is not in a git repository"),
        (lambda folder: git(folder, "init", "--quiet"), "has no commit yet"),
    ],
)
def test_capsule_without_a_commit_has_the_reason(
    start, reason, write_capsule, tmp_path, monkeypatch
):
    monkeypatch.setattr(capsule, "PACKAGE_FOLDER", tmp_path)
    (tmp_path / "plain").mkdir()
    start(tmp_path / "plain")

    _, facts = write_capsule(tmp_path / "plain")

    assert reason in facts["git"]["missing"]


def test_capsule_without_git_has_the_reason(write_capsule, tmp_path, monkeypatch):
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
