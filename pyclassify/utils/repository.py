"""The git repository that a run's code is in: what to keep of it, and how to put it back."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from pyclassify.utils.changes import diff, pack_untracked
from pyclassify.utils.git import find_root, git
from pyclassify.utils.masking import mask


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


def describe(folder: Path, package: Path, leavings: Sequence[str] = ()) -> Code:
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
        commit = git(root, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()
    except OSError as error:
        raise OSError(f"the git repository {root} has no commit yet") from error
    started_in = folder.resolve()
    code = Code(commit)
    if started_in.is_relative_to(root):
        code.folder = str(started_in.relative_to(root))
    with suppress(OSError):
        code.remote = mask(git(root, "config", "--get", "remote.origin.url").decode().strip())
    code.changes = diff(root, code.left_out)
    written = [os.path.abspath(started_in / each) for each in leavings]
    code.untracked = pack_untracked(root, written, code.left_out)
    return code


@contextmanager
def checked_out(root: Path, code: Code, folder: Path) -> Iterator[Path]:
    """Put a run's code into a worktree of its own, which is removed afterwards.

    Args:
        root: The root of a repository that has the commit.
        code: The code.
        folder: Where to; it must not exist.

    Yields:
        The folder in it that stands for the one that the run was started in.

    Raises:
        OSError: git fails, or `unpack` refuses the untracked files.
    """
    try:
        git(root, "worktree", "add", "--detach", str(folder), code.commit)
        if code.changes:
            git(folder, "apply", "--index", "--whitespace=nowarn", "-", given=code.changes)
        if code.untracked:
            unpack(code.untracked, folder)
        started_in = folder / code.folder
        started_in.mkdir(parents=True, exist_ok=True)
        yield started_in
    finally:
        with suppress(OSError):
            git(root, "worktree", "remove", "--force", str(folder))


def unpack(packed: bytes, folder: Path) -> None:
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
        return bool(git(file.parent, "ls-files", "--error-unmatch", file.name))
    return False
