"""Upload a spool to the server: in order, in batches, and again until the server has all of it."""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.spool import records
from pyclassify.spool.experiments import create_experiment
from pyclassify.spool.records import Batch, Record, read_batches
from pyclassify.spool.server import RejectedRecords, Sender, open_artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Makes a version of a registered model of a run; returns a message that says which.
MakeVersion = Callable[[Any, str, Record], str]

BUSY = "another process delivers this run"
SPOOL_TAG = "pyclassify.spool"  # of a run that an upload made: the id that it had in the spool
# For files that can't be stored: each may take a timeout, and metrics have to be uploaded too.
_MAX_FAILING_SECONDS = 10.0


class PendingError(OSError):
    """Files can't be stored or a version can't be made at the moment; all else is uploaded.

    Args:
        kind: What is not taken: "no file", or "no version".
        message: Why.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Uploader:
    """Uploads the spool of one run.

    Args:
        folder: The run's folder.
        client: A client of the server.
        make_version: Called with the client, the run's id at the server and a record of the kind
            `version`; without it such records stay pending for another uploader.

    Attributes:
        offsets: How many bytes the server has of each file of records, by the file's number. A
            process that is about to end may write while the next one does already.
        messages: What `make_version` returned, a line for each version.

    Example:
        >>> Uploader(Path("runs/spool/RUN_ID"), MlflowClient("http://server:5000")).upload()
    """

    def __init__(
        self,
        folder: Path,
        client: "MlflowClient",
        make_version: MakeVersion | None = None,
    ) -> None:
        self.folder, self.client, self.make_version = folder, client, make_version
        self.run_id = folder.name
        self.offsets: dict[int, int] = {}
        self.messages: list[str] = []
        self._spool_info = records.load_json(folder / records.SPOOL_FILE)
        self._rejected = RejectedRecords(folder)
        server_id = "" if self._spool_info["made_here"] else self.run_id
        self._sender = Sender(client, server_id, self._rejected)
        self.pending = _PendingRecords(self._sender.send_or_reject)
        self._load_progress()

    @property
    def server_id(self) -> str:
        """The run's id at the server, empty until it is known."""
        return self._sender.run_id

    def is_done(self) -> bool:
        """Whether nothing is left to upload."""
        if not self.server_id or self.pending.records:
            return False
        return next(read_batches(self.folder, self.offsets), None) is None

    def upload(self, on_progress: Callable[[int], None] = lambda count: None) -> int:
        """Upload all that is there.

        Args:
            on_progress: Called after each batch with the number of records uploaded so far.

        Returns:
            The number of records.

        Raises:
            mlflow.exceptions.MlflowException: The server does not answer, or refuses.
            BlockingIOError: Another process uploads them now.
            PendingError: Files can't be stored, or no version made; all else is uploaded.
            OSError: The folder can't be read.
        """
        with exclusive_upload(self.folder):
            self._load_progress()
            self.pending.restart()
            if not self.server_id:
                self._make_run()
            count = 0
            for batch in read_batches(self.folder, self.offsets):
                self._send(batch)
                self._save_progress(batch.offsets)
                count += batch.count
                on_progress(count)
            if self.pending.records:
                self.pending.send_all(self._senders)
                self._save_progress({})
                self.pending.check()
            return count

    def upload_unwritten(self, batch: Batch) -> None:
        """Upload records that are in no file, since the disk is full.

        Raises:
            mlflow.exceptions.MlflowException: The server does not answer, or refuses.
            PendingError: Files can't be stored, or no version made.
        """
        if not self.server_id:
            self._make_run()
        self.pending.restart()
        self._send(batch)
        self.pending.check()

    def remove_copies(self) -> None:
        """Remove the copies of artifacts, if all is uploaded; the records say what there was.

        Raises:
            BlockingIOError: Another process uploads.
            OSError: They can't be removed.
        """
        with exclusive_upload(self.folder):
            self._load_progress()
            if self.is_done():
                shutil.rmtree(self.folder / "artifacts")
                (self.folder / "artifacts").mkdir(mode=0o700)

    def mark_done(self, size: int) -> None:
        """Have `pyclassify sync` skip the spool, as long as no more is written.

        Args:
            size: How many bytes its records had before it was seen that all are uploaded.
        """
        (self.folder / records.DONE_FILE).write_text(f"{size}\n")

    def _load_progress(self) -> None:
        """See how far the server has all; another process may have uploaded since."""
        with suppress(FileNotFoundError):
            progress = records.load_json(self.folder / records.PROGRESS_FILE)
            for number, offset in progress["places"].items():
                self.offsets[int(number)] = max(offset, self.offsets.get(int(number), 0))
            self._sender.run_id = self.server_id or progress["run_id"]
            self.pending.records = progress.get("waiting", {})

    def _save_progress(self, offsets: Mapping[int, int]) -> None:
        offsets = {**self.offsets, **offsets}
        progress = {
            "run_id": self.server_id,
            "places": offsets,
            "waiting": self.pending.records,
        }
        with suppress(OSError):  # a full disk; what is uploaded twice is there once
            records.save_json(self.folder / records.PROGRESS_FILE, progress)
            self.offsets = offsets

    def _make_run(self) -> None:
        """Make the run that no server was asked about, or find it where that was done before."""
        info, tags = self._spool_info["info"], self._spool_info["tags"]
        experiment_id = info["experiment_id"]
        if experiment_id.startswith("name:"):
            name = experiment_id.removeprefix("name:")
            experiment = self.client.get_experiment_by_name(name)
            if experiment:
                experiment_id = experiment.experiment_id
            else:
                experiment_id = create_experiment(self.client, name)
        runs = self.client.search_runs([experiment_id], f"tags.`{SPOOL_TAG}` = '{self.run_id}'")
        run = (
            runs[0]
            if runs
            else self.client.create_run(
                experiment_id,
                start_time=info["start_time"],
                tags={**tags, SPOOL_TAG: self.run_id},
                run_name=info["run_name"],
            )
        )
        self._sender.run_id = run.info.run_id
        self._save_progress({})

    def _send(self, batch: Batch) -> None:
        self._sender.send(batch)
        self.pending.records |= {**batch.artifacts, **batch.versions}
        self.pending.send_all(self._senders)
        if batch.status:
            self._sender.set_status(batch.status)
        for message in batch.damaged:
            self._rejected.add({"kind": "damaged"}, message)

    @property
    def _senders(self) -> dict[str, Callable[[Record], None]]:
        """What sends the records of each kind that are not for the tracking server itself."""
        if self.make_version is None:
            return {"artifact": self._upload_artifact}
        make_version = partial(self._make_version, self.make_version)
        return {"artifact": self._upload_artifact, "version": make_version}

    def _upload_artifact(self, record: Record) -> None:
        path = self.folder / "artifacts" / record["path"]
        if not path.is_file():
            self._rejected.add(record, f"{path} is gone")
            return
        parent = Path(record["path"]).parent.as_posix()
        artifacts = open_artifacts(self.client, self._sender.run_info.artifact_uri)
        artifacts.log_artifact(str(path), None if parent == "." else parent)

    def _make_version(self, make_version: MakeVersion, record: Record) -> None:
        if lost := self._rejected.find_file(record["path"]):
            self._rejected.add(record, f"the model lacks {lost}, which was not stored")
        else:
            self.messages.append(make_version(self.client, self.server_id, record))


