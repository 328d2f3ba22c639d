"""Send a run's records to the tracking server, and tell temporary errors from permanent ones.

A record with a permanent error, such as an invalid name, is rejected: it goes to `rejected.records`
in the run's folder (quarantine), and the rest of the run is uploaded. All other errors are retried.
"""

import json
import re
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.spool.records import FINAL_STATUSES, MAX_POINTS, REJECTED_FILE, Batch, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo

MAX_TAGS = 100  # MLflow's limit for a batch of tags or parameters
# MLflow's codes of an invalid request, and the HTTP status codes by which a proxy rejects one.
_INVALID_CODES = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")
_REJECTED_STATUSES = (400, 413, 414, 422)
# SQLAlchemy ends a message with the address of its page about the kind of error; 9h9h is its
# DataError: invalid values, for which a retry is useless.
_FAILING_DATABASE = re.compile(r"https://sqlalche\.me/e/\d+/(?!9h9h)")


class RejectedRecords:
    """The records of a run that the server has permanently rejected (quarantine).

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._run_id, self._file = folder.name, folder / REJECTED_FILE

    def add(self, record: Record, message: str, warn: bool = True) -> None:
        """Add a record, and warn that it is not uploaded, unless `warn` is False."""
        with self._file.open("a") as file:
            file.write(json.dumps({**record, "message": message}) + "\n")
        if not warn:
            return
        warnings.warn(
            f"{self._run_id}: a record was rejected and is not uploaded: {message} (saved in "
            f"{self._file})",
            stacklevel=2,
        )

    def find_file(self, record: Record) -> str:
        """Find a rejected file of a model; empty if there is none.

        Args:
            record: The record of the model's status or version: it has the `model`, or the `path`
                of its folder in the run.
        """
        try:
            rejected = map(json.loads, self._file.read_text().splitlines())
        except FileNotFoundError:
            return ""
        model, folder = record.get("model"), f"{record.get('path')}/"
        paths = (
            str(other["path"])
            for other in rejected
            if other["kind"] == "artifact" and other.get("model") == model
        )
        return next((path for path in paths if model or path.startswith(folder)), "")


class Sender:
    """Sends a run's records to the server, and quarantines those that it permanently rejects.

    Args:
        client: A client of the server.
        run_id: The run's ID there; empty until it is known.
        rejected: Gets the rejected records.
    """

    def __init__(self, client: "MlflowClient", run_id: str, rejected: RejectedRecords) -> None:
        self.client, self.run_id, self.rejected = client, run_id, rejected

    @cached_property
    def run_info(self) -> "RunInfo":
        """The run's info, read once: its experiment and artifact URI don't change."""
        return self.client.get_run(self.run_id).info

    def send(self, batch: Batch) -> None:
        """Send a batch, except its artifacts, its versions and its status.

        Raises:
            mlflow.exceptions.MlflowException: The server does not respond, or the run is deleted.
        """
        self._log(batch)
        if batch.name:
            self.send_or_reject({"kind": "name", "name": batch.name}, self._rename, batch.name)
        if batch.inputs:
            record = {"kind": "inputs", "datasets": batch.inputs}
            self.send_or_reject(record, self._log_inputs, batch.inputs)
        for name, value in batch.experiment_tags.items():
            record = {"kind": "experiment_tag", "name": name}
            self.send_or_reject(record, self._tag_experiment, name, value)

    def send_or_reject(self, record: Record, send: Callable[..., None], *args: Any) -> None:
        """Send a record by a function, and quarantine it if the server permanently rejects it."""
        try:
            send(*args)
        except Exception as error:
            self._raise_unless_permanent(error)
            self.rejected.add(record, str(error))

    def send_bisecting(
        self, items: list[Any], send: Callable[[list[Any]], None], record: Record
    ) -> None:
        """Send items together; if the server rejects them, bisect them down to the invalid item.

        Args:
            items: MLflow's entities, or values of JSON.
            send: Sends some of them.
            record: The record of an invalid item, without the item.
        """
        try:
            send(items)
        except Exception as error:
            self._raise_unless_permanent(error)
            if len(items) == 1:
                item = items[0]
                fields = {"item": item} if isinstance(item, list | tuple) else dict(item)
                self.rejected.add({**record, **fields}, str(error))
                return
            half = len(items) // 2
            self.send_bisecting(items[:half], send, record)
            self.send_bisecting(items[half:], send, record)

    def set_status(self, record: Record) -> None:
        """Set the run's status, unless a final status was set later."""
        info = self.client.get_run(self.run_id).info
        if info.status in FINAL_STATUSES and (info.end_time or 0) > record["time"]:
            return
        if record["status"] in FINAL_STATUSES:
            self.client.set_terminated(self.run_id, record["status"], record["end_time"])
        elif info.status != record["status"]:
            self.client.update_run(self.run_id, status=record["status"])

    def _log(self, batch: Batch) -> None:
        from mlflow.entities import Metric, Param, RunTag

        params = [Param(*param) for param in batch.params.items()]
        tags = [RunTag(name, value) for name, value in batch.tags.items() if value is not None]
        for kind, entities in (("params", params), ("tags", tags)):
            for start in range(0, len(entities), MAX_TAGS):
                self._log_entities(kind, entities[start : start + MAX_TAGS])
        for start in range(0, len(batch.points), MAX_POINTS):
            points = batch.points[start : start + MAX_POINTS]
            self._log_entities("metrics", [Metric(*point) for point in points])
        for name in (name for name, value in batch.tags.items() if value is None):
            self._delete_tag(name)

    def _log_entities(self, kind: str, entities: list[Any]) -> None:
        def log(part: list[Any]) -> None:
            self.client.log_batch(self.run_id, **{kind: part}, synchronous=True)

        self.send_bisecting(entities, log, {"kind": kind})

    def _raise_unless_permanent(self, error: Exception) -> None:
        """Raise a temporary error, such as that of a deleted run, which can be restored."""
        from mlflow.exceptions import MlflowException

        if not is_permanent(error):
            raise error
        if self.client.get_run(self.run_id).info.lifecycle_stage == "deleted":
            raise MlflowException(
                f"the run {self.run_id} is deleted at the server; restore it by `mlflow runs "
                f"restore --run-id {self.run_id}`"
            ) from error

    def _delete_tag(self, name: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.client.delete_tag(self.run_id, name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.client.get_run(self.run_id)  # raises if it is the run that does not exist

    def _rename(self, name: str) -> None:
        self.client.update_run(self.run_id, name=name)

    def _log_inputs(self, datasets: list[Any]) -> None:
        from pyclassify.spool.store import make_dataset_input

        self.client.log_inputs(self.run_id, [make_dataset_input(dataset) for dataset in datasets])

    def _tag_experiment(self, name: str, value: str) -> None:
        from mlflow.exceptions import MlflowException

        experiment_id = self.run_info.experiment_id
        if name in self.client.get_experiment(experiment_id).tags:
            return
        try:
            self.client.set_experiment_tag(experiment_id, name, value)
        except MlflowException as error:
            if error.error_code not in ("PERMISSION_DENIED", *_INVALID_CODES):
                raise
            # A user who may write runs need not have permission to change the experiment; and after
            # a failure of the database the next run writes the tag.
            self.rejected.add({"kind": "experiment_tag", "name": name}, str(error))


def open_artifacts(client: "MlflowClient", artifact_uri: str) -> Any:
    """Open the repository of a run's artifacts, MLflow's `ArtifactRepository`.

    The client's own methods cache a repository for each run ID: in a process that writes the run to
    a spool, they would return the spool for the server too.

    Args:
        client: A client of the run's server.
        artifact_uri: The run's artifact URI.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(artifact_uri, tracking_uri=client.tracking_uri)


def is_permanent(error: Exception) -> bool:
    """Whether an error is permanent: the server rejects the record, and a retry is useless."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        message = str(error)
        is_rejected = error.error_code in _INVALID_CODES and not _is_database_failing(message)
        # A proxy's own page has none of MLflow's error codes.
        return is_rejected or "failed with error code 413" in message
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in _REJECTED_STATUSES


def _is_database_failing(message: str) -> bool:
    """Whether the database failed temporarily, and the values are valid.

    MLflow responds with BAD_REQUEST to both: also if the database is read-only for a while, has
    closed the connection, or has fewer connections than there are concurrent requests.
    """
    return _FAILING_DATABASE.search(message) is not None
