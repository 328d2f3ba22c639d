"""Snapshot the project of a run, so that what runs is what was submitted.

Each run has a folder in the work folder, as compute nodes see it:

    project/             the tracked and unignored files, or all where there is no repository
    changes.diff         `git diff --binary HEAD`; absent where nothing was changed
    snapshot.json        where it was taken, the commit, and what was left out
    reporter/            what tells MLflow how the job goes
    attempts             each start of a job: its number, SLURM_RESTART_COUNT, the step it began at
    progress             the step of the newest checkpoint to go on from (PYCLASSIFY_PROGRESS)
    spool/               what the job logs, until it is uploaded (PYCLASSIFY_SPOOL)
    left                 the training left with exit code 75; removed before each start
    downloads/           what parameters of type `path` name by a URI
    job.sh               the script
    backend_config.json  the configuration as it was given, which a resume reads
    NAME-JOB.out         what the job writes, by "output" and "error"
"""

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pyclassify.utils.git import Repository, find_root, make_checkout
from pyclassify.utils.repository import diff_tracked_files, list_repositories

_PACKAGE_DIR = Path(__file__).parents[1]
# All that the reporter imports of this package is in these files.
_REPORTER = ("__init__.py", "slurm/*.py", "spool/*.py", "utils/*.py")


def take_snapshot(
    project: Path, folder: Path, names: Sequence[str], left_out: dict[str, str]
) -> None:
    """Copy files of a project, and record its commit and the changes since.

    Args:
        project: The project's folder.
        folder: The run's folder, which exists.
        names: The files, as `list_project_files` gives them.
        left_out: The files left out, with the reason; gets those whose changes are not recorded.

    Raises:
        OSError: git fails, or the disk is full.
    """
    target = folder / "project"
    target.mkdir()
    for name in names:
        _copy(project / name, target / name, project)
    commit = ""
    root = find_root(project, needs_git=False)
    repository = Repository(root) if root is not None else None
    if repository is not None:
        with suppress(OSError):  # there is none yet
            commit = repository.commit
    if repository is not None and commit:
        if changes := diff_tracked_files(repository, left_out):
            (folder / "changes.diff").write_bytes(changes)
        if root == project.resolve():
            _make_checkouts(root, target)
    record = {"project": str(project), "commit": commit, "left_out": left_out}
    (folder / "snapshot.json").write_text(json.dumps(record, indent=2) + "\n")
    _copy_reporter(folder / "reporter")


def _make_checkouts(root: Path, target: Path) -> None:
    """Make the copies of all repositories checkouts of their commits.

    What runs there finds its commit and diff. git's objects are those of the repository, unless
    that is one of MLflow's temporary clones, which the nodes don't see.
    """
    is_temporary = root.is_relative_to(Path(tempfile.gettempdir()).resolve())
    for name in list_repositories(root):
        (target / name).mkdir(parents=True, exist_ok=True)
        repository = Repository(root / name)
        make_checkout(repository, target / name, repository.commit, copies_objects=is_temporary)


def _copy_reporter(target: Path) -> None:
    """Copy what the reporter needs of this package, as the job's environment may not have it."""
    for file in (path for pattern in _REPORTER for path in _PACKAGE_DIR.glob(pattern)):
        copy = target / "pyclassify" / file.relative_to(_PACKAGE_DIR)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _copy(source: Path, target: Path, project: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        pointed_at = Path(os.readlink(source))
        real = Path(os.path.realpath(source))  # Path.resolve raises at a loop of links
        inside = not pointed_at.is_absolute() and real.is_relative_to(os.path.realpath(project))
        target.symlink_to(pointed_at if inside else real)
    else:
        shutil.copy2(source, target)
