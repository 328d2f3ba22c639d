"""Describe, list and restore the code of a project.

The files of a project are the tracked files, and the untracked files that git does not ignore and
that are not output of runs; also those of its submodules and of other repositories within it.
`describe_code` describes them for a capsule, each repository as a commit, a diff and a tar archive;
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

MAX_FILE_BYTES = 50 * 2**20  # of an untracked file in a snapshot: a larger file is data
MAX_CHANGES_BYTES = 50 * 2**20  # of the diff in a capsule, and the same for its untracked files
# Files and folders that runs or Python generate; SQLite writes -wal, -shm and -journal files.
_GENERATED = (
    *("mlruns", "mlartifacts", "mlflow.db", "mlflow.db-*", "lightning_logs"),
    *("__pycache__", ".git"),
)
# Reasons, which follow a file's name.
_NOT_A_FILE = "is not a regular file"
_CREDENTIALS = "may contain credentials"
_LOST = "has changes that its diff can't restore"


@dataclass
class Code:
    """The code of a run.

    Args:
        commit: The commit's hash.
        folder: The folder that the run was started in, relative to the repository's root.
        remote: The URL to fetch the commit from, without credentials.
        changes: The diff of the tracked files against the commit, for `git apply`.
        untracked: The untracked files that are not ignored, as a tar archive.
        left_out: The files that are missing in the diff or the archive, with the reasons.
        repositories: The submodules and other repositories within this one, by their folders
            relative to its root. Files of a repository without a commit are untracked files.
    """

    commit: str
    folder: str = "."
    remote: str | None = None
    changes: bytes = b""
    untracked: bytes = b""
    left_out: dict[str, str] = field(default_factory=dict)
    repositories: dict[str, "Code"] = field(default_factory=dict)

    def walk(self, parent: str = "") -> "Iterator[tuple[str, Code]]":
        """Walk through this repository, whose folder is "", and all repositories within it."""
        yield parent, self
        for folder, code in self.repositories.items():
            yield from code.walk(os.path.join(parent, folder))


def describe_code(folder: Path, package: Path, output_folders: Sequence[str] = ()) -> Code:
    """Describe the code of a run: the repository of its folder, or else that of the package.

    Args:
        folder: The folder in which the run was started.
        package: The folder of this package.
        output_folders: Folders that runs write to, relative to `folder` or absolute.

    Raises:
        OSError: git, a repository or a commit is missing; the message names which.
    """
    root = find_root(folder)
    if root is None and _is_tracked(package / "__init__.py"):
        root = find_root(package)
    if root is None:
        raise OSError(f"{folder} is not in a git repository")
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
    """Restore a run's code in a new folder, which is removed afterwards.

    Args:
        root: The root of a repository that has the commit.
        code: The code.
        folder: The new folder; it must not exist.

    Yields:
        The folder in it that corresponds to the one in which the run was started.

    Raises:
        OSError: git fails, or the path of an untracked file is outside the folder.
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
    """List the folders of a repository and of all repositories within it that git does not ignore.

    Repositories without a commit, and submodules that are not checked out, are not listed.

    Args:
        root: The repository's root.

    Returns:
        The folders, relative to the root; the first is "".

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
    """List the files of a project for a snapshot.

    Without git or a repository these are all files, except the output of runs.

    Args:
        project: The project's folder.
        without: A folder to exclude: that of the snapshots.

    Returns:
        The names, relative to the folder, and the names of files left out, with the reasons.

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
    """Diff the tracked files against the commit, for `git apply`.

    Args:
        repository: The repository.
        left_out: Gets the files whose changes are not in the diff, with the reasons.

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
    """List the untracked files in a repository that are neither ignored nor output of runs.

    They include the files of a repository within it that has no commit, and those of a submodule
    that is not checked out.

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
    """List the files in a folder that is not in a repository with a commit."""
    return [name for name in _walk(folder) if not _is_excluded(folder, name, excluded)]


def _is_excluded(folder: Path, name: str, excluded: Sequence[Path]) -> bool:
    path = Path(os.path.abspath(folder / name))
    is_excluded = any(path.is_relative_to(os.path.abspath(parent)) for parent in excluded)
    return is_excluded or any(map(_is_generated, Path(name).parts))


def _walk(folder: Path) -> Iterator[str]:
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [
            name
            for name in subfolders
            if not _is_generated(name) and not _is_environment(Path(parent, name))
        ]
        for name in names:
            yield str(Path(parent, name).relative_to(folder))


def _is_generated(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in _GENERATED)


def _is_environment(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("pyvenv.cfg", "conda-meta"))


def _find_objection(path: Path) -> str:
    """Find the reason why a file is not copied into a snapshot; empty if it is copied."""
    if path.is_symlink() or path.is_dir():
        return ""
    if not path.is_file():
        return _NOT_A_FILE
    if path.stat().st_size > MAX_FILE_BYTES:
        return f"is larger than {MAX_FILE_BYTES // 2**20} MB"
    return _CREDENTIALS if holds_credentials(path.name, path.read_bytes()) else ""


def _pack_files(root: Path, names: Sequence[str], left_out: dict[str, str]) -> bytes:
    """Pack files as a tar archive; empty if there are none."""
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
    """Whether a path is a regular file, or a link to one within the same root."""
    return path.is_file() and (
        not path.is_symlink() or path.resolve().is_relative_to(root.resolve())
    )


def _choose(
    sizes: dict[str, int], read: Callable[[str], bytes], left_out: dict[str, str]
) -> dict[str, bytes]:
    """Choose files up to the limit, the smallest first, and none with credentials."""
    chosen: dict[str, bytes] = {}
    space = MAX_CHANGES_BYTES
    for name in sorted(sizes, key=sizes.__getitem__):
        if sizes[name] > space:
            left_out[name] = f"exceeds the limit of {MAX_CHANGES_BYTES // 2**20} MB in total"
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
    """Extract a tar archive, with modes, as safely as the filter "data" of tarfile.

    Python 3.11 has that filter only since 3.11.4, and Debian 12 has 3.11.2.
    """
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        for member in tar:
            path = (folder / member.name).resolve()  # through the links that the commit has
            if not path.is_relative_to(folder.resolve()):
                raise OSError(f"the path of the untracked file {member.name} is outside {folder}")
            content = tar.extractfile(member) if member.isreg() else None
            if content is None:
                raise OSError(f"the untracked {member.name} is not a regular file")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
            path.chmod(member.mode & 0o777)
