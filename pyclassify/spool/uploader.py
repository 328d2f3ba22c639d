"""What a spool holds, told to the server: in order, in batches, and again until it has all."""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyclassify.spool import records
from pyclassify.spool.records import Batch, Record, read_batches
from pyclassify.spool.server import RejectedRecords, Sender, open_artifacts

BUSY = "another process delivers this run"
SPOOL_TAG = "pyclassify.spool"
# Spent on files that can't be stored: each may take a timeout, and what is logged has to go on.
_PATIENCE = 10.0  # seconds


# Makes a version of a registered model of a run, and says what became of it.
MakeVersion = Callable[[Any, str, Record], str]


class Uploader:
    """Delivers one run's spool.

    Args:
        folder: The run's folder.
        client: An `MlflowClient` of the server.
        make_version: Given the client, the run's id at the server and a record of the kind
            `version`; without it such a record waits for another courier.
    """

    def __init__(
        self,
        folder: Path,
        client: Any,
        make_version: MakeVersion | None = None,
    ) -> None:
        self.folder, self.client, self.make_version = folder, client, make_version
        self.known = records.load_json(folder / records.SPOOL_FILE)
        self.run_id = folder.name
        # For each file: a process that is about to end may write while the next one does already.
        self.places: dict[int, int] = {}
        self._refusals = RejectedRecords(folder)
        known_there = "" if self.known["made_here"] else self.run_id
        self._sender = Sender(client, known_there, self._refusals)
        self.uploads = PendingUploads(self._sender.offer)
        self.told: list[str] = []  # what there is to say of versions that were made
        self._look()

    @property
    def server_id(self) -> str:
        """The run's id at the server, empty until it is known."""
        return self._sender.run_id

    def _look(self) -> None:
        """See how far the server has all; another process may have delivered since."""
        with suppress(FileNotFoundError):
            known = records.load_json(self.folder / "delivered.json")
            for number, offset in known["places"].items():
                self.places[int(number)] = max(offset, self.places.get(int(number), 0))
            self._sender.run_id = self.server_id or known["run_id"]
            self.uploads.waiting = known.get("waiting", {})

    def is_done(self) -> bool:
        """Whether nothing is left to deliver."""
        if not self.server_id or self.uploads.waiting:
            return False
        return next(read_batches(self.folder, self.places), None) is None

    def deliver(self, tell: Callable[[int], None] = lambda count: None) -> int:
        """Deliver all that is there.

        Args:
            tell: Called after each batch with the number of records delivered so far.

        Returns:
            How many records that were.

        Raises:
            mlflow.exceptions.MlflowException: The server does not answer, or refuses.
            BlockingIOError: Another process delivers them now.
            WaitingError: Files can't be stored, or no version made; all else is delivered.
            OSError: The folder can't be read.
        """
        with exclusive_upload(self.folder):
            self._look()
            self.uploads.begin()
            if not self.server_id:
                self._make_run()
            count = 0
            for batch in read_batches(self.folder, self.places):
                self._send(batch)
                self._note(batch.places)
                count += batch.count
                tell(count)
            if self.uploads.waiting:
                self.uploads.send(self._stores)
                self._note({})
                self.uploads.check()
            return count

    def send(self, batch: Batch) -> None:
        """Deliver records that are in no file, since the disk is full.

        Raises:
            mlflow.exceptions.MlflowException: The server does not answer, or refuses.
            WaitingError: Files can't be stored, or no version made.
        """
        if not self.server_id:
            self._make_run()
        self.uploads.begin()
        self._send(batch)
        self.uploads.check()

    def clear(self) -> None:
        """Remove the copies of files, once all is delivered; the records tell what there was.

        Raises:
            BlockingIOError: Another process delivers.
            OSError: They can't be removed.
        """
        with exclusive_upload(self.folder):
            self._look()
            if self.is_done():
                shutil.rmtree(self.folder / "artifacts")
                (self.folder / "artifacts").mkdir(mode=0o700)

    def set_done(self, size: int) -> None:
        """Have `pyclassify sync` pass the spool over, as long as no more is written.

        Args:
            size: How many bytes its records had before it was seen that all are delivered.
        """
        (self.folder / records.DONE_FILE).write_text(f"{size}\n")

    def _note(self, places: dict[int, int]) -> None:
        places = {**self.places, **places}
        content = {
            "run_id": self.server_id,
            "places": places,
            "waiting": self.uploads.waiting,
        }
        with suppress(OSError):  # a full disk; what is delivered twice is there once
            records.save_json(self.folder / "delivered.json", content)
            self.places = places

    def _make_run(self) -> None:
        """Make the run that no server was asked about, or find it where that was done before."""
        info, tags = self.known["info"], {**self.known["tags"], SPOOL_TAG: self.run_id}
        experiment_id = info["experiment_id"]
        if experiment_id.startswith("name:"):
            name = experiment_id.removeprefix("name:")
            found = self.client.get_experiment_by_name(name)
            experiment_id = found.experiment_id if found else self.client.create_experiment(name)
        made = self.client.search_runs([experiment_id], f"tags.`{SPOOL_TAG}` = '{self.run_id}'")
        run = (
            made[0]
            if made
            else self.client.create_run(
                experiment_id, start_time=info["start_time"], tags=tags, run_name=info["run_name"]
            )
        )
        self._sender.run_id = run.info.run_id
        self._note({})

    def _send(self, batch: Batch) -> None:
        self._sender.send(batch)
        self.uploads.waiting |= {**batch.artifacts, **batch.versions}
        self.uploads.send(self._stores)
        if batch.status:
            self._sender.set_status(batch.status)
        for words in batch.damaged:
            self._refusals.add({"kind": "damaged"}, words)

    def _upload(self, record: Record) -> None:
        path = self.folder / "artifacts" / record["path"]
        if path.is_file():
            _upload_file(self.client, self._sender.home.artifact_uri, path, record["path"])
        else:
            self._refusals.add(record, f"{path} is gone")

    @property
    def _stores(self) -> dict[str, Callable[[Record], None]]:
        """What stores the records of each kind that do not go to the server itself."""
        if (make := self.make_version) is None:
            return {"artifact": self._upload}

        def make_version(record: Record) -> None:
            if lost := self._refusals.find(record["path"]):
                self._refusals.add(record, f"the model lacks {lost}, which was not stored")
            else:
                self.told.append(make(self.client, self.server_id, record))

        return {"artifact": self._upload, "version": make_version}


