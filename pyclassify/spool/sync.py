"""`pyclassify sync`: deliver what jobs have logged where they could not reach the server."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pyclassify.spool import records
from pyclassify.spool.uploader import MakeVersion, Uploader
from pyclassify.utils.options import CommandParser

MAX_DEPTH = 3  # folders below the one given: WORK_DIR/<run>/spool/<run>
POLL_SECONDS = 2.0  # seconds between two looks, with --follow
MOST_PAUSE = 60.0  # the same while the server is away
PROGRESS_SECONDS = 1.0  # seconds between two lines of progress


def main(argv: Sequence[str], make_version: MakeVersion | None = None) -> int:
    """Run `pyclassify sync`.

    Args:
        argv: The command line after `sync`.
        make_version: Makes the versions of registered models that runs asked for; without it their
            records stay pending.

    Returns:
        The exit code: 1 where something is left that the server did not take.

    Raises:
        ValueError: The command line is wrong.
        OSError: There is no such folder.
    """
    from pyclassify.spool.server import configure_mlflow, limit_requests

    asked = _parse(argv)
    if not asked.folder.is_dir():
        raise OSError(
            f"there is no folder {asked.folder}; give the one where runs are trained (it has "
            'runs/spool), or "work_dir" of the SLURM backend'
        )
    configure_mlflow()
    limit_requests()
    sync = Sync(asked.folder.absolute(), make_version)
    pause = POLL_SECONDS
    while True:
        left = sync.turn()
        if not asked.follow:
            return 1 if left else 0
        pause = min(2 * pause, MOST_PAUSE) if left else POLL_SECONDS
        time.sleep(pause)


def _parse(argv: Sequence[str]) -> Any:
    parser = CommandParser(prog="pyclassify sync", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "folder",
        nargs="?",
        type=Path,
        default=Path("runs/spool" if Path("runs/spool").is_dir() else "."),
        help="where to look for spools, three folders deep (default: runs/spool, or this folder)",
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it is stopped")
    return parser.parse_args(argv)


def find_spools(folder: Path, deepest: int = MAX_DEPTH) -> Iterator[Path]:
    """The spools in a folder that are not known to be delivered whole.

    A folder that can't be read is among them, so that who asks it for its records hears why.
    """
    if records.is_spool(folder):
        if not records.is_done(folder):
            yield folder
        return
    if deepest:
        try:
            with os.scandir(folder) as there:
                inside = sorted(each.path for each in there if each.is_dir(follow_symlinks=False))
        except OSError:
            yield folder
            return
        for each in inside:
            yield from find_spools(Path(each), deepest - 1)


class Sync:
    """Delivers all spools under a folder, and tells how it goes.

    Args:
        folder: The folder.
        make_version: As in `main`.
    """

    def __init__(self, folder: Path, make_version: MakeVersion | None = None) -> None:
        self.folder, self.make_version = folder, make_version
        self._told: dict[Path, str] = {}
        self._sizes: dict[Path, int] = {}  # of what was delivered whole
        self._delivered, self._said, self._line = 0, time.monotonic(), ""

    def turn(self) -> int:
        """Deliver what is there; how many spools have something left."""
        left = 0
        for spool in find_spools(self.folder):
            try:
                size = records.count_bytes(spool)
                if self._sizes.get(spool) != size:
                    self._deliver(spool, size)
                    self._sizes[spool] = size
                self._told.pop(spool, None)
            except BlockingIOError:  # its own training, or another sync, delivers it
                continue
            except Exception as error:  # of one server or disk; another spool's may be well
                left += 1
                self._complain(spool, error)
        return left

    def _deliver(self, spool: Path, size: int) -> None:
        from mlflow import MlflowClient

        client = MlflowClient(_target(records.load_json(spool / records.SPOOL_FILE)))
        courier = Uploader(spool, client, self.make_version)

        def tell(count: int) -> None:
            if time.monotonic() - self._said > PROGRESS_SECONDS:
                self._say(courier, count)

        if count := courier.deliver(tell):
            self._say(courier, count, "\n" if sys.stdout.isatty() else "")
            self._delivered += count
        for text in courier.told:
            sys.stdout.write(f"{courier.server_id}: {text}\n")
        if (
            courier.is_done()
            and courier.client.get_run(courier.server_id).info.status in records.FINAL_STATUSES
        ):
            courier.clear()
            courier.set_done(size)

    def _say(self, courier: Uploader, count: int, end: str = "") -> None:
        """Show progress: one line that changes on a terminal, lines in a log."""
        self._said = time.monotonic()
        run_id, spool_id = courier.server_id, courier.folder.name
        who = spool_id if run_id == spool_id else f"{spool_id} as run {run_id}"
        text = f"{who}: {count:,} records delivered, {self._delivered + count:,} in all"
        if sys.stdout.isatty():
            sys.stdout.write(f"\r\033[K{text}{end}")
        elif text != self._line:
            sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
        self._line = text

    def _complain(self, spool: Path, error: Exception) -> None:
        from pyclassify.spool.server import describe_server_error
        from pyclassify.spool.upload_thread import describe_pending

        words = describe_server_error(error)
        if self._told.get(spool) != words:
            refused = describe_pending(error)
            sys.stderr.write(f"pyclassify: {spool.name}: {refused} delivered: {words}\n")
        self._told[spool] = words


def _target(known: dict[str, Any]) -> str:
    """The server: that of the environment, which has the credentials, or the one at the start."""
    import mlflow

    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return (
        given
        if given and not given.startswith("spool:")
        else (known["tracking_uri"] or mlflow.get_tracking_uri())
    )
