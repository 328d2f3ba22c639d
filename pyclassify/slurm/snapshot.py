"""Snapshot the project of a run, so that later edits do not change a pending job.

Each run has a folder in `work_dir`, which compute nodes see:

    project/             the tracked and unignored files, or all files without a git repository
    changes.diff         `git diff --binary HEAD`; absent without changes
    snapshot.json        the folder of the project, the commit, and the files left out
    reporter/            the code that reports the start and end of the job to MLflow
    attempts             each start of a job: job id, SLURM_RESTART_COUNT, step of the start
    progress             the step of the newest checkpoint (PYCLASSIFY_PROGRESS)
    spool/               the write-ahead log of the run (PYCLASSIFY_SPOOL)
    interrupted          empty; the training exited with code 75; removed before each start
    downloads/           the downloads of URIs that are parameters of type `path`
    job.sh               the batch script
    backend_config.json  the configuration as the user gave it, which a resume reads
    NAME-JOB.out         the stdout of the job, by "output"; also the stderr, by "error"
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
# The files of this package that the reporter imports.
_REPORTER = ("__init__.py", "slurm/*.py", "spool/*.py", "utils/*.py")


def take_snapshot(
    project: Path, folder: Path, names: Sequence[str], left_out: dict[str, str]
) -> None:
    """Copy files of a project, and record its commit and the changes since.

    Args:
        project: The project's folder.
        folder: The run's folder, which exists.
        names: The files, as `list_project_files` gives them.
        left_out: The files left out, with the reason; those with unrecorded changes are added.

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
        with suppress(OSError):  # the repository has none yet
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

    The training then finds its commit and diff. The git objects are those of the repository. They
    are copied from a temporary clone of MLflow, which the nodes don't see.
    """
    is_temporary = root.is_relative_to(Path(tempfile.gettempdir()).resolve())
    for name in list_repositories(root):
        (target / name).mkdir(parents=True, exist_ok=True)
        repository = Repository(root / name)
        make_checkout(repository, target / name, repository.commit, copies_objects=is_temporary)


def _copy_reporter(target: Path) -> None:
    """Copy the reporter and its imports, as the job's environment may not have this package."""
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
