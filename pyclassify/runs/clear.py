"""`pyclassify clear`: remove the local files of runs that the tracking server has completely.

No torch here: the folder of runs may be cleared on a login node.
"""

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyclassify.spool import lock, records
from pyclassify.spool.store_errors import describe_server_error
from pyclassify.spool.sync import choose_server
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.options import CommandParser

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_DESCRIPTION = """\
Remove the local files of runs that the tracking server has completely.

These are the checkpoints and the write-ahead log of each FINISHED run, in the folder
runs. The server is asked for each run: its status, and whether it has the weights or
a model. The run at the server stays as it is; to train it further, `pyclassify rerun`
starts from its configuration."""
_EXAMPLES = (
    "pyclassify clear --dry-run",
    "pyclassify clear --older 30d",
)
_SPOOL_FOLDER = "spool"
_RUN_ID = re.compile(r"[0-9a-f]{32}")
_AGE = re.compile(r"(\d+)([dhm])")
_UNIT_SECONDS = {"d": 86_400, "h": 3_600, "m": 60}
_SHORT_ID = 8


@dataclass(frozen=True)
class _LocalRun:
    """The local files of a run: its ID in them, its folder of checkpoints and its spool."""

    run_id: str
    folders: tuple[Path, ...]
    spool: Path

    def has_checkpoints(self) -> bool:
        return any(True for folder in self.folders for _ in folder.rglob("*.ckpt"))

    def count_bytes(self) -> int:
        size = 0
        for folder in self.folders:
            for parent, _, names in os.walk(folder):
                for name in names:
                    with suppress(FileNotFoundError):  # a training is writing here
                        size += Path(parent, name).lstat().st_size
        return size


def main(argv: Sequence[str]) -> int:
    """Run `pyclassify clear`.

    Args:
        argv: The command line after `clear`.

    Returns:
        The exit code: 1 if a server did not respond.

    Raises:
        UsageError: The command line is invalid.
        OSError: The folder does not exist, or a file can't be removed.
    """
    options = _parse(argv)
    if not options.folder.is_dir():
        raise OSError(f"{options.folder} is not a directory; give the folder of the runs")
    configure_mlflow(retries=2)
    verb, sizes, failed = "would remove" if options.dry_run else "removed", {True: 0, False: 0}, 0
    for run in _find_runs(options.folder):
        size = run.count_bytes()
        with ExitStack() as stack:
            try:
                name, reason = _find_reason_to_keep(run, options, stack)
            except Exception as error:  # each kind of store fails in its own way
                name, reason, failed = "", describe_server_error(error), 1
            if not reason and not options.dry_run:
                _remove(run)
        sizes[not reason] += size
        _write_line(verb if not reason else "kept", run.run_id, size, reason or name)
    sys.stdout.write(f"{verb} {_format_size(sizes[True])}, kept {_format_size(sizes[False])}\n")
    return failed


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("pyclassify clear", description=_DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs"),
        help="Clear this folder of runs (default: runs).",
    )
    parser.add_argument(
        "--older",
        metavar="AGE",
        default="0d",
        help="Clear only runs that ended at least AGE ago, such as 30d, 12h or 5m (default: 0d).",
    )
    parser.add_argument(
        "--unfinished",
        action="store_true",
        help="Also clear FAILED and KILLED runs, which can't be resumed afterwards (default: keep "
        "what they need to resume).",
    )
    parser.add_argument(
        "-n",
        "--dry-run",
        action="store_true",
        help="Show what would be removed, and remove nothing (default: remove it).",
    )
    options: argparse.Namespace = parser.parse_args(argv)
    age = _AGE.fullmatch(options.older)
    if age is None:
        parser.error(f"invalid --older: {options.older!r} (expected an age, such as 30d or 12h)")
    options.min_age_seconds = int(age[1]) * _UNIT_SECONDS[age[2]]
    return options