class _PendingRecords:
    """The records of artifacts and versions that are not stored yet.

    What can't be stored holds up nothing but the versions that are made of it.

    Args:
        send_or_reject: Sends a record by the function that follows it, or rejects it for good.

    Attributes:
        records: The records, those of artifacts by their paths.
    """

    def __init__(self, send_or_reject: Callable[..., None]) -> None:
        self._send_or_reject = send_or_reject
        self.records: dict[str, Record] = {}
        self.restart()

    def restart(self) -> None:
        """Try again what could not be stored, and reset the time that failures may take."""
        self._failed: dict[str, Exception] = {}
        self._failing_seconds = 0.0

    def send_all(self, senders: Mapping[str, Callable[[Record], None]]) -> None:
        """Store what can be, each thing once after a `restart`: all artifacts, then versions.

        Args:
            senders: What stores a record of each kind, in order; other kinds stay pending.
        """
        for kind in senders:
            for key, record in [*self.records.items()]:
                has_time = self._failing_seconds < _MAX_FAILING_SECONDS
                if record["kind"] == kind and key not in self._failed and has_time:
                    self._try(key, record, senders[kind])
            if any(record["kind"] == "artifact" for record in self.records.values()):
                return

    def check(self) -> None:
        """Raise the first failure since `restart`.

        Raises:
            PendingError: Something can't be stored.
        """
        for key, error in self._failed.items():
            kind = "no file" if self.records[key]["kind"] == "artifact" else "no version"
            raise PendingError(kind, f"{key}: {error}") from error

    def _try(self, key: str, record: Record, send: Callable[[Record], None]) -> None:
        start = time.monotonic()
        try:
            self._send_or_reject(record, send, record)
            del self.records[key]
        except Exception as error:  # each kind of store fails in its own way
            self._failed[key] = error
            self._failing_seconds += time.monotonic() - start


@contextmanager
def exclusive_upload(folder: Path) -> Iterator[None]:
    """Within this context no other process uploads a spool.

    Raises:
        BlockingIOError: One does.
    """
    with (folder / "delivery.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, BUSY) from None
        try:
            yield
        finally:
            # Closing it is not enough where a data worker was forked meanwhile and has it too.
            fcntl.flock(file, fcntl.LOCK_UN)
