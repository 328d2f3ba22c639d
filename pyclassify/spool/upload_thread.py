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

UPLOAD_SECONDS = 2.0  # between two uploads: how far what a person watches is behind
_MAX_PAUSE_SECONDS = 60.0  # between two attempts at a server that does not answer
REFRESH_TIMEOUT_SECONDS = 5.0  # that a reader waits for the server
_RETRY_PAUSES_SECONDS = (0.0, 1.0, 3.0)  # at the end: the server may be restarting just now

# Each time, not only the first one, unless the user asked otherwise: a server may go away again.
warnings.filterwarnings("always", module=re.escape(__name__), append=True)


class UploadThread(threading.Thread):
    """Uploads what is written, until `finish`.

    Args:
        folder: The run's folder.
        tracking_uri: The server, with its credentials.

    Attributes:
        writer: The run's spool, open for writing.
        make_version: As `Uploader` takes it; the callback that registers models sets it.
        last_error: What the server answered last, where it took nothing, or `BUSY`, where another
            process uploads; empty where all is well.

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
        self._unanswered = 0  # the request for which a reader did not wait any longer

    @property
    def server_id(self) -> str:
        """The run's id at the server; empty before it is known."""
        return str(self._uploader.server_id) if self._uploader else ""

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
        """Upload all that is written now; returns whether that is done in time."""
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
        """Upload what is left, and end the thread; returns whether nothing is left."""
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
        """Find what the server may not have: the bytes of records, and the pending artifacts."""
        size = records.count_bytes(self.folder)
        if self._uploader is None:
            return size, []
        return size - sum(self._uploader.offsets.values()), [*self._uploader.pending.records]

    def remove_copies(self, is_over: bool) -> None:
        """Remove the copies of artifacts, once all is uploaded.

        Args:
            is_over: Whether the run is over, so that `pyclassify sync` may skip it.
        """
        if self._uploader is None:
            return
        with suppress(OSError):  # another process uploads, and will remove them
            size = records.count_bytes(self.folder)
            self._uploader.remove_copies()
            if is_over and self._uploader.is_done():
                self._uploader.mark_done(size)

    def refresh(self) -> None:
        """Read from the server what others wrote to the run, such as a person's description."""
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
        except Exception:  # it went away this moment: what is known here has to do
            return
        state = self.writer.state
        state.tags, state.params = dict(run.data.tags), dict(run.data.params)
        state.info["experiment_id"] = run.info.experiment_id  # a name before it is known

    def _upload(self) -> None:
        from mlflow import MlflowClient

        try:
            self.writer.flush()
            if self._uploader is None:
                self._uploader = Uploader(self.folder, MlflowClient(self.tracking_uri))
            self._uploader.make_version = self.make_version
            self._uploader.upload()
            if self.last_error and self.last_error != BUSY:
                warnings.warn("the tracking server takes what is logged again", stacklevel=2)
            self._report_id(self._uploader.server_id)
            self.last_error = ""
        except BlockingIOError:
            self.last_error = BUSY
        except Exception as error:  # whatever the server answers
            message = describe_server_error(error)
            if self.last_error in ("", BUSY):
                warnings.warn(
                    f"the tracking server takes {describe_accepted(error)} ({message}); what is "
                    f"logged is kept in {self.folder} and delivered when it does",
                    stacklevel=2,
                )
            self.last_error = message

    def _report_id(self, server_id: str) -> None:
        if server_id not in (self.folder.name, self._reported_id):
            warnings.warn(
                f"the run {self.folder.name}, which was begun without the tracking server, is "
                f"{server_id} there",
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
        except Exception as error:  # whatever the server answers
            self.last_error = describe_server_error(error)
        return False


def describe_accepted(error: BaseException) -> str:
    """Name what the server takes in spite of an error: "nothing", "no file" or "no version"."""
    return error.kind if isinstance(error, PendingError) else "nothing"
