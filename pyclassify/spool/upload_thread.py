"""The thread that uploads a run while it trains."""

import random
import re
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

from pyclassify.spool import records
from pyclassify.spool.records import Batch
from pyclassify.spool.store_errors import describe_server_error
from pyclassify.spool.uploader import BUSY, MakeVersion, PendingError, Uploader
from pyclassify.spool.writer import open_writer

UPLOAD_SECONDS = 2.0  # between two uploads: the delay of the curves in `mlflow ui`
_MAX_PAUSE_SECONDS = 60.0  # between two retries while the server does not respond
REFRESH_TIMEOUT_SECONDS = 5.0  # that a reader waits for the server
_RETRY_PAUSES_SECONDS = (0.0, 1.0, 3.0)  # at the end of the run: the server may be restarting

# Show the warning each time, unless the user has configured otherwise: Python's default hides a
# second outage of the server.
warnings.filterwarnings("always", module=re.escape(__name__), append=True)


class UploadThread(threading.Thread):
    """Uploads a run's records every `UPLOAD_SECONDS` until `finish` is called.

    Args:
        folder: The run's folder.
        tracking_uri: The server, with its credentials.

    Attributes:
        writer: The run's spool, open for writing.
        make_version: As in `Uploader`; set by the callback that registers models.
        last_error: Why the last upload failed; `BUSY` while another process uploads the run; empty
            after an upload that succeeded.

    Example:
        >>> thread = UploadThread(Path("runs/spool/RUN_ID"), "http://server:5000")
        >>> thread.start()
        >>> thread.finish(timeout_seconds=60)
        True
    """

    def __init__(self, folder: Path, tracking_uri: str) -> None:
        super().__init__(name="pyclassify-upload", daemon=True)
        self.folder, self.tracking_uri = folder, tracking_uri
        self.writer = open_writer(folder)
        self.make_version: MakeVersion | None = None
        self.last_error = ""
        self._condition = threading.Condition()
        self._requested = self._answered = 0
        self._is_over = False
        self._uploader: Uploader | None = None
        self._reported_id = ""
        self._unanswered = 0  # the request whose reader timed out

    @property
    def server_id(self) -> str:
        """The run's ID at the server; empty before it is known."""
        return str(self._uploader.server_id) if self._uploader else ""

    def get_model_id(self, model: str) -> str:
        """Return a logged model's ID at the server; empty before it is known.

        A run that was resumed on another machine has models that are not in this spool; their IDs
        are the server's already.
        """
        if model not in self.writer.state.models:
            return model
        return self._uploader.get_model_id(model) if self._uploader else ""

    def run(self) -> None:
        pause = UPLOAD_SECONDS
        while not self._is_over:
            requested = self._requested
            self._upload()
            is_well = self.last_error in ("", BUSY)
            pause = UPLOAD_SECONDS if is_well else min(2 * pause, _MAX_PAUSE_SECONDS)
            with self._condition:
                self._answered = requested
                self._condition.notify_all()
                if self._requested == requested:
                    self._condition.wait(pause * random.uniform(0.8, 1.2))

    def wait_until_uploaded(self, timeout_seconds: float) -> bool:
        """Upload all records written so far; return whether that is done in time."""
        end = time.monotonic() + timeout_seconds
        with self._condition:
            self._requested += 1
            requested = self._requested
            self._condition.notify_all()
            while self._answered < requested and self.is_alive():
                if not self._condition.wait(max(0.0, end - time.monotonic())):
                    return False
        return not self.last_error

    def finish(self, timeout_seconds: float) -> bool:
        """Upload the remaining records and end the thread; return whether none is left."""
        end = time.monotonic() + timeout_seconds
        self.writer.sync()
        for pause in _RETRY_PAUSES_SECONDS:
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            if is_uploaded := self.wait_until_uploaded(end - time.monotonic()):
                break
        with self._condition:
            self._is_over = True
            self._condition.notify_all()
        return is_uploaded and (self.writer.flush() or self._upload_unwritten())

    def find_unsent(self) -> tuple[int, list[str]]:
        """Find what is not uploaded: bytes of records, and paths of pending artifacts."""
        size = records.count_bytes(self.folder)
        if self._uploader is None:
            return size, []
        return size - sum(self._uploader.offsets.values()), [*self._uploader.pending.records]

    def remove_copies(self, is_over: bool) -> None:
        """Remove the copies of artifacts if everything is uploaded.

        Args:
            is_over: Whether the run has ended, so that `pyclassify sync` may skip it.
        """
        if self._uploader is None:
            return
        with suppress(OSError):  # another process uploads the run and will remove them
            size = records.count_bytes(self.folder)
            self._uploader.remove_copies()
            if is_over and self._uploader.is_done():
                self._uploader.mark_done(size)

    def refresh(self) -> None:
        """Read tags and parameters from the server: users edit them in `mlflow ui`."""
        is_unanswered = self._unanswered > self._answered
        if self.last_error or threading.current_thread() is self or is_unanswered:
            return
        if not self.wait_until_uploaded(REFRESH_TIMEOUT_SECONDS):
            self._unanswered = self._requested
            return
        uploader = self._uploader
        if uploader is None or not uploader.server_id:
            return
        try:
            run = uploader.client.get_run(uploader.server_id)
        except Exception:  # the server has just become unreachable: use the local state
            return
        state = self.writer.state
        state.tags, state.params = dict(run.data.tags), dict(run.data.params)
        state.info["experiment_id"] = run.info.experiment_id  # "name:..." until now

    def _upload(self) -> None:
        from mlflow import MlflowClient

        try:
            self.writer.flush()
            if self._uploader is None:
                self._uploader = Uploader(self.folder, MlflowClient(self.tracking_uri))
            self._uploader.make_version = self.make_version
            self._uploader.upload()
            if self.last_error and self.last_error != BUSY:
                warnings.warn(
                    "the upload to the tracking server works again",
                    stacklevel=2,
                )
            self._report_id(self._uploader.server_id)
            self.last_error = ""
        except BlockingIOError:
            self.last_error = BUSY
        except Exception as error:  # of the server, the network or the disk
            message = describe_server_error(error)
            if self.last_error in ("", BUSY):
                warnings.warn(
                    f"{describe_failure(error)} ({message}); what the run logs is saved in "
                    f"{self.folder}, and the upload is retried",
                    stacklevel=2,
                )
            self.last_error = message

    def _report_id(self, server_id: str) -> None:
        if server_id not in (self.folder.name, self._reported_id):
            warnings.warn(
                f"the run {self.folder.name}, which was started while the tracking server could "
                f"not be reached, has the ID {server_id} there",
                stacklevel=2,
            )
            self._reported_id = server_id

    def _upload_unwritten(self) -> bool:
        batch = Batch()
        for record in self.writer.list_pending():
            batch.add(record)
        try:
            if self._uploader is not None:
                self._uploader.upload_unwritten(batch)
                return True
        except Exception as error:  # of the server, the network or the disk
            self.last_error = describe_server_error(error)
        return False


def describe_failure(error: BaseException) -> str:
    """Describe in a few words which part of an upload failed."""
    return error.failure if isinstance(error, PendingError) else "upload failed"
