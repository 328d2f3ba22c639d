"""Removing the folders of ended runs: their snapshots, and what the jobs wrote there."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pyclassify.spool import records
from pyclassify.spool.records import FINAL

_DAY = 86_400.0


def remove_old_folders(
    work_dir: Path, days: float, dry_run: bool = False
) -> Iterator[tuple[Path, int]]:
    """Remove the folders of runs that ended some time ago; others stay.

    So do those that hold what no server has yet, for `pyclassify sync`.

    Args:
        work_dir: The folder of the folders.
        days: How long ago at least.
        dry_run: Whether to remove nothing.

    Yields:
        Each folder that goes, and its size in bytes.

    Raises:
        OSError: There is no such folder.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if not work_dir.is_dir():
        raise OSError(f'there is no folder {work_dir}; give "work_dir" of the backend config')
    client = MlflowClient()
    for marker in sorted(work_dir.glob("*/snapshot.json")):
        folder = marker.parent
        try:
            info = client.get_run(folder.name).info
        except MlflowException:  # a run of another store, or one that was deleted for good
            continue
        ended = (info.end_time or 0) / 1000
        long_ago = ended < time.time() - days * _DAY
        if info.status in FINAL and long_ago and _is_delivered(folder):
            size = sum(each.lstat().st_size for each in folder.rglob("*"))
            if not dry_run:
                shutil.rmtree(folder)
            yield folder, size


def _is_delivered(folder: Path) -> bool:
    spools = folder.glob(f"spool/*/{records.SPOOL}")
    return all(records.is_delivered(each.parent) for each in spools)
