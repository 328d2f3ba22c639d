"""The code of a project: describe the code of a run, list its files, restore it.

The files of a project are the tracked ones, and those untracked ones that git does not ignore and
that no run left there; those of its submodules, and of other repositories within it, too.
`describe_code` describes them for a capsule, each repository as a commit, a diff and a tar;
`list_project_files` lists them for the snapshot of a job.
"""

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

from pyclassify.utils.git import (
    Repository,
    compare,
    find_root,
    make_checkout,
    run_git,
    write_files,
)
from pyclassify.utils.masking import holds_credentials

MAX_FILE_BYTES = 50 * 2**20  # of an untracked file in a snapshot: a larger one is data
MAX_CHANGES_BYTES = 50 * 2**20  # of the diff in a capsule, and as many of untracked files
# Names of files and folders that runs leave behind, or that are made anew; SQLite writes -wal, -shm
# and -journal beside its file.
_LEFT_BY_RUNS = (
    *("mlruns", "mlartifacts", "mlflow.db", "mlflow.db-*", "lightning_logs"),
    *("__pycache__", ".git"),
)
_NOT_A_FILE = "is no plain file"
_CREDENTIALS = "may have credentials in it"
_LOST = "has changes that its diff would not restore"


@dataclass
class Code:
    """The code of a run.

    Args:
        commit: The commit's hash.
        folder: The folder that the run was started in, relative to the repository's root.
        remote: Where the commit may be fetched from, without credentials.
        changes: The diff of the tracked files against the commit, as git applies it.
        untracked: The untracked, unignored files, as a tar.
        left_out: What of the two is missing, and why.
        repositories: The submodules and other repositories within this one, by their folders
            relative to its root. A repository without a commit counts as untracked files.
    """

    commit: str
    folder: str = "."
    remote: str | None = None
    changes: bytes = b""
    untracked: bytes = b""
    left_out: dict[str, str] = field(default_factory=dict)
    repositories: dict[str, "Code"] = field(default_factory=dict)

    def walk(self, parent: str = "") -> "Iterator[tuple[str, Code]]":
        """Walk through this repository and all within it, with their folders; "" is this one's."""
        yield parent, self
        for folder, code in self.repositories.items():
            yield from code.walk(os.path.join(parent, folder))


def describe_code(folder: Path, package: Path, output_folders: Sequence[str] = ()) -> Code:
    """Describe the code of a run: the repository of its folder, or else that of the package.

    Args:
        folder: Where the run was started.
        package: Where this package is.
        output_folders: Folders that runs write to, relative to `folder` or absolute.

    Raises:
        OSError: There is no git, no repository or no commit; the message says which.
    """
    root = find_root(folder)
    if root is None and _is_tracked(package / "__init__.py"):
        root = find_root(package)
    if root is None:
        raise OSError(f"{folder} is in no git repository")
    started_in = folder.resolve()
    code = _describe_repository(Repository(root), [started_in / name for name in output_folders])
    if started_in.is_relative_to(root):
        code.folder = str(started_in.relative_to(root))
    return code


def _describe_repository(repository: Repository, excluded: Sequence[Path]) -> Code:
    code = Code(repository.commit, remote=repository.remote)
    code.changes = diff_tracked_files(repository, code.left_out)
    names, inner = _list_untracked_files(repository, excluded)
    code.untracked = _pack_files(repository.root, names, code.left_out)
    for name in inner:
        code.repositories[name] = _describe_repository(Repository(repository.root / name), excluded)
    return code


