"""Create a run's logged models at the tracking server, each of them once, and map their IDs.

A model has an ID of the spool until the server, which alone assigns IDs, creates it. The tag
`MODEL_TAG` names the former, so that a second upload finds the model. Its files are stored before
its status is READY; if one of them is lost or rejected, the status is FAILED.

A server of MLflow 2 has no logged models: the files become artifacts of the run, in the folder
`model`, where `mlflow.pyfunc.log_model` of MLflow 2 stores them.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.spool import records
from pyclassify.spool.records import MAX_POINTS, REASON_TAG, Batch, Record
from pyclassify.spool.server import MAX_TAGS, Sender, open_artifacts
from pyclassify.spool.store_errors import lacks_logged_models

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

MODEL_TAG = "pyclassify.model"  # of a model at the server: its ID in the spool
FALLBACK_FOLDER = "model"  # of a run's artifacts
_MODEL_FILE = "MLmodel"
_UNFINISHED = "the run ended before the model was complete"


class ModelSender:
    """Sends the records of a run's logged models.

    Args:
        folder: The run's folder.
        sender: Sends the run's other records.

    Attributes:
        models: What is known of each model at the server, by its ID in the spool: `id`, `location`
            and, once it is set, `status`. The ID is empty if the server has rejected the model; the
            location is then missing, or in the artifacts of the run.
    """

    def __init__(self, folder: Path, sender: Sender) -> None:
        self.folder, self._sender = folder, sender
        self._client, self._rejected = sender.client, sender.rejected
        self.models: dict[str, dict[str, str]] = {}

    def get_id(self, model: str) -> str:
        """Return a model's ID at the server; empty if it is rejected, or not created yet."""
        return self.models.get(model, {}).get("id", "")

    def map_id(self, model: str) -> str:
        """Map an ID to the server's; a model that is not of this spool has the server's already.

        Returns:
            The ID; empty if the server has rejected the model.
        """
        return self.get_id(model) if model in self.models else model

    def send(self, batch: Batch) -> None:
        """Send a batch's models, except their files, their statuses and their versions.

        Raises:
            mlflow.exceptions.MlflowException: The server does not respond, or the run is deleted.
        """
        for model, record in batch.models.items():
            if model not in self.models:
                self._sender.send_or_reject(record, self._create_or_locate, record)
                self.models.setdefault(model, {"id": ""})
        for kind, log, updates in (
            ("params", self._log_params, batch.model_params),
            ("tags", self._set_tags, batch.model_tags),
        ):
            for model in {**batch.models, **updates}:
                values = {**batch.models.get(model, {}).get(kind, {}), **updates.get(model, {})}
                record = {"kind": f"model_{kind}", "model": model}
                if values and not self._reject_of_rejected({**record, "values": values}):
                    self._sender.send_or_reject(record, log, model, values)
        if batch.outputs:
            record = {"kind": "outputs", "models": batch.outputs}
            self._sender.send_or_reject(record, self._log_outputs, batch.outputs)
        points = [[self.map_id(point[0]), *point[1:]] for point in batch.model_points]
        points = [point for point in points if point[0]]
        for start in range(0, len(points), MAX_POINTS):
            self._log_points(points[start : start + MAX_POINTS])

    def upload_file(self, record: Record) -> None:
        """Upload a file of a model; in MLmodel, replace IDs and locations by the server's."""
        location = self.models.get(record["model"], {}).get("location", "")
        if not location and self._reject_of_rejected(record):
            return
        artifacts = open_artifacts(self._client, location)
        path, name = records.get_file(self.folder, record), Path(record["path"])
        parent = None if name.parent == Path() else name.parent.as_posix()
        if not path.is_file():
            # The copies are removed after the upload, which may be repeated.
            if name.as_posix() not in [file.path for file in artifacts.list_artifacts(parent)]:
                self._rejected.add(record, f"{path} does not exist any more")
        elif record["path"] == _MODEL_FILE:
            with tempfile.TemporaryDirectory() as temporary:
                rewritten = Path(temporary, _MODEL_FILE)
                rewritten.write_bytes(self._rewrite(path.read_bytes(), record["model"]))
                artifacts.log_artifact(str(rewritten), None)
        else:
            artifacts.log_artifact(str(path), parent)

    def set_status(self, record: Record) -> None:
        """Set a model's status: FAILED in place of READY if one of its files is lost."""
        if self._reject_of_rejected(record):
            return
        model, status = record["model"], record["status"]
        lost = self._rejected.find_file(record)
        if lost and status == "READY":
            self._fail(model, f"the model lacks {lost}, which could not be stored")
            return
        if status == "READY" and self.models[model].get("status") == "FAILED":
            self._set_tags(model, {REASON_TAG: None})  # its run had ended meanwhile
        self._finalize(model, status)

    def fail_pending(self, has_status: Mapping[str, Record]) -> None:
        """Make the models FAILED that have no status when their run ends.

        Args:
            has_status: Records of statuses that wait for files, by any key.
        """
        from mlflow.exceptions import MlflowException

        waiting = [r["model"] for r in has_status.values() if r["kind"] == "model_status"]
        for model, known in self.models.items():
            if not known["id"] or "status" in known or model in waiting:
                continue
            try:
                status = self._client.get_logged_model(known["id"]).status.value
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                status = "DELETED"
            if status == "PENDING":
                self._fail(model, _UNFINISHED)
            else:
                known["status"] = status

    def remove_copies(self) -> None:
        """Remove the copies of all files, except those of models that the server does not have.

        It has rejected them, or one of their files.
        """
        for model in self.models:
            folder = self.folder / records.MODELS_FOLDER / model
            has_location = bool(self.models[model].get("location"))
            is_stored = has_location and not self._rejected.find_file({"model": model})
            if is_stored and folder.is_dir():
                shutil.rmtree(folder)
                folder.mkdir()  # by which the store finds the model's run

    def _create_or_locate(self, record: Record) -> None:
        """Create a model; choose a folder of the run for its files if the server has no models."""
        from mlflow.exceptions import MlflowException

        try:
            self._create(record)
        except MlflowException as error:
            cause, is_trained = error.__cause__, record["name"] == records.MODEL_NAME
            if is_trained and cause is not None and lacks_logged_models(cause):
                location = f"{self._sender.run_info.artifact_uri}/{FALLBACK_FOLDER}"
                self.models[record["model"]] = {"id": "", "location": location}
            raise

    def _create(self, record: Record) -> None:
        """Create a model, or find it if it was created before."""
        with _translated_errors():
            found = self._search(record["model"])
            if not found:
                made = self._client.create_logged_model(
                    self._sender.run_info.experiment_id,
                    name=record["name"],
                    source_run_id=self._sender.run_id,
                    tags={MODEL_TAG: record["model"]},
                    model_type=record["type"],
                )
                # MLflow repeats a request that the server has executed, if the response is lost.
                found = self._search(record["model"]) or [made]
            first, *others = found
            for other in others:
                self._client.delete_logged_model(other.model_id)
        known = {"id": str(first.model_id), "location": str(first.artifact_location)}
        self.models[record["model"]] = known

    def _search(self, model: str) -> list["LoggedModel"]:
        """Search the models at the server by the tag, the first that was created first."""
        found = self._client.search_logged_models(
            [self._sender.run_info.experiment_id], filter_string=f"tags.`{MODEL_TAG}` = '{model}'"
        )
        return sorted(found, key=lambda model: (model.creation_timestamp, model.model_id))

    def _log_params(self, model: str, values: Mapping[str, str]) -> None:
        model_id = self.models[model]["id"]
        with _translated_errors():
            logged = self._client.get_logged_model(model_id).params

        def log(items: list[tuple[str, str]]) -> None:
            with _translated_errors():
                self._client.log_model_params(model_id, dict(items))

        record = {"kind": "model_params", "model": model}
        new = [item for item in values.items() if item[0] not in logged]
        for start in range(0, len(new), MAX_TAGS):
            self._sender.send_bisecting(new[start : start + MAX_TAGS], log, record)

    def _set_tags(self, model: str, values: Mapping[str, str | None]) -> None:
        from mlflow.exceptions import MlflowException

        model_id = self.models[model]["id"]

        def log(items: list[tuple[str, str]]) -> None:
            with _translated_errors():
                self._client.set_logged_model_tags(model_id, dict(items))

        record = {"kind": "model_tags", "model": model}
        tags = [(name, value) for name, value in values.items() if value is not None]
        for start in range(0, len(tags), MAX_TAGS):
            self._sender.send_bisecting(tags[start : start + MAX_TAGS], log, record)
        for name in (name for name, value in values.items() if value is None):
            try:
                self._client.delete_logged_model_tag(model_id, name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise

    def _log_outputs(self, models: list[list[Any]]) -> None:
        """Log the models that the run has produced, those of them that the run does not have."""
        from mlflow.entities import LoggedModelOutput

        outputs = self._client.get_run(self._sender.run_id).outputs
        logged = {output.model_id for output in outputs.model_outputs} if outputs else set()
        steps = {self.map_id(model): step for model, step in models}
        new = [
            LoggedModelOutput(model, step)
            for model, step in steps.items()
            if model and model not in logged
        ]
        if new:
            with _translated_errors():
                self._client.log_outputs(self._sender.run_id, new)

    def _log_points(self, points: list[list[Any]]) -> None:
        from mlflow.entities import Metric

        def log(items: list[list[Any]]) -> None:
            metrics = [
                Metric(name, value, time, step, model, dataset, digest, self._sender.run_id)
                for model, name, value, time, step, dataset, digest in items
            ]
            self._client.log_batch(self._sender.run_id, metrics=metrics, synchronous=True)

        self._sender.send_bisecting(points, log, {"kind": "model_metrics"})

    def _reject_of_rejected(self, record: Record) -> bool:
        """Reject a record without a warning if its model is rejected; return whether it is."""
        if self.get_id(record["model"]):
            return False
        self._rejected.add(record, f"the model {record['model']} is rejected", warn=False)
        return True

    def _fail(self, model: str, reason: str) -> None:
        with _translated_errors():
            self._client.set_logged_model_tags(self.models[model]["id"], {REASON_TAG: reason})
        self._finalize(model, "FAILED")

    def _finalize(self, model: str, status: str) -> None:
        from mlflow.entities import LoggedModelStatus

        with _translated_errors():
            model_id = self.models[model]["id"]
            self._client.finalize_logged_model(model_id, LoggedModelStatus(status))
        self.models[model]["status"] = status

    def _rewrite(self, content: bytes, model: str) -> bytes:
        """Replace the spool's IDs and location in the content of an MLmodel."""
        import yaml  # not at the top: the report of a SLURM job imports only the standard library

        known, location = self.models[model], self.folder / records.MODELS_FOLDER / model
        target = known["location"] if known["id"] else FALLBACK_FOLDER
        replaced = {
            "artifact_path": {records.format_spool_uri(location): target},
            "model_id": {model: known["id"]},
            "model_uuid": {model: known["id"] or model},
            "run_id": {self.folder.name: self._sender.run_id},
        }
        try:
            fields = yaml.safe_load(content)
        except yaml.YAMLError:
            return content  # not a model of MLflow
        if not isinstance(fields, dict):
            return content
        for name, values in replaced.items():
            if fields.get(name) in values:
                fields[name] = values[fields[name]]
        if not known["id"]:
            fields.pop("model_id", None)
        return yaml.safe_dump(fields, default_flow_style=False, allow_unicode=True).encode()


def fail_pending_models(client: "MlflowClient", run: "Run") -> None:
    """Make the models FAILED that a run has left without a status, if its spool can't be read.

    An upload of the spool that has a status sets it afterwards.

    Args:
        client: The tracking server.
        run: The run, which has ended.
    """
    from mlflow.entities import LoggedModelStatus
    from mlflow.exceptions import MlflowException

    condition = f"source_run_id = '{run.info.run_id}'"
    with suppress(MlflowException, NotImplementedError):  # an older server
        experiment_ids = [str(run.info.experiment_id)]
        for model in client.search_logged_models(experiment_ids, filter_string=condition):
            if model.status == LoggedModelStatus.PENDING:
                client.finalize_logged_model(model.model_id, LoggedModelStatus.FAILED)


@contextmanager
def _translated_errors() -> Iterator[None]:
    """Translate errors that are permanent for a model into the one of an invalid request.

    Raises:
        mlflow.exceptions.MlflowException: The server does not know logged models, the model is
            deleted there, or any other error of the store.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    try:
        yield
    except (MlflowException, NotImplementedError) as error:
        cause: BaseException = error
        # MlflowClient reads a model before it is changed, and calls all errors invalid requests.
        if str(error).startswith("Failed to get logged model") and error.__cause__:
            cause = error.__cause__
        code = getattr(cause, "error_code", "")
        if lacks_logged_models(cause):
            message = (
                "the server does not know logged models, so the network is stored in the run's "
                f"artifacts, in the folder {FALLBACK_FOLDER}; upgrade the server to MLflow 3"
            )
        elif code == "RESOURCE_DOES_NOT_EXIST":
            message = f"the model is deleted at the server ({cause})"
        else:
            raise cause from None
        raise MlflowException(message, INVALID_PARAMETER_VALUE) from cause