@contextmanager
def exclusive_upload(folder: Path) -> Iterator[None]:
    """Within this context no other process delivers a spool.

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


class PendingError(OSError):
    """Files can't be stored or a version can't be made at the moment; all else was delivered.

    Args:
        what: What is not taken: "no file", or "no version".
        words: Why.
    """

    def __init__(self, what: str, words: str) -> None:
        super().__init__(words)
        self.what = what


class PendingUploads:
    """What is not stored yet; one thing that can't be holds nothing up but versions made of it.

    Args:
        offer: Sends a record by the function that follows it, or sets it aside for good.

    Attributes:
        waiting: The records of what could not be stored yet, files by their paths.
    """

    def __init__(self, offer: Callable[..., None]) -> None:
        self._offer = offer
        self.waiting: dict[str, Record] = {}
        self.begin()

    def begin(self) -> None:
        """Have patience again, and try anew what could not be stored."""
        self._failed: dict[str, Exception] = {}
        self._spent = 0.0

    def send(self, send: Mapping[str, Callable[[Record], None]]) -> None:
        """Store what can be, each thing once a turn: all files, then versions of a model.

        Args:
            send: What stores a record of each kind, in order; those of other kinds wait.
        """
        for kind in send:
            for key, record in [*self.waiting.items()]:
                if record["kind"] == kind and key not in self._failed and self._spent < _PATIENCE:
                    self._try(key, record, send[kind])
            if any(each["kind"] == "artifact" for each in self.waiting.values()):
                return

    def _try(self, key: str, record: Record, send: Callable[[Record], None]) -> None:
        start = time.monotonic()
        try:
            self._offer(record, send, record)
            del self.waiting[key]
        except Exception as error:  # each kind of store fails in its own way
            self._failed[key] = error
            self._spent += time.monotonic() - start

    def check(self) -> None:
        """Say what can't be stored.

        Raises:
            WaitingError: Something can't.
        """
        for key, error in self._failed.items():
            what = "no file" if self.waiting[key]["kind"] == "artifact" else "no version"
            raise PendingError(what, f"{key}: {error}") from error


def _upload_file(client: Any, artifact_uri: str, path: Path, name: str) -> None:
    """Store a file of a run.

    Args:
        client: An `MlflowClient` of the server.
        artifact_uri: Where the run's files are.
        path: The file.
        name: Its path in the run.
    """
    parent = Path(name).parent.as_posix()
    files = open_artifacts(client, artifact_uri)
    files.log_artifact(str(path), None if parent == "." else parent)