def _find_runs(root: Path) -> Iterator[_LocalRun]:
    """Find the runs that have files in a folder of runs."""
    spools = root / _SPOOL_FOLDER
    found = {
        path.name: path
        for path in sorted(root.glob("*/*"))
        if _RUN_ID.fullmatch(path.name) and path.is_dir() and (path / "checkpoints").is_dir()
    }
    logs = {path.name: path for path in sorted(spools.glob("*")) if records.is_spool(path)}
    for run_id in sorted(found.keys() | logs.keys()):
        folders = tuple(part[run_id] for part in (found, logs) if run_id in part)
        yield _LocalRun(run_id, folders, spools / run_id)


def _remove(run: _LocalRun) -> None:
    """Remove the files of a run that this process has locked, those of its lock last."""
    for folder in run.folders:
        if folder != run.spool:
            shutil.rmtree(folder)
    lock.remove_folder(run.spool)


def _find_reason_to_keep(
    run: _LocalRun, options: argparse.Namespace, stack: ExitStack
) -> tuple[str, str]:
    """Find why the files of a run have to stay.

    Args:
        run: The run.
        options: The options of the command line.
        stack: Releases the lock of the run, which is held from the check until the files are
            removed: `pyclassify resume` could start to write them in between.

    Returns:
        The run's name, and the reason; empty if the files can be removed.

    Raises:
        mlflow.exceptions.MlflowException: The server does not respond.
    """
    from mlflow import MlflowClient

    if holder := lock.find_holder(run.spool):
        return "", f"the run is locked by {holder}"
    if not records.is_spool(run.spool):
        return "", f"its write-ahead log {run.spool} is missing, so its server is not known"
    if not options.dry_run:
        try:
            lock.acquire(run.spool)
        except lock.RunLockedError as error:
            return "", str(error)
        stack.callback(lock.release, run.spool)
    if not records.is_done(run.spool):
        return "", f"not completely uploaded; run `pyclassify sync {run.spool}`"
    if (run.spool / records.REJECTED_FILE).exists():
        return "", f"the server rejected some records: {run.spool / records.REJECTED_FILE}"
    uri = choose_server(records.load_json(run.spool / records.SPOOL_FILE))
    client = MlflowClient(uri)
    progress = records.load_json(run.spool / records.PROGRESS_FILE)
    at_server = _get_run(client, str(progress["run_id"] or run.run_id))
    if at_server is None:
        return "", f"{uri} does not have this run"
    return str(at_server.info.run_name), _check_run(client, at_server, run, options)


def _get_run(client: "MlflowClient", run_id: str) -> "Run | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _check_run(
    client: "MlflowClient", run: "Run", local: _LocalRun, options: argparse.Namespace
) -> str:
    """Check that the server has all of a run; return why its local files have to stay."""
    status, short_id = run.info.status, run.info.run_id[:_SHORT_ID]
    if status not in records.FINAL_STATUSES:
        return f"the run is {status}"
    if status != "FINISHED" and not options.unfinished:
        resume = f"`pyclassify resume {short_id}` needs it"
        return f"the run is {status}, and {resume} (clear it by --unfinished)"
    age = time.time() - (run.info.end_time or 0) / 1000
    if age < options.min_age_seconds:
        return f"the run ended less than {options.older} ago"
    if status == "FINISHED" and local.has_checkpoints() and not _has_weights(client, run):
        return "the server has neither its weights nor a model"
    return ""


def _has_weights(client: "MlflowClient", run: "Run") -> bool:
    """Whether the server has the trained weights of a run."""
    if any(found.path == "weights" for found in client.list_artifacts(run.info.run_id)):
        return True
    condition = f"source_run_id = '{run.info.run_id}'"
    models = client.search_logged_models([run.info.experiment_id], filter_string=condition)
    return any((model.name, model.status) == (records.MODEL_NAME, "READY") for model in models)


def _write_line(verb: str, run_id: str, size: int, text: str) -> None:
    sys.stdout.write(f"{verb:12}  {run_id[:_SHORT_ID]}  {_format_size(size):>8}  {text}\n")


def _format_size(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1000:.0f} kB"
