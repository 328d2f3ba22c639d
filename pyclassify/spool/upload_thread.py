"""The thread that delivers a run while it trains."""

import random
import re
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path

from pyclassify.spool import records
from pyclassify.spool.records import Batch
from pyclassify.spool.server import describe_server_error
from pyclassify.spool.uploader import BUSY, MakeVersion, PendingError, Uploader
from pyclassify.spool.writer import open_writer

# Each time, and not the first alone, unless a person asked otherwise: a server may go away again.
warnings.filterwarnings("always", module=re.escape(__name__), append=True)


UPLOAD_SECONDS = 2.0  # seconds between two batches: what a person who watches waits for
MAX_PAUSE_SECONDS = 60.0  # between two tries at a server that is away
REFRESH_TIMEOUT_SECONDS = 5.0  # that a reader waits for the server


class UploadThread(threading.Thread):
    """Delivers what is written, until it is told to finish.

    Args:
        folder: The run's folder.
        tracking_uri: The server, with its credentials.

    Attributes:
        make_version: As a `Uploader` takes it; who registers sets it.
    """

    def __init__(self, folder: Path, tracking_uri: str) -> None:
        super().__init__(name="pyclassify-delivery", daemon=True)
        self.folder, self.tracking_uri = folder, tracking_uri
        self.opened = open_writer(folder)
        self.make_version: MakeVersion | None = None
        self.trouble = ""  # what the server said last, where it took nothing
        self._wanted = threading.Condition()
        self._asked = self._answered = 0
        self._over = False
        self._courier: Uploader | None = None
        self._told = ""
        self._unanswered = 0  # what a reader did not wait for any longer

    def run(self) -> None:
        pause = UPLOAD_SECONDS
        while not self._over:
            asked = self._asked
            self._deliver()
            pause = (
                UPLOAD_SECONDS if self.trouble in ("", BUSY) else min(2 * pause, MAX_PAUSE_SECONDS)
            )
            with self._wanted:
                self._answered = asked
                self._wanted.notify_all()
                if self._asked == asked:
                    self._wanted.wait(pause * random.uniform(0.8, 1.2))

    def _deliver(self) -> None:
        from mlflow import MlflowClient

        try:
            self.opened.flush()
            if self._courier is None:
                self._courier = Uploader(self.folder, MlflowClient(self.tracking_uri))
            self._courier.make_version = self.make_version
            self._courier.deliver()
            if self.trouble and self.trouble != BUSY:
                warnings.warn("the tracking server takes what is logged again", stacklevel=2)
            self._tell_id(self._courier.server_id)
            self.trouble = ""
        except BlockingIOError:
            self.trouble = BUSY
        except Exception as error:  # whatever the server has to say
            words = describe_server_error(error)
            if self.trouble in ("", BUSY):
                warnings.warn(
                    f"the tracking server takes {describe_pending(error)} ({words}); what is "
                    f"logged is kept in {self.folder} and delivered when it does",
                    stacklevel=2,
                )
            self.trouble = words

    def _tell_id(self, server_id: str) -> None:
        if server_id not in (self.folder.name, self._told):
            warnings.warn(
                f"the run {self.folder.name}, which was begun without the tracking server, is "
                f"{server_id} there",
                stacklevel=2,
            )
            self._told = server_id

    def ask(self, seconds: float) -> bool:
        """Have all delivered that is written now; whether it was, within so many seconds."""
        end = time.monotonic() + seconds
        with self._wanted:
            self._asked += 1
            asked = self._asked
            self._wanted.notify_all()
            while self._answered < asked and self.is_alive():
                if not self._wanted.wait(max(0.0, end - time.monotonic())):
                    return False
        return not self.trouble

    def finish(self, seconds: float) -> bool:
        """Deliver what is left, and end; whether nothing is left, within so many seconds."""
        end = time.monotonic() + seconds
        self.opened.sync()
        for pause in (0.0, 1.0, 3.0):  # it may be starting again just now
            time.sleep(min(pause, max(0.0, end - time.monotonic())))
            if done := self.ask(end - time.monotonic()):
                break
        with self._wanted:
            self._over = True
            self._wanted.notify_all()
        return done and (self.opened.flush() or self._deliver_unwritten())

    def _deliver_unwritten(self) -> bool:
        batch = Batch()
        for record in self.opened.waiting():
            batch.add(record)
        try:
            if self._courier is not None:
                self._courier.send(batch)
                return True
        except Exception as error:  # whatever the server has to say
            self.trouble = describe_server_error(error)
        return False

    def unsent(self) -> tuple[int, list[str]]:
        """What the server may not have: the bytes of the run's records, and files that wait."""
        if self._courier is None:
            return records.count_bytes(self.folder), []
        size = records.count_bytes(self.folder) - sum(self._courier.places.values())
        return size, [*self._courier.uploads.waiting]

    def clear(self, for_good: bool) -> None:
        """Remove the copies of files, once all is delivered.

        Args:
            for_good: Whether the run is over, so that `pyclassify sync` may pass it over.
        """
        if self._courier is None:
            return
        with suppress(OSError):  # another process delivers, and will do so
            size = records.count_bytes(self.folder)
            self._courier.clear()
            if for_good and self._courier.is_done():
                self._courier.set_done(size)

    def refresh(self) -> None:
        """Learn what others have said of the run: a person its description, say."""
        if self.trouble or threading.current_thread() is self or self._unanswered > self._answered:
            return
        if not self.ask(REFRESH_TIMEOUT_SECONDS):
            self._unanswered = self._asked
            return
        courier = self._courier
        if courier is None or not courier.server_id:
            return
        try:
            run = courier.client.get_run(courier.server_id)
        except Exception:  # it went away this moment: the mirror is as good as it gets
            return
        mirror = self.opened.mirror
        mirror.tags, mirror.params = dict(run.data.tags), dict(run.data.params)
        mirror.info["experiment_id"] = run.info.experiment_id  # a name before it is known

    @property
    def server_id(self) -> str:
        """The run's id at the server; empty before it is known."""
        return str(self._courier.server_id) if self._courier else ""


def describe_pending(error: BaseException) -> str:
    """Name what a delivery that failed could not deliver."""
    return error.what if isinstance(error, PendingError) else "nothing"
