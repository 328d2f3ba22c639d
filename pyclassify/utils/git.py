"""Run git in a repository."""

import os
import subprocess
from pathlib import Path

from pyclassify.utils.masking import mask

_GIT_TIMEOUT_SECONDS = 120.0


def find_root(folder: Path, needs_git: bool = True) -> Path | None:
    """Find the root of the repository that a folder is in, if it is in one.

    Args:
        folder: The folder.
        needs_git: Whether it is an error that git is not installed.

    Raises:
        OSError: git is not installed, or refuses the repository.
    """
    try:
        return Path(os.fsdecode(run_git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    except FileNotFoundError:
        if needs_git:
            raise
    except OSError as error:
        if "not a git repository" not in str(error):
            raise
    return None


def run_git(folder: Path, *argv: str, stdin: bytes = b"") -> bytes:
    """Run git in a folder, without the user's hooks.

    Args:
        folder: The folder.
        argv: The command line after `git`.
        stdin: What git reads.

    Returns:
        What git writes to standard output.

    Raises:
        FileNotFoundError: git is not installed.
        OSError: It fails; the last line that it wrote.
    """
    try:
        process = subprocess.run(
            ["git", "-c", "core.hooksPath=/dev/null", *argv],
            cwd=folder,
            input=stdin,
            capture_output=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            timeout=_GIT_TIMEOUT_SECONDS,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError("git is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"git {argv[0]} took more than {_GIT_TIMEOUT_SECONDS:.0f} s") from error
    if process.returncode:
        lines = process.stderr.decode(errors="replace").strip().splitlines()
        reason = mask(lines[-1]) if lines else "it does not say why"
        raise OSError(f"git {argv[0]} failed: {reason}")
    return process.stdout
