"""What a spool holds, told to the server: in order, in batches, and again until it has all."""

import fcntl
import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from pyclassify.tracking.spool import records
from pyclassify.tracking.spool.batches import POINTS, Batch, read_batches
from pyclassify.tracking.spool.records import FINAL, Record
from pyclassify.tracking.spool.stores import is_database_failing
from pyclassify.tracking.spool.uploads import Uploads, upload

BUSY = "another process delivers this run"
SPOOL_TAG = "pyclassify.spool"
REFUSED = "refused.records"
_TAGS = 100  # MLflow's limit for a batch of tags or parameters

# What the server says of a request that it will never take, and what a proxy says of it.
_INVALID = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")
_REJECTED = (400, 413, 414, 422)

# Makes a version of a registered model of a run, and says what became of it.
MakeVersion = Callable[[Any, str, Record], str]


class Courier:
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
        self.known = records.load(folder / records.SPOOL)
        self.run_id = folder.name
        # For each file: a process that is about to end may write while the next one does already.
        self.places: dict[int, int] = {}
        self.server_id: Any = "" if self.known["made_here"] else self.run_id
        self.uploads = Uploads(self._offer)
        self.told: list[str] = []  # what there is to say of versions that were made
        self._look()

    def _look(self) -> None:
        """See how far the server has all; another process may have delivered since."""
        with suppress(FileNotFoundError):
            known = records.load(self.folder / "delivered.json")
            for number, offset in known["places"].items():
                self.places[int(number)] = max(offset, self.places.get(int(number), 0))
            self.server_id = self.server_id or known["run_id"]
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
        with alone(self.folder):
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
        with alone(self.folder):
            self._look()
            if self.is_done():
                shutil.rmtree(self.folder / "artifacts")
                (self.folder / "artifacts").mkdir(mode=0o700)

    def set_done(self, size: int) -> None:
        """Have `pyclassify sync` pass the spool over, as long as no more is written.

        Args:
            size: How many bytes its records had before it was seen that all are delivered.
        """
        (self.folder / records.DONE).write_text(f"{size}\n")

    @cached_property
    def _home(self) -> Any:
        """The run's info as it was first asked for: its experiment and its files' place stay."""
        return self.client.get_run(self.server_id).info

    def _note(self, places: dict[int, int]) -> None:
        places = {**self.places, **places}
        content = {
            "run_id": self.server_id,
            "places": places,
            "waiting": self.uploads.waiting,
        }
        with suppress(OSError):  # a full disk; what is delivered twice is there once
            records.replace(self.folder / "delivered.json", content)
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
        self.server_id = run.info.run_id
        self._note({})

    def _send(self, batch: Batch) -> None:
        self._log(batch)
        if batch.name:
            self._offer({"kind": "name", "name": batch.name}, self._rename, batch.name)
        if batch.inputs:
            self._offer({"kind": "inputs", "datasets": batch.inputs}, self._input, batch.inputs)
        for name, value in batch.experiment_tags.items():
            self._offer({"kind": "experiment_tag", "name": name}, self._tag_experiment, name, value)
        self.uploads.waiting |= {**batch.artifacts, **batch.versions}
        self.uploads.send(self._stores)
        if batch.status:
            self._set_status(batch.status)
        for words in batch.damaged:
            self._refuse({"kind": "damaged"}, words)

    def _offer(self, record: Record, send: Callable[..., None], *args: Any) -> None:
        """Send something; what the server will never take is set aside, and the rest goes on."""
        try:
            send(*args)
        except Exception as error:
            self._raise_unless_final(error)
            self._refuse(record, str(error))

    def _log(self, batch: Batch) -> None:
        from mlflow.entities import Metric, Param, RunTag

        params = [Param(*each) for each in batch.params.items()]
        tags = [RunTag(name, value) for name, value in batch.tags.items() if value is not None]
        for kind, entities in (("params", params), ("tags", tags)):
            for first in range(0, len(entities), _TAGS):
                self._log_some(kind, entities[first : first + _TAGS])
        for first in range(0, len(batch.points), POINTS):
            some = batch.points[first : first + POINTS]
            self._log_some("metrics", [Metric(*each) for each in some])
        for name in (name for name, value in batch.tags.items() if value is None):
            self._delete_tag(name)

    def _log_some(self, kind: str, entities: list[Any]) -> None:
        """Log a batch; of one that the server refuses, both halves, down to what is wrong."""
        try:
            self.client.log_batch(self.server_id, **{kind: entities}, synchronous=True)
        except Exception as error:
            self._raise_unless_final(error)
            if len(entities) == 1:
                self._refuse({"kind": kind, **dict(entities[0])}, str(error))
                return
            half = len(entities) // 2
            self._log_some(kind, entities[:half])
            self._log_some(kind, entities[half:])

    def _raise_unless_final(self, error: Exception) -> None:
        """Raise an error that may pass: also that of a run that can be brought back."""
        from mlflow.exceptions import MlflowException

        if not is_final(error):
            raise error
        if self.client.get_run(self.server_id).info.lifecycle_stage == "deleted":
            raise MlflowException(
                f"the run {self.server_id} is deleted there; `mlflow runs restore --run-id "
                f"{self.server_id}` brings it back"
            ) from error

    def _delete_tag(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_tag(self.server_id, name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.get_run(self.server_id)  # if it was not the run that does not exist

    def _rename(self, name: str) -> None:
        self.client.update_run(self.server_id, name=name)

    def _input(self, datasets: list[Any]) -> None:
        from pyclassify.tracking.spool.store import to_input

        self.client.log_inputs(self.server_id, [to_input(each) for each in datasets])

    def _tag_experiment(self, name: str, value: str) -> None:
        from mlflow.exceptions import MlflowException

        experiment_id = self._home.experiment_id
        if name in self.client.get_experiment(experiment_id).tags:
            return
        try:
            self.client.set_experiment_tag(experiment_id, name, value)
        except MlflowException as error:
            if error.error_code not in ("PERMISSION_DENIED", *_INVALID):
                raise
            # Who may write runs need not be one who may change what all of them share; and the next
            # run writes what a failing database did not take.
            self._refuse({"kind": "experiment_tag", "name": name}, str(error))

    def _upload(self, record: Record) -> None:
        path = self.folder / "artifacts" / record["path"]
        if path.is_file():
            upload(self.client, self._home.artifact_uri, path, record["path"])
        else:
            self._refuse(record, f"{path} is gone")

    @property
    def _stores(self) -> dict[str, Callable[[Record], None]]:
        """What stores the records of each kind that do not go to the server itself."""
        if (make := self.make_version) is None:
            return {"artifact": self._upload}

        def make_version(record: Record) -> None:
            if lost := self._find_refused(record["path"]):
                self._refuse(record, f"the model lacks {lost}, which was not stored")
            else:
                self.told.append(make(self.client, self.server_id, record))

        return {"artifact": self._upload, "version": make_version}

    def _set_status(self, record: Record) -> None:
        info = self.client.get_run(self.server_id).info
        if info.status in FINAL and (info.end_time or 0) > record["time"]:
            return  # somebody who knows more has said so since
        if record["status"] in FINAL:
            self.client.set_terminated(self.server_id, record["status"], record["end_time"])
        elif info.status != record["status"]:
            self.client.update_run(self.server_id, status=record["status"])

    def _find_refused(self, path: str) -> str:
        """A file of a folder that was set aside; empty where none was."""
        try:
            lines = (self.folder / REFUSED).read_text().splitlines()
        except FileNotFoundError:
            return ""
        names = (str(json.loads(line).get("path", "")) for line in lines)
        return next((name for name in names if name.startswith(f"{path}/")), "")

    def _refuse(self, record: Record, words: str) -> None:
        """Set aside what can't be delivered, and say so."""
        with (self.folder / REFUSED).open("a") as file:
            file.write(json.dumps({**record, "words": words}) + "\n")
        warnings.warn(f"{self.folder.name}: not delivered: {words}", stacklevel=2)


def is_final(error: Exception) -> bool:
    """Whether a server will never take what it answered so."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        words = str(error)
        refused = error.error_code in _INVALID and not is_database_failing(words)
        # A proxy's own page has no code of MLflow's.
        return refused or "failed with error code 413" in words
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in _REJECTED


@contextmanager
def alone(folder: Path) -> Iterator[None]:
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
