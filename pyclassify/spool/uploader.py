"""Upload a spool to the server: in order, in batches, retried until the server has all records."""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyclassify.spool import records
from pyclassify.spool.experiments import create_experiment
from pyclassify.spool.model_sender import ModelSender
from pyclassify.spool.records import FINAL_STATUSES, Batch, Record, get_path, read_batches
from pyclassify.spool.server import RejectedRecords, Sender, open_artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Registers a model version, given a client and a record; returns a message.
MakeVersion = Callable[["MlflowClient", Record], str]

BUSY = "another process is uploading this run"
SPOOL_TAG = "pyclassify.spool"  # of a run that an upload created: its ID in the spool
# For files that can't be stored: each may take a timeout, and must not delay the metrics.
_MAX_FAILING_SECONDS = 10.0
# What failed, by the kind of record.
_FAILURES = {
    "artifact": "file upload failed",
    "model_status": "model upload failed",
    "version": "model registration failed",
}
_BEFORE_VERSION = ("artifact", "model_status")


class PendingError(OSError):
    """Files can't be stored or a model can't be registered now; everything else is uploaded.

    Args:
        failure: Which part failed, such as "file upload failed".
        message: The reason.
    """

    def __init__(self, failure: str, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class Uploader:
    """Uploads the spool of one run.

    Args:
        folder: The run's folder.
        client: A client of the server.
        make_version: Called with the client and a record of the kind `version`, in which `model`
            is the logged model's ID at the server; without it such records stay pending for another
            uploader.

    Attributes:
        offsets: The number of uploaded bytes of each segment, by the segment's number. A process
            that is about to end may still write while the next one already does.
        messages: What `make_version` returned, one line for each version.

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
        server_id = self.run_id if self._spool_info["is_at_server"] else ""
        self._sender = Sender(client, server_id, self._rejected)
        self._models = ModelSender(folder, self._sender)
        self.pending = _PendingRecords(self._sender.send_or_reject)
        self._load_progress()

    @property
    def server_id(self) -> str:
        """The run's ID at the server, empty until it is known."""
        return self._sender.run_id

    def get_model_id(self, model: str) -> str:
        """Return a logged model's ID at the server; empty if it is not created there."""
        return self._models.get_id(model)

    def is_done(self) -> bool:
        """Whether everything is uploaded."""
        if not self.server_id or self.pending.records:
            return False
        return next(read_batches(self.folder, self.offsets), None) is None

    def upload(self, on_progress: Callable[[int], None] = lambda count: None) -> int:
        """Upload all new records. The upload is idempotent: what the server has is not added twice.

        Args:
            on_progress: Called after each batch with the number of records uploaded so far.

        Returns:
            The number of uploaded records.

        Raises:
            mlflow.exceptions.MlflowException: The server does not respond, or rejects the request.
            BlockingIOError: Another process is uploading this run.
            PendingError: Files can't be stored or a model can't be registered; everything else is
                uploaded.
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
        """Upload records from memory that could not be written to the full disk.

        Raises:
            mlflow.exceptions.MlflowException: The server does not respond, or rejects the request.
            PendingError: Files can't be stored, or a model can't be registered.
        """
        if not self.server_id:
            self._make_run()
        self.pending.restart()
        self._send(batch)
        self.pending.check()

    def remove_copies(self) -> None:
        """Remove the copies of artifacts if everything is uploaded; their records stay.

        Raises:
            BlockingIOError: Another process is uploading this run.
            OSError: The copies can't be removed.
        """
        with exclusive_upload(self.folder):
            self._load_progress()
            if self.is_done():
                shutil.rmtree(self.folder / "artifacts")
                (self.folder / "artifacts").mkdir(mode=0o700)
                self._models.remove_copies()

    def fail_pending_models(self) -> None:
        """Make the logged models FAILED that have no status, as their run has ended.

        Raises:
            mlflow.exceptions.MlflowException: The server does not respond.
        """
        self._models.fail_pending(self.pending.records)

    def mark_done(self, size: int) -> None:
        """Have `pyclassify sync` skip the spool until more is written to it.

        Args:
            size: The size of its records in bytes, read before they were found to be uploaded.
        """
        (self.folder / records.DONE_FILE).write_text(f"{size}\n")

    def _load_progress(self) -> None:
        """Read how much is uploaded; another process may have continued the upload."""
        with suppress(FileNotFoundError):
            progress = records.load_json(self.folder / records.PROGRESS_FILE)
            for number, offset in progress["offsets"].items():
                self.offsets[int(number)] = max(offset, self.offsets.get(int(number), 0))
            self._sender.run_id = self.server_id or progress["run_id"]
            self.pending.records = progress.get("pending", {})
            self._models.models |= progress.get("models", {})

    def _save_progress(self, offsets: Mapping[int, int]) -> None:
        offsets = {**self.offsets, **offsets}
        progress = {
            "run_id": self.server_id,
            "offsets": offsets,
            "pending": self.pending.records,
            "models": self._models.models,
        }
        with suppress(OSError):  # a full disk; uploads are idempotent
            records.save_json(self.folder / records.PROGRESS_FILE, progress)
            self.offsets = offsets

    def _make_run(self) -> None:
        """Create the run of an offline spool at the server, or find it if it was created before."""
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
        self._models.send(batch)
        self.pending.records |= {**batch.artifacts, **batch.model_statuses, **batch.versions}
        self.pending.send_all(self._senders)
        if batch.status:
            if batch.status["status"] in FINAL_STATUSES:
                self.fail_pending_models()
            self._sender.set_status(batch.status)
        for message in batch.damaged:
            self._rejected.add({"kind": "damaged"}, message)

    @property
    def _senders(self) -> dict[str, Callable[[Record], None]]:
        """The functions that send files, models' statuses and versions, by the kind of record."""
        senders: dict[str, Callable[[Record], None]] = {
            "artifact": self._upload_artifact,
            "model_status": self._models.set_status,
        }
        if self.make_version is not None:
            senders["version"] = partial(self._make_version, self.make_version)
        return senders

    def _upload_artifact(self, record: Record) -> None:
        if "model" in record:
            self._models.upload_file(record)
            return
        path = records.get_file(self.folder, record)
        if not path.is_file():
            self._rejected.add(record, f"{path} does not exist any more")
            return
        parent = Path(record["path"]).parent.as_posix()
        artifacts = open_artifacts(self.client, self._sender.run_info.artifact_uri)
        artifacts.log_artifact(str(path), None if parent == "." else parent)

    def _make_version(self, make_version: MakeVersion, record: Record) -> None:
        model_id = self._models.map_id(record["model"]) if "model" in record else None
        if model_id == "":
            self._rejected.add(record, "the server has rejected the model")
            return
        if lost := self._rejected.find_file(record):
            self._rejected.add(record, f"the model lacks {lost}, which could not be stored")
            return
        record = {**record, "model": model_id} if model_id else record
        self.messages.append(make_version(self.client, record))


class _PendingRecords:
    """The records of artifacts, models' statuses and model versions that are not stored yet.

    A file that can't be stored delays only the status and the versions of its model.

    Args:
        send_or_reject: Sends a record by the function that follows it, or rejects it permanently.

    Attributes:
        records: The records; those of artifacts by their paths.
    """

    def __init__(self, send_or_reject: Callable[..., None]) -> None:
        self._send_or_reject = send_or_reject
        self.records: dict[str, Record] = {}
        self.restart()

    def restart(self) -> None:
        """Allow a retry of what could not be stored, and reset the time that failures may take."""
        self._failed: dict[str, Exception] = {}
        self._failing_seconds = 0.0

    def send_all(self, senders: Mapping[str, Callable[[Record], None]]) -> None:
        """Store what can be stored, each record once after a `restart`.

        Args:
            senders: The function for each kind of record, in order; other kinds stay pending.
        """
        for kind in senders:
            for key, record in [*self.records.items()]:
                has_time = self._failing_seconds < _MAX_FAILING_SECONDS
                is_due = record["kind"] == kind and key not in self._failed and has_time
                if is_due and not self._is_blocked(record):
                    self._try(key, record, senders[kind])

    def check(self) -> None:
        """Raise the first failure since `restart`.

        Raises:
            PendingError: A file can't be stored, or a model can't be registered.
        """
        for key, error in self._failed.items():
            raise PendingError(_FAILURES[self.records[key]["kind"]], f"{key}: {error}") from error

    def _is_blocked(self, record: Record) -> bool:
        """Whether files of the record's model are pending, or the status before the version."""
        if record["kind"] == "artifact":
            return False
        if "model" in record:
            earlier = ("artifact",) if record["kind"] == "model_status" else _BEFORE_VERSION
            return any(
                other["kind"] in earlier and other.get("model") == record["model"]
                for other in self.records.values()
            )
        folder = f"{record['path']}/"
        return any(
            other["kind"] == "artifact" and get_path(other).startswith(folder)
            for other in self.records.values()
        )

    def _try(self, key: str, record: Record, send: Callable[[Record], None]) -> None:
        start = time.monotonic()
        try:
            self._send_or_reject(record, send, record)
            del self.records[key]
        except Exception as error:  # each kind of artifact store has its own errors
            self._failed[key] = error
            self._failing_seconds += time.monotonic() - start


@contextmanager
def exclusive_upload(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock of a spool's upload within this context.

    Raises:
        BlockingIOError: Another process holds the lock.
    """
    with (folder / records.UPLOAD_LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, BUSY) from None
        try:
            yield
        finally:
            # Closing the file is not enough: a data worker forked meanwhile inherited it.
            fcntl.flock(file, fcntl.LOCK_UN)
