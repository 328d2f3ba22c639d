"""The files of a project that are its own: tracked and unignored, or all where there is no git."""

import os
from collections.abc import Iterator
from pathlib import Path

from pyclassify.utils.git import find_root, git
from pyclassify.utils.masking import holds_credentials

MAX_FILE_BYTES = 50 * 2**20  # bytes of a file that is not tracked: a larger one is data

# What runs leave behind, and what is made anew.
_LEFT_BY_RUNS = {"mlruns", "mlartifacts", "mlflow.db", "lightning_logs", "__pycache__", ".git"}


def list_files(project: Path, without: Path | None = None) -> tuple[list[str], dict[str, str]]:
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
    listed = git(project, "ls-files", "-z", *options)
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
