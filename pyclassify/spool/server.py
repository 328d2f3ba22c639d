"""A run's records as calls to the tracking server, but for those that go to other stores."""

import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from pyclassify.spool.records import FINAL_STATUSES, MAX_POINTS, Batch, Record
from pyclassify.utils.masking import mask

_TAGS = 100  # MLflow's limit for a batch of tags or parameters
# What MLflow does when a server does not answer; its defaults add up to minutes.
_RETRIES_ENV, _TIMEOUT_ENV = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
TIMEOUTS = {_RETRIES_ENV: "1", _TIMEOUT_ENV: "30"}  # the uploader retries by itself
SHORT_TIMEOUTS = {_RETRIES_ENV: "0", _TIMEOUT_ENV: "8"}
# What the server says of a request that it will never take, and what a proxy says of it.
INVALID_CODES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")
_REJECTED = (400, 413, 414, 422)
# SQLAlchemy ends what it says with the address of its page about the kind of error; 9h9h is its
# DataError, of values that no try will have stored.
_OF_DATABASE = re.compile(r"https://sqlalche\.me/e/\d+/(?!9h9h)")
_DATABASE = re.compile(r"\([\w.]*(?:Error|Exception|psycopg2\.errors\.\w+)\) (.+?) \[SQL: ")
_BUCKET = re.compile(r"Failed to upload .* to ([^/ ]+)/.*: An error occurred \((\w+)\) when")
_ADDRESS = re.compile(r'Could not connect to the endpoint URL: "(\w+://[^/"]+)')
# By the code that S3 answers with: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses
_MISSING = "there is no bucket {}; make it, or give the experiment another artifact location"
_REFUSED = "the bucket {} refuses permission to write; its policy must allow s3:PutObject"
_KEYS = "the bucket {} does not take these keys; see AWS_ACCESS_KEY_ID"
_WORDS = {
    "NoSuchBucket": _MISSING,
    "AccessDenied": _REFUSED,
    "AllAccessDisabled": _REFUSED,
    "403": _REFUSED,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
}


class RejectedRecords:
    """The records of a run that were set aside.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._name, self._file = folder.name, folder / "refused.records"

    def add(self, record: Record, words: str) -> None:
        """Set aside what can't be delivered, and say so."""
        with self._file.open("a") as file:
            file.write(json.dumps({**record, "words": words}) + "\n")
        warnings.warn(f"{self._name}: not delivered: {words}", stacklevel=2)

    def find(self, path: str) -> str:
        """A file of a folder of the run's files that was set aside; empty where none was."""
        try:
            lines = self._file.read_text().splitlines()
        except FileNotFoundError:
            return ""
        names = (str(json.loads(line).get("path", "")) for line in lines)
        return next((name for name in names if name.startswith(f"{path}/")), "")


