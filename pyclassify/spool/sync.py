"""`pyclassify sync`: upload what runs logged while they could not reach the tracking server."""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyclassify.spool import records
from pyclassify.spool.store_errors import describe_server_error
from pyclassify.spool.uploader import MakeVersion, Uploader
from pyclassify.utils.mlflow_settings import configure_mlflow, limit_requests
from pyclassify.utils.options import CommandParser

_DESCRIPTION = """\
Upload what runs logged while they could not reach the tracking server.

Each run has a spool, its write-ahead log, in the folder runs/spool. The runs are
uploaded to the server of MLFLOW_TRACKING_URI, or else to the one they were started
with. The exit code is 1 if something could not be uploaded; run the command again
to retry it. No value is uploaded twice."""
_EXAMPLES = (
    "pyclassify sync",
    "pyclassify sync runs/spool/RUN_ID",
    "pyclassify sync --follow WORK_DIR",
)
_MAX_DEPTH = 3  # folders below the one given: WORK_DIR/<run>/spool/<run>
_POLL_SECONDS = 2.0  # between two uploads, with --follow
_MAX_POLL_SECONDS = 60.0  # while a server does not answer
_PROGRESS_SECONDS = 1.0  # between two lines of progress


def main(argv: Sequence[str], make_version: MakeVersion | None = None) -> int:
    """Run `pyclassify sync`.

    Args:
        argv: The command line after `sync`.
        make_version: Registers the model versions that runs requested; without it their records
            stay pending.

    Returns:
        The exit code: 1 if something could not be uploaded.

    Raises:
        UsageError: The command line is invalid.
        OSError: The folder does not exist.
    """
    args = _parse(argv)
    if not args.folder.is_dir():
        raise OSError(
            f"{args.folder} is not a directory; give the folder where runs are trained (it "
            'contains runs/spool), or "work_dir" of the SLURM backend'
        )
    configure_mlflow()
    limit_requests()
    sync = Sync(args.folder.absolute(), make_version)
    pause = _POLL_SECONDS
    while True:
        pending = sync.upload_all()
        if not args.follow:
            return 1 if pending else 0
        pause = min(2 * pause, _MAX_POLL_SECONDS) if pending else _POLL_SECONDS
        time.sleep(pause)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser("pyclassify sync", description=_DESCRIPTION, examples=_EXAMPLES)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs/spool" if Path("runs/spool").is_dir() else "."),
        help=f"Upload all spools in this folder, up to {_MAX_DEPTH} levels deep (default: "
        "runs/spool if it exists, else the current folder).",
    )
    parser.add_argument(
        "-f",
        "--follow",
        action="store_true",
        help=f"Continue to upload new records, every {_POLL_SECONDS:g} seconds, until interrupted "
        "(default: upload once and exit).",
    )
    return parser.parse_args(argv)


def find_spools(folder: Path, max_depth: int = _MAX_DEPTH) -> Iterator[Path]:
    """Find the spools in a folder, except those of runs that have ended and are fully uploaded.

    An unreadable folder is yielded too, so that reading its records raises the reason.
    """
    if records.is_spool(folder):
        if not records.is_done(folder):
            yield folder
        return
    if max_depth:
        try:
            with os.scandir(folder) as entries:
                subfolders = sorted(
                    entry.path for entry in entries if entry.is_dir(follow_symlinks=False)
                )
        except OSError:
            yield folder
            return
        for subfolder in subfolders:
            yield from find_spools(Path(subfolder), max_depth - 1)


class Sync:
    """Uploads all spools in a folder, and reports progress and errors.

    Args:
        folder: The folder.
        make_version: As in `main`.
    """

    def __init__(self, folder: Path, make_version: MakeVersion | None = None) -> None:
        self.folder, self.make_version = folder, make_version
        self._errors: dict[Path, str] = {}  # already reported
        self._sizes: dict[Path, int] = {}  # bytes of records that were uploaded completely
        self._uploaded, self._reported_at, self._line = 0, time.monotonic(), ""

    def upload_all(self) -> int:
        """Upload all spools; return the number of those with something left to upload."""
        pending = 0
        for spool in find_spools(self.folder):
            try:
                size = records.count_bytes(spool)
                if self._sizes.get(spool) != size:
                    self._upload(spool, size)
                    self._sizes[spool] = size
                self._errors.pop(spool, None)
            except BlockingIOError:  # its training or another sync is uploading it
                continue
            except Exception as error:  # one spool's server or disk; others may work
                pending += 1
                self._report_error(spool, error)
        return pending

    def _upload(self, spool: Path, size: int) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(choose_server(records.load_json(spool / records.SPOOL_FILE)))
        uploader = Uploader(spool, client, self.make_version)

        def report(count: int) -> None:
            if time.monotonic() - self._reported_at > _PROGRESS_SECONDS:
                self._report(uploader, count)

        if count := uploader.upload(report):
            self._report(uploader, count, "\n" if sys.stdout.isatty() else "")
            self._uploaded += count
        for message in uploader.messages:
            sys.stdout.write(f"{uploader.server_id}: {message}\n")
        if uploader.is_done() and _has_ended(uploader):
            uploader.fail_pending_models()
            uploader.remove_copies()
            uploader.mark_done(size)

    def _report(self, uploader: Uploader, count: int, end: str = "") -> None:
        """Print progress: one line that is updated in a terminal, separate lines in a log."""
        self._reported_at = time.monotonic()
        run_id, spool_id = uploader.server_id, uploader.folder.name
        name = spool_id if run_id == spool_id else f"{spool_id} as run {run_id}"
        noun = "record" if count == 1 else "records"
        line = f"{name}: uploaded {count:,} {noun} ({self._uploaded + count:,} in total)"
        if sys.stdout.isatty():
            sys.stdout.write(f"\r\033[K{line}{end}")
        elif line != self._line:
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        self._line = line

    def _report_error(self, spool: Path, error: Exception) -> None:
        from pyclassify.spool.upload_thread import describe_failure

        message = describe_server_error(error)
        if self._errors.get(spool) != message:
            sys.stderr.write(
                f"pyclassify: error: {spool.name}: {describe_failure(error)}: {message}\n"
            )
        self._errors[spool] = message


def _has_ended(uploader: Uploader) -> bool:
    run = uploader.client.get_run(uploader.server_id)
    return run.info.status in records.FINAL_STATUSES


def choose_server(spool_info: dict[str, Any]) -> str:
    """Choose the server of MLFLOW_TRACKING_URI, which has the credentials, or the run's own."""
    import mlflow

    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri and not uri.startswith("spool:"):
        return uri
    return str(spool_info["tracking_uri"] or mlflow.get_tracking_uri())
