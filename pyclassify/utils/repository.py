"""The git repository that a run's code is in: what to keep of it, and how to put it back."""

import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

from pyclassify.utils.masking import holds_credentials, mask

MAX_FILE_BYTES = 50 * 2**20  # bytes of a file that is not tracked: a larger one is data
# What runs leave behind, and what is made anew.
_LEFT_BY_RUNS = {"mlruns", "mlartifacts", "mlflow.db", "lightning_logs", "__pycache__", ".git"}
MAX_CHANGES_BYTES = 50 * 2**20  # bytes of the diff, and as many of untracked files
# What runs leave behind in the folder that they are started from.
_PATTERNS_LEFT_BY_RUNS = ("mlflow.db*", "mlruns/*", "mlartifacts/*", "lightning_logs/*")
# No renames: the diff of one file is whole by itself. The rest is what users' settings can change.
_DIFF = (
    *("diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames"),
    *("--no-relative", "--ignore-submodules=dirty", "--src-prefix=a/", "--dst-prefix=b/"),
)
_PATIENCE = 120.0  # seconds for one call


@dataclass
class Code:
    """What a run's code was.

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


def describe_code(folder: Path, package: Path, leavings: Sequence[str] = ()) -> Code:
    """Describe the code of a run: the repository of its folder, or else that of the package.

    Args:
        folder: Where the run was started.
        package: Where this package is.
        leavings: Folders that runs write to, relative to `folder` or absolute.

    Raises:
        OSError: There is no git, no repository or no commit; its words say which.
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
    written = [os.path.abspath(started_in / each) for each in leavings]
    code.untracked = pack_untracked(root, written, code.left_out)
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
        OSError: git fails, or `unpack_files` refuses the untracked files.
    """
    try:
        run_git(root, "worktree", "add", "--detach", str(folder), code.commit)
        if code.changes:
            run_git(folder, "apply", "--index", "--whitespace=nowarn", "-", given=code.changes)
        if code.untracked:
            unpack_files(code.untracked, folder)
        started_in = folder / code.folder
        started_in.mkdir(parents=True, exist_ok=True)
        yield started_in
    finally:
        with suppress(OSError):
            run_git(root, "worktree", "remove", "--force", str(folder))


def unpack_files(packed: bytes, folder: Path) -> None:
    """Write the files of a tar, with their modes, as safely as the filter "data" of tarfile.

    Python 3.11 has that filter from 3.11.4 on alone, and Debian 12 has 3.11.2.

    Args:
        packed: The tar.
        folder: Where to.

    Raises:
        OSError: A member is no regular file or lies outside the folder, or can't be written.
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


def _is_tracked(file: Path) -> bool:
    with suppress(OSError):
        return bool(run_git(file.parent, "ls-files", "--error-unmatch", file.name))
    return False


def list_project_files(
    project: Path, without: Path | None = None
) -> tuple[list[str], dict[str, str]]:
    """List the files of a project that are to be copied.

    Args:
        project: Its folder.
        without: A folder of which nothing is copied: that of the snapshots.

    Returns:
        Their names, relative to it, and the names of files left out, with the reason.

    Raises:
        OSError: git fails.
    """
    left_out: dict[str, str] = {}
    if find_repository(project) is not None:
        tracked = _list(project, "--cached")
        others = _list(project, "--others", "--exclude-standard")
    else:
        tracked, others = [], list(_walk(project))
    chosen = [name for name in tracked if os.path.lexists(project / name)]
    for name in others:
        if _LEFT_BY_RUNS & set(Path(name).parts) or _is_in(project / name, without):
            continue
        if why := _refuse(project / name):
            left_out[name] = why
        else:
            chosen.append(name)
    return chosen, left_out


def find_repository(project: Path) -> Path | None:
    """The root of the repository that a project is in, if there is one, and git."""
    try:
        return find_root(project)
    except OSError as error:
        if "not installed" in str(error):
            return None
        raise


def _list(project: Path, *options: str) -> list[str]:
    listed = run_git(project, "ls-files", "-z", *options)
    return [os.fsdecode(name) for name in listed.split(b"\0") if name]


def _walk(project: Path) -> Iterator[str]:
    for folder, inner, names in os.walk(project):
        inner[:] = [
            each
            for each in inner
            if each not in _LEFT_BY_RUNS and not _is_environment(Path(folder, each))
        ]
        for name in names:
            yield str(Path(folder, name).relative_to(project))