class Sender:
    """Sends what the server takes; what it never will is set aside, and the rest goes on.

    Args:
        client: An `MlflowClient` of the server.
        run_id: The run's id there; empty until it is known.
        refusals: Where what is refused is set aside.
    """

    def __init__(self, client: Any, run_id: str, refusals: RejectedRecords) -> None:
        self.client, self.run_id, self.refusals = client, run_id, refusals

    @cached_property
    def home(self) -> Any:
        """The run's info as it was first asked for: its experiment and its files' place stay."""
        return self.client.get_run(self.run_id).info

    def send(self, batch: Batch) -> None:
        """Send a batch, all but its files, its versions and its status.

        Raises:
            mlflow.exceptions.MlflowException: The server does not answer, or the run is deleted.
        """
        self._log(batch)
        if batch.name:
            self.offer({"kind": "name", "name": batch.name}, self._rename, batch.name)
        if batch.inputs:
            self.offer({"kind": "inputs", "datasets": batch.inputs}, self._input, batch.inputs)
        for name, value in batch.experiment_tags.items():
            self.offer({"kind": "experiment_tag", "name": name}, self._tag_experiment, name, value)

    def offer(self, record: Record, send: Callable[..., None], *args: Any) -> None:
        """Send a record by a function, or set it aside where that will never be taken."""
        try:
            send(*args)
        except Exception as error:
            self._raise_unless_final(error)
            self.refusals.add(record, str(error))

    def set_status(self, record: Record) -> None:
        """Say that the run has ended, and how, or that it goes on."""
        info = self.client.get_run(self.run_id).info
        if info.status in FINAL_STATUSES and (info.end_time or 0) > record["time"]:
            return  # somebody who knows more has said so since
        if record["status"] in FINAL_STATUSES:
            self.client.set_terminated(self.run_id, record["status"], record["end_time"])
        elif info.status != record["status"]:
            self.client.update_run(self.run_id, status=record["status"])

    def _log(self, batch: Batch) -> None:
        from mlflow.entities import Metric, Param, RunTag

        params = [Param(*each) for each in batch.params.items()]
        tags = [RunTag(name, value) for name, value in batch.tags.items() if value is not None]
        for kind, entities in (("params", params), ("tags", tags)):
            for first in range(0, len(entities), _TAGS):
                self._log_some(kind, entities[first : first + _TAGS])
        for first in range(0, len(batch.points), MAX_POINTS):
            some = batch.points[first : first + MAX_POINTS]
            self._log_some("metrics", [Metric(*each) for each in some])
        for name in (name for name, value in batch.tags.items() if value is None):
            self._delete_tag(name)

    def _log_some(self, kind: str, entities: list[Any]) -> None:
        """Log a batch; of one that the server refuses, both halves, down to what is wrong."""
        try:
            self.client.log_batch(self.run_id, **{kind: entities}, synchronous=True)
        except Exception as error:
            self._raise_unless_final(error)
            if len(entities) == 1:
                self.refusals.add({"kind": kind, **dict(entities[0])}, str(error))
                return
            half = len(entities) // 2
            self._log_some(kind, entities[:half])
            self._log_some(kind, entities[half:])

    def _raise_unless_final(self, error: Exception) -> None:
        """Raise an error that may pass: also that of a run that can be brought back."""
        from mlflow.exceptions import MlflowException

        if not is_permanent(error):
            raise error
        if self.client.get_run(self.run_id).info.lifecycle_stage == "deleted":
            raise MlflowException(
                f"the run {self.run_id} is deleted there; `mlflow runs restore --run-id "
                f"{self.run_id}` brings it back"
            ) from error

    def _delete_tag(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_tag(self.run_id, name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.get_run(self.run_id)  # if it was not the run that does not exist

    def _rename(self, name: str) -> None:
        self.client.update_run(self.run_id, name=name)

    def _input(self, datasets: list[Any]) -> None:
        from pyclassify.spool.store import to_input

        self.client.log_inputs(self.run_id, [to_input(each) for each in datasets])

    def _tag_experiment(self, name: str, value: str) -> None:
        from mlflow.exceptions import MlflowException

        experiment_id = self.home.experiment_id
        if name in self.client.get_experiment(experiment_id).tags:
            return
        try:
            self.client.set_experiment_tag(experiment_id, name, value)
        except MlflowException as error:
            if error.error_code not in ("PERMISSION_DENIED", *INVALID_CODES):
                raise
            # Who may write runs need not be one who may change what all of them share; and the next
            # run writes what a failing database did not take.
            self.refusals.add({"kind": "experiment_tag", "name": name}, str(error))


def configure_mlflow(retries: int | None = None, timeout_seconds: int | None = None) -> None:
    """Set what MLflow reads from the environment in a command, where the user has not set it.

    MLflow shows no progress bar for each artifact.

    Args:
        retries: How often a request is repeated; without it MLflow's default of seven.
        timeout_seconds: How long the server may take to answer; without it MLflow's default.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if retries is not None:
        os.environ.setdefault(_RETRIES_ENV, str(retries))
    if timeout_seconds is not None:
        os.environ.setdefault(_TIMEOUT_ENV, str(timeout_seconds))


def limit_requests() -> None:
    """Have MLflow give up on a server within seconds, unless the user has set how long."""
    for name, value in TIMEOUTS.items():
        os.environ.setdefault(name, value)


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Within this context a server that gives no answer is given up sooner: somebody waits."""
    ours = [name for name, value in TIMEOUTS.items() if os.environ.get(name) == value]
    os.environ.update({name: SHORT_TIMEOUTS[name] for name in ours})
    try:
        yield
    finally:
        os.environ.update({name: TIMEOUTS[name] for name in ours})


def describe_server_error(error: BaseException) -> str:
    """Say in a line what is wrong with the server."""
    text = " ".join(str(error).split())
    if words := describe_store_error(text):
        return mask(words)[:200]
    for told, words in (
        ("Connection refused", "nothing listens there"),
        ("Connection aborted", "it broke off the connection"),
        ("Connection reset", "it broke off the connection"),
        ("Name or service not known", "its name is not known here"),
        ("Temporary failure in name resolution", "its name is not known here"),
        ("No route to host", "there is no route to it"),
        ("Network is unreachable", "there is no route to it"),
        ("timed out", "it does not answer in time"),
        ("PERMISSION_DENIED", "it refuses permission"),
        ("error code 401", "it asks for a user and a password, or for others"),
        ("401 Client Error", "it asks for a user and a password, or for others"),
        ("error code 403", "it refuses permission"),
        ("403 Client Error", "it refuses permission"),
        ("database is locked", "another process has locked the database"),
    ):
        if told in text:
            return words
    if found := re.search(r"too many (\d+) error responses", text):
        return f"it answers with error {found[1]}"
    return mask(text)[:200]


def open_artifacts(client: Any, artifact_uri: str) -> Any:
    """The repository of a run's files, MLflow's `ArtifactRepository`.

    Not by the client's own way, which remembers the repository of a run's id: in a process that
    writes the run to a spool that is the spool, whichever store is asked.

    Args:
        client: An `MlflowClient` of the run's server.
        artifact_uri: The run's.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(artifact_uri, tracking_uri=client.tracking_uri)


def is_permanent(error: Exception) -> bool:
    """Whether a server will never take what it answered so."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        words = str(error)
        refused = error.error_code in INVALID_CODES and not is_database_failing(words)
        # A proxy's own page has no code of MLflow's.
        return refused or "failed with error code 413" in words
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in _REJECTED


def is_database_failing(words: str) -> bool:
    """Whether it is the database that could not do something now, and not the values at fault.

    MLflow answers BAD_REQUEST to both: also where the database is read-only for a while, has
    closed the connection, or has fewer connections than there are requests at once.

    Args:
        words: What the server answered.
    """
    return _OF_DATABASE.search(words) is not None


def describe_store_error(text: str) -> str:
    """Say what is wrong with a database or a bucket.

    Args:
        text: What MLflow said, in one line.

    Returns:
        Nothing where it is about neither.
    """
    if found := _BUCKET.search(text):
        bucket, code = found.groups()
        return _WORDS.get(code, f"the bucket {{}} answers with {code}").format(bucket)
    if found := _ADDRESS.search(text):
        return f"no bucket answers at {found[1]}; see MLFLOW_S3_ENDPOINT_URL"
    if "Unable to locate credentials" in text:
        return "there are no keys for the bucket; give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if found := _DATABASE.search(text):
        return f"its database says: {found[1]}"
    return ""
