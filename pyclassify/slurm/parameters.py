"""The parameters of an entry point, as they mean the same in the job as where it is submitted."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# Parameters of this project that name files, which its MLproject does not declare as such.
_PATHS = ("data_path", "data.data_path", "ckpt_path", "weights", "model.weights")
# Those that may be other than a path: a run's id, or a word of another project's.
_PERHAPS = ("ckpt_path", "weights", "model.weights")


def place(
    given: Mapping[str, Any],
    entry_point: Any,
    is_snapshotted: Callable[[str], bool],
    snapshot: Path,
    submitted_in: Path,
) -> dict[str, Any]:
    """Make relative paths absolute: files of the snapshot there, others where they are.

    Args:
        given: The parameters of the command line.
        entry_point: MLflow's entry point, which says what is of type `path`.
        is_snapshotted: Whether a relative path is one of the snapshot's.
        snapshot: The folder of the snapshot.
        submitted_in: The folder of the submission.

    Returns:
        The parameters, with those defaults that are paths.
    """
    declared = {
        name: each.default
        for name, each in entry_point.parameters.items()
        if each.type == "path" and each.default is not None
    }
    placed = {**declared, **given}
    for name, value in placed.items():
        typed = name in entry_point.parameters and entry_point.parameters[name].type == "path"
        if not (typed or name in _PATHS) or not _is_relative(str(value)):
            continue
        if is_snapshotted(str(value)):
            if typed:  # MLflow would take it from the folder of the submission
                placed[name] = str(snapshot / value)
        elif typed or name not in _PERHAPS or (submitted_in / value).exists():
            placed[name] = str(submitted_in / value)
    return placed


def find_files(placed: Mapping[str, Any], entry_point: Any) -> list[str]:
    """The files and folders here that parameters name by an absolute path."""
    declared = entry_point.parameters
    named = [
        Path(str(value))
        for name, value in placed.items()
        if name in _PATHS or (name in declared and declared[name].type == "path")
    ]
    return [str(path) for path in named if path.is_absolute() and path.exists()]


def _is_relative(value: str) -> bool:
    # A checkpoint may be a run's id, which is a relative path too.
    return bool(value) and not urlsplit(value).scheme and not value.startswith(("/", "~", "$"))
