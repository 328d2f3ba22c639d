"""The git repository of a project: describe the code of a run, list its files, put it back.

The files of a project are the tracked ones, and those untracked ones that git does not ignore and
that no run left there. `describe_code` keeps them for a capsule, as a commit, a diff and a tar;
`list_project_files` lists them for the snapshot of a job.
"""

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

from pyclassify.utils.git import find_root, run_git
from pyclassify.utils.masking import holds_credentials, mask

MAX_FILE_BYTES = 50 * 2**20  # of an untracked file in a snapshot: a larger one is data
MAX_CHANGES_BYTES = 50 * 2**20  # of the diff in a capsule, and as many of untracked files
# Names of files and folders that runs leave behind, or that are made anew; SQLite writes -wal, -shm
# and -journal beside its file.
_LEFT_BY_RUNS = (
    *("mlruns", "mlartifacts", "mlflow.db", "mlflow.db-*", "lightning_logs"),
    *("__pycache__", ".git"),
)
# No renames: the diff of one file is whole by itself. The rest overrides users' settings.
_DIFF = (
    *("diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames"),
    *("--no-relative", "--ignore-submodules=dirty", "--src-prefix=a/", "--dst-prefix=b/"),
)
_NOT_A_FILE = "is no plain file"
_CREDENTIALS = "may have credentials in it"


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
    """

    commit: str
    folder: str = "."
    remote: str | None = None
    changes: bytes = b""
    untracked: bytes = b""
    left_out: dict[str, str] = field(default_factory=dict)


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
    try:
        commit = run_git(root, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()
    except OSError as error:
        raise OSError(f"the git repository {root} has no commit yet") from error
    started_in = folder.resolve()
    code = Code(commit)
    if started_in.is_relative_to(root):
        code.folder = str(started_in.relative_to(root))
    with suppress(OSError):
        code.remote = mask(run_git(root, "config", "--get", "remote.origin.url").decode().strip())
    code.changes = diff_tracked_files(root, code.left_out)
    excluded = [started_in / output_folder for output_folder in output_folders]
    code.untracked = _pack_untracked_files(root, excluded, code.left_out)
    return code


@contextmanager
def check_out_worktree(root: Path, code: Code, folder: Path) -> Iterator[Path]:
    """Put a run's code into a worktree of its own, which is removed afterwards.

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
        run_git(root, "worktree", "add", "--detach", str(folder), code.commit)
        if code.changes:
            run_git(folder, "apply", "--index", "--whitespace=nowarn", "-", stdin=code.changes)
        if code.untracked:
            _unpack_files(code.untracked, folder)
        started_in = folder / code.folder
        started_in.mkdir(parents=True, exist_ok=True)
        yield started_in
    finally:
        with suppress(OSError):
            run_git(root, "worktree", "remove", "--force", str(folder))


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
    tracked: list[str] = []
    excluded = [] if without is None else [without]
    if find_root(project, needs_git=False) is not None:
        tracked = _list_with_git(project, "--cached")
    names = [name for name in tracked if os.path.lexists(project / name)]
    left_out: dict[str, str] = {}
    for name in _list_untracked_files(project, excluded):
        if reason := _find_objection(project / name):
            left_out[name] = reason
        else:
            names.append(name)
    return names, left_out


def diff_tracked_files(root: Path, left_out: dict[str, str]) -> bytes:
    """Diff the tracked files against the commit, as `git apply` takes it.

    Args:
        root: The repository's root.
        left_out: Gets the files whose changes are not in it, and why.

    Raises:
        OSError: git fails.
    """
    diff = run_git(root, *_DIFF, "HEAD")
    if len(diff) <= MAX_CHANGES_BYTES and not holds_credentials("", diff):
        return diff
    names = run_git(root, *_DIFF, "--name-only", "-z", "HEAD").split(b"\0")[:-1]
    diffs = {
        name: run_git(root, *_DIFF, "HEAD", "--", f":(top,literal){name}")
        for name in map(os.fsdecode, names)
    }
    sizes = {name: len(diff) for name, diff in diffs.items()}
    return b"".join(_choose(sizes, diffs.__getitem__, left_out).values())


def _is_tracked(file: Path) -> bool:
    with suppress(OSError):
        return bool(run_git(file.parent, "ls-files", "--error-unmatch", file.name))
    return False


def _list_untracked_files(folder: Path, excluded: Sequence[Path]) -> Iterator[str]:
    """List the untracked, unignored files in a folder that no run left there."""
    if find_root(folder, needs_git=False) is not None:
        names: Iterator[str] = iter(_list_with_git(folder, "--others", "--exclude-standard"))
    else:
        names = _walk(folder)
    for name in names:
        path = Path(os.path.abspath(folder / name))
        is_excluded = any(path.is_relative_to(os.path.abspath(parent)) for parent in excluded)
        if not is_excluded and not any(map(_is_left_by_runs, Path(name).parts)):
            yield name


def _list_with_git(folder: Path, *options: str) -> list[str]:
    names = run_git(folder, "ls-files", "-z", *options).split(b"\0")
    return [os.fsdecode(name) for name in names if name]


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


def _pack_untracked_files(root: Path, excluded: Sequence[Path], left_out: dict[str, str]) -> bytes:
    """Pack the untracked files as a tar, or as nothing where there are none."""
    sizes = {}
    for name in _list_untracked_files(root, excluded):
        if (root / name).is_symlink() or not (root / name).is_file():
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
