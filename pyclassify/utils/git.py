"""git, as a program."""

import os
import subprocess
from pathlib import Path

from pyclassify.utils.masking import mask

_PATIENCE = 120.0  # seconds for one call


def git(folder: Path, *words: str, given: bytes = b"") -> bytes:
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
        return Path(os.fsdecode(git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    except OSError as error:
        if "not a git repository" in str(error):
            return None
        raise
