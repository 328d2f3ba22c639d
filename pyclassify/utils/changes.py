"""What a working tree has beside its commit: changed files, and untracked ones."""

import os
import tarfile
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

from pyclassify.utils.git import git
from pyclassify.utils.masking import holds_credentials

MAX_CHANGES_BYTES = 50 * 2**20  # bytes of the diff, and as many of untracked files

# What runs leave behind in the folder that they are started from.
_PATTERNS_LEFT_BY_RUNS = ("mlflow.db*", "mlruns/*", "mlartifacts/*", "lightning_logs/*")

# No renames: the diff of one file is whole by itself. The rest is what users' settings can change.
_DIFF = (
    *("diff", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--no-renames"),
    *("--no-relative", "--ignore-submodules=dirty", "--src-prefix=a/", "--dst-prefix=b/"),
)


def diff(root: Path, left_out: dict[str, str]) -> bytes:
    """Everything that tracked files differ in from the commit, as `git apply` takes it.

    Args:
        root: The repository's root.
        left_out: Gets the files whose changes are not in it, and why.

    Raises:
        OSError: git fails.
    """
    whole = git(root, *_DIFF, "HEAD")
    if len(whole) <= MAX_CHANGES_BYTES and not holds_credentials("", whole):
        return whole
    names = git(root, *_DIFF, "--name-only", "-z", "HEAD").split(b"\0")[:-1]
    parts = {
        name: git(root, *_DIFF, "HEAD", "--", f":(top,literal){name}")
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
    listed = git(root, "ls-files", "--others", "--exclude-standard", "-z").split(b"\0")[:-1]
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