@contextmanager
def check_out_code(root: Path, code: Code, folder: Path) -> Iterator[Path]:
    """Restore a run's code in a folder of its own, which is removed afterwards.

    Args:
        root: The root of a repository that has the commit.
        code: The code.
        folder: Where to; it must not exist.

    Yields:
        The folder in it that stands for the one that the run was started in.

    Raises:
        OSError: git fails, or an untracked file would lie outside the folder.
    """
    try:
        for name, repository in code.walk():
            _restore_repository(root / name, repository, folder / name)
        started_in = folder / code.folder
        started_in.mkdir(parents=True, exist_ok=True)
        yield started_in
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _restore_repository(root: Path, code: Code, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_files(make_checkout(Repository(root), folder, code.commit))
    if code.changes:
        run_git(folder, "apply", "--index", "-", stdin=code.changes)
    if code.untracked:
        _unpack_files(code.untracked, folder)


def list_repositories(root: Path) -> list[str]:
    """List the folders of a repository and of all within it that git does not ignore.

    Those that have no commit, and submodules that are not checked out, are not listed.

    Args:
        root: The repository's root.

    Returns:
        The folders, relative to the root; the first is its own, "".

    Raises:
        OSError: git fails.
    """
    folders = [""]
    _, inner = _list_untracked_files(Repository(root), [])
    for name in inner:
        folders += [os.path.join(name, folder) for folder in list_repositories(root / name)]
    return folders


def list_project_files(
    project: Path, without: Path | None = None
) -> tuple[list[str], dict[str, str]]:
    """List the files of a project that are to be copied.

    They are all of them where there is no git or no repository, except what runs leave there.

    Args:
        project: Its folder.
        without: A folder of which nothing is copied: that of the snapshots.

    Returns:
        Their names, relative to it, and the names of files left out, with the reason.

    Raises:
        OSError: git fails.
    """
    excluded = [] if without is None else [without]
    names: list[str] = []
    inner: list[str] = []
    if find_root(project, needs_git=False) is None:
        untracked = _list_all_files(project, excluded)
    else:
        repository = Repository(project)
        submodules = repository.list_submodules()
        tracked = (name for name in repository.entries if name not in submodules)
        names = [name for name in tracked if os.path.lexists(project / name)]
        untracked, inner = _list_untracked_files(repository, excluded)
    left_out: dict[str, str] = {}
    for name in untracked:
        if reason := _find_objection(project / name):
            left_out[name] = reason
        else:
            names.append(name)
    for folder in inner:
        inner_names, inner_left_out = list_project_files(project / folder, without)
        names += [os.path.join(folder, name) for name in inner_names]
        left_out |= {os.path.join(folder, n): reason for n, reason in inner_left_out.items()}
    return names, left_out


def diff_tracked_files(repository: Repository, left_out: dict[str, str]) -> bytes:
    """Diff the tracked files against the commit, as `git apply` takes it.

    Args:
        repository: The repository.
        left_out: Gets the files whose changes are not in it, and why.

    Raises:
        OSError: git fails.
    """
    with compare(repository) as comparison:
        diff = comparison.diff()
        names = comparison.list_changed_files() if diff else []
        if len(diff) > MAX_CHANGES_BYTES or holds_credentials("", diff):
            diffs = {name: comparison.diff(name) for name in names}
            sizes = {name: len(diff) for name, diff in diffs.items()}
            diffs = _choose(sizes, diffs.__getitem__, left_out)
            names, diff = list(diffs), b"".join(diffs.values())
        left_out.update(dict.fromkeys(comparison.list_lost_changes(names, diff), _LOST))
    return diff


def _is_tracked(file: Path) -> bool:
    with suppress(OSError):
        return bool(run_git(file.parent, "ls-files", "--error-unmatch", file.name))
    return False


def _list_untracked_files(
    repository: Repository, excluded: Sequence[Path]
) -> tuple[list[str], list[str]]:
    """List the untracked, unignored files in a repository that no run left there.

    The files of a repository within it that has no commit count, and those of a submodule that is
    not checked out.

    Returns:
        The files, and the folders of the submodules and other repositories within it.
    """
    root = repository.root
    listed = run_git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")
    files, inner = [], []
    for name in [*map(os.fsdecode, listed), *(f"{n}/" for n in repository.list_submodules())]:
        if not name or _is_excluded(root, name, excluded):
            continue
        if not name.endswith("/"):
            files.append(name)
        elif _has_commit(root / name):
            inner.append(name.rstrip("/"))
        else:
            inner_files = _list_all_files(root / name, excluded)
            files += [os.path.join(name, file) for file in inner_files]
    return files, inner


def _has_commit(folder: Path) -> bool:
    with suppress(OSError):
        return os.path.lexists(folder / ".git") and bool(Repository(folder).commit)
    return False


def _list_all_files(folder: Path, excluded: Sequence[Path]) -> list[str]:
    """List the files in a folder of no repository, or of one without a commit."""
    return [name for name in _walk(folder) if not _is_excluded(folder, name, excluded)]


def _is_excluded(folder: Path, name: str, excluded: Sequence[Path]) -> bool:
    path = Path(os.path.abspath(folder / name))
    is_excluded = any(path.is_relative_to(os.path.abspath(parent)) for parent in excluded)
    return is_excluded or any(map(_is_left_by_runs, Path(name).parts))


def _walk(folder: Path) -> Iterator[str]:
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [
            name
            for name in subfolders
            if not _is_left_by_runs(name) and not _is_environment(Path(parent, name))
        ]
        for name in names:
            yield str(Path(parent, name).relative_to(folder))


def _is_left_by_runs(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _LEFT_BY_RUNS)


def _is_environment(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("pyvenv.cfg", "conda-meta"))


def _find_objection(path: Path) -> str:
    """Find the reason why a file is not copied into a snapshot; empty if it is copied."""
    if path.is_symlink() or path.is_dir():
        return ""
    if not path.is_file():
        return _NOT_A_FILE
    if path.stat().st_size > MAX_FILE_BYTES:
        return f"is over {MAX_FILE_BYTES // 2**20} MB"
    return _CREDENTIALS if holds_credentials(path.name, path.read_bytes()) else ""


def _pack_files(root: Path, names: Sequence[str], left_out: dict[str, str]) -> bytes:
    """Pack files as a tar, or as nothing where there are none."""
    sizes = {}
    for name in names:
        if not _is_file_within(root / name, root):
            left_out[name] = _NOT_A_FILE
        else:
            sizes[name] = (root / name).stat().st_size
    contents = _choose(sizes, lambda name: (root / name).read_bytes(), left_out)
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in sorted(contents.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), (root / name).stat().st_mode & 0o777
            tar.addfile(entry, BytesIO(content))
    return packed.getvalue() if contents else b""


def _is_file_within(path: Path, root: Path) -> bool:
    """Whether a path is a regular file, or a link to one in the same folder of code."""
    return path.is_file() and (
        not path.is_symlink() or path.resolve().is_relative_to(root.resolve())
    )


def _choose(
    sizes: dict[str, int], read: Callable[[str], bytes], left_out: dict[str, str]
) -> dict[str, bytes]:
    """Take as many as fit, the small ones first since code is small, and none with credentials."""
    chosen: dict[str, bytes] = {}
    space = MAX_CHANGES_BYTES
    for name in sorted(sizes, key=sizes.__getitem__):
        if sizes[name] > space:
            left_out[name] = f"is over the limit of {MAX_CHANGES_BYTES // 2**20} MB in all"
            continue
        try:
            content = read(name)
        except OSError as error:
            left_out[name] = f"can't be read ({error.strerror})"
            continue
        if holds_credentials(name, content):
            left_out[name] = _CREDENTIALS
        else:
            chosen[name] = content
            space -= len(content)
    return chosen


def _unpack_files(packed: bytes, folder: Path) -> None:
    """Write the files of a tar, with their modes, as safely as the filter "data" of tarfile.

    Python 3.11 has that filter from 3.11.4 on alone, and Debian 12 has 3.11.2.
    """
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        for member in tar:
            path = (folder / member.name).resolve()  # through the links that the commit has
            if not path.is_relative_to(folder.resolve()):
                raise OSError(f"the untracked file {member.name} would lie outside {folder}")
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise OSError(f"the untracked {member.name} is no regular file")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
            path.chmod(member.mode & 0o777)