def _is_in(path: Path, folder: Path | None) -> bool:
    return folder is not None and path.absolute().is_relative_to(folder.absolute())


def _is_environment(folder: Path) -> bool:
    return any((folder / each).exists() for each in ("pyvenv.cfg", "conda-meta"))


def _refuse(path: Path) -> str:
    if path.is_symlink() or path.is_dir():
        return ""
    if not path.is_file():
        return "is no plain file"
    if path.stat().st_size > MAX_FILE_BYTES:
        return f"is over {MAX_FILE_BYTES // 2**20} MB"
    return "may have credentials in it" if holds_credentials(path.name, path.read_bytes()) else ""


def diff_tracked_files(root: Path, left_out: dict[str, str]) -> bytes:
    """Everything that tracked files differ in from the commit, as `git apply` takes it.

    Args:
        root: The repository's root.
        left_out: Gets the files whose changes are not in it, and why.

    Raises:
        OSError: git fails.
    """
    whole = run_git(root, *_DIFF, "HEAD")
    if len(whole) <= MAX_CHANGES_BYTES and not holds_credentials("", whole):
        return whole
    names = run_git(root, *_DIFF, "--name-only", "-z", "HEAD").split(b"\0")[:-1]
    parts = {
        name: run_git(root, *_DIFF, "HEAD", "--", f":(top,literal){name}")
        for name in map(os.fsdecode, names)
    }
    sizes = {name: len(part) for name, part in parts.items()}
    return b"".join(_choose(sizes, parts.__getitem__, left_out).values())


def pack_untracked(root: Path, leavings: Sequence[str], left_out: dict[str, str]) -> bytes:
    """Pack the untracked files that git does not ignore.

    Args:
        root: The repository's root.
        leavings: Folders that runs write to, absolute: nothing in them is packed.
        left_out: Gets the files that are not in it, and why.

    Returns:
        A tar, or nothing where there are none.

    Raises:
        OSError: git fails.
    """
    listed = run_git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")[:-1]
    sizes = {}
    for name in map(os.fsdecode, listed):
        left_behind = any(fnmatch(f"/{name}", f"*/{each}") for each in _PATTERNS_LEFT_BY_RUNS)
        if left_behind or any((root / name).is_relative_to(each) for each in leavings):
            continue
        if (root / name).is_symlink() or not (root / name).is_file():
            left_out[name] = "is no plain file"
        else:
            sizes[name] = (root / name).stat().st_size
    kept = _choose(sizes, lambda name: (root / name).read_bytes(), left_out)
    packed = BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in sorted(kept.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), (root / name).stat().st_mode & 0o777
            tar.addfile(entry, BytesIO(content))
    return packed.getvalue() if kept else b""


def _choose(
    sizes: dict[str, int], read: Callable[[str], bytes], left_out: dict[str, str]
) -> dict[str, bytes]:
    """Take as many as fit, the small ones first since code is small, and none with credentials."""
    kept: dict[str, bytes] = {}
    room = MAX_CHANGES_BYTES
    for name in sorted(sizes, key=sizes.__getitem__):
        if sizes[name] > room:
            left_out[name] = f"is over the limit of {MAX_CHANGES_BYTES // 2**20} MB in all"
            continue
        try:
            content = read(name)
        except OSError as error:
            left_out[name] = f"can't be read ({error.strerror})"
            continue
        if holds_credentials(name, content):
            left_out[name] = "may have credentials in it"
        else:
            kept[name] = content
            room -= len(content)
    return kept


def run_git(folder: Path, *words: str, given: bytes = b"") -> bytes:
    """Run git in a folder, without the user's hooks.

    Args:
        folder: Where to.
        words: Its command line.
        given: What it reads.

    Returns:
        What it writes.

    Raises:
        OSError: It is not installed or fails; its last words.
    """
    try:
        done = subprocess.run(
            ["git", "-c", "core.hooksPath=/dev/null", *words],
            cwd=folder,
            input=given,
            capture_output=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            timeout=_PATIENCE,
        )
    except FileNotFoundError as error:
        raise OSError("git is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"git {words[0]} took more than {_PATIENCE:.0f} s") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it does not say why"]
        raise OSError(f"git {words[0]} failed: {mask(said[-1])}")
    return done.stdout


def find_root(folder: Path) -> Path | None:
    """The root of the repository that a folder is in, if it is in one.

    Raises:
        OSError: git is not installed, or refuses the repository.
    """
    try:
        return Path(os.fsdecode(run_git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    except OSError as error:
        if "not a git repository" in str(error):
            return None
        raise
