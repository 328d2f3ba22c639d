"""A spool as MLflow's tracking and artifact store, so that any code can log to it through MLflow.

Its URI is `spool:///ROOT`, as MLFLOW_TRACKING_URI of a process or the URI of one `MlflowClient`.
"""

import os
import shutil
import threading
import time
import uuid
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    ExperimentTag,
    FileInfo,
    InputTag,
    LifecycleStage,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.artifact_repo import ArtifactRepository, verify_artifact_path
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking.abstract_store import AbstractStore

from pyclassify.spool import records
from pyclassify.spool.database import register_databases
from pyclassify.spool.records import create_spool
from pyclassify.spool.writer import RunState, RunWriter, list_open_runs, open_writer

_CHUNK_BYTES = 1 << 20


def parse_spool_uri(uri: str) -> Path:
    """Parse the URI of a spool to its folder.

    Raises:
        MlflowException: The URI has no absolute path.
    """
    parts = urlsplit(uri)
    if parts.netloc or not parts.path.startswith("/"):
        raise MlflowException(
            f"invalid spool URI: {uri} (expected an absolute path: spool:///FOLDER)",
            INVALID_PARAMETER_VALUE,
        )
    return Path(unquote(parts.path))


class SpoolStore(AbstractStore):
    """A tracking store that writes runs to a folder of spools, which are uploaded later.

    Args:
        store_uri: `spool:///ROOT`.
        artifact_uri: Not used.
    """

    def __init__(self, store_uri: str, artifact_uri: str | None = None) -> None:
        super().__init__()
        self.root = parse_spool_uri(store_uri)

    def _open_writer(self, run_id: str) -> RunWriter:
        folder = self.root / run_id
        if not records.is_spool(folder):
            raise MlflowException(
                f"run {run_id} does not exist in the spool {self.root}; create the run at the "
                "server by `mlflow run`, on a machine that can reach the server",
                RESOURCE_DOES_NOT_EXIST,
            )
        return open_writer(folder)

    def get_run(self, run_id: str) -> Run:
        writer = self._open_writer(run_id)
        writer.refresh()
        return _make_entity(writer.state)

    def create_run(
        self, experiment_id: str, user_id: str, start_time: int, tags: Any, run_name: str | None
    ) -> Run:
        run_id = uuid.uuid4().hex
        values = {tag.key: tag.value for tag in tags}
        name = run_name or values.get("mlflow.runName") or f"spooled-{run_id[:8]}"
        create_spool(self.root / run_id, str(experiment_id), name, values, start_time)
        return self.get_run(run_id)

    def log_batch(self, run_id: str, metrics: Any, params: Any, tags: Any) -> None:
        writer = self._open_writer(run_id)
        if metrics:
            writer.append_points([[m.key, m.value, m.timestamp, m.step or 0] for m in metrics])
        if params:
            logged = writer.state.params
            for param in params:
                if logged.get(param.key, param.value) != param.value:
                    raise MlflowException(
                        f"parameter {param.key!r} is {logged[param.key]!r} and can't be changed to "
                        f"{param.value!r}: parameters of a run are immutable",
                        INVALID_PARAMETER_VALUE,
                    )
            new = {param.key: str(param.value) for param in params if param.key not in logged}
            if new:
                writer.append({"kind": "params", "values": new})
        if tags:
            values = {tag.key: str(tag.value) for tag in tags}
            writer.append({"kind": "tags", "values": values})

    def log_metric(self, run_id: str, metric: Metric) -> None:
        self.log_batch(run_id, [metric], [], [])

    def log_param(self, run_id: str, param: Param) -> None:
        self.log_batch(run_id, [], [param], [])

    def set_tag(self, run_id: str, tag: RunTag) -> None:
        self.log_batch(run_id, [], [], [tag])

    def delete_tag(self, run_id: str, key: str) -> None:
        self._open_writer(run_id).append({"kind": "tags", "values": {key: None}})

    def log_inputs(self, run_id: str, datasets: Any = None, models: Any = None) -> None:
        if models:
            _raise_unsupported("logging a model as an input")
        if datasets:
            record = {
                "kind": "inputs",
                "datasets": [dataset.to_dictionary() for dataset in datasets],
            }
            self._open_writer(run_id).append(record)

    def update_run_info(
        self, run_id: str, run_status: Any, end_time: int | None, run_name: str | None
    ) -> RunInfo:
        writer = self._open_writer(run_id)
        if run_name:
            writer.append({"kind": "name", "name": run_name})
        if run_status is not None:
            status = RunStatus.to_string(run_status)
            record = {"kind": "status", "status": status, "end_time": end_time}
            writer.append({**record, "time": int(time.time() * 1000)})
        return _make_entity(writer.state).info

    def record_logged_model(self, run_id: str, mlflow_model: Any) -> None:
        """Do nothing: the model's files are among the run's artifacts."""

    def search_logged_models(self, *args: Any, **kwargs: Any) -> PagedList[Any]:
        """Return an empty list; MLflow calls this when it lists a run's artifacts."""
        return PagedList([], None)

    def get_metric_history(
        self, run_id: str, metric_key: str, max_results: Any = None, page_token: Any = None
    ) -> Any:
        writer = self._open_writer(run_id)
        points: list[Metric] = []
        for path in records.list_segments(writer.folder).values():
            for _, record in records.read_records(path):
                if isinstance(record, dict) and record["kind"] == "metrics":
                    points += [Metric(*p) for p in record["points"] if p[0] == metric_key]
        unique = {(point.step, point.timestamp): point for point in points}
        return PagedList([*unique.values()], None)

    def get_experiment(self, experiment_id: str) -> Experiment:
        for state in list_open_runs(self.root):
            if state.info["experiment_id"] == str(experiment_id):
                return _make_experiment(str(experiment_id), **state.experiment)
        return _make_experiment(str(experiment_id), str(experiment_id))

    def set_experiment_tag(self, experiment_id: str, tag: Any) -> None:
        for state in list_open_runs(self.root):
            if state.info["experiment_id"] == str(experiment_id):
                record = {"kind": "experiment_tag", "name": tag.key, "value": tag.value}
                open_writer(state.folder).append(record)
                return
        _raise_unsupported("tagging an experiment without a run in the spool")

    def get_experiment_by_name(self, experiment_name: str) -> Experiment:
        return _make_experiment(f"name:{experiment_name}", experiment_name)

    def create_experiment(self, name: str, artifact_location: Any = None, tags: Any = None) -> str:
        return f"name:{name}"

    def search_experiments(self, *args: Any, **kwargs: Any) -> Any:
        _raise_unsupported("searching experiments")

    def search_runs(self, *args: Any, **kwargs: Any) -> Any:
        _raise_unsupported("searching runs")

    def shut_down_async_logging(self) -> None:
        """Do nothing: records are written to the spool at once."""


def _raise_unsupported(request: str) -> None:
    raise MlflowException(
        f"{request} is not supported by a spool, which has only what this job logged; use the "
        "server to which `pyclassify sync` uploads it",
        INVALID_PARAMETER_VALUE,
    )


def _make_experiment(
    experiment_id: str, name: str, creation_time: int = 0, tags: dict[str, str] | None = None
) -> Experiment:
    entities = [ExperimentTag(*tag) for tag in (tags or {}).items()]
    return Experiment(experiment_id, name, "", LifecycleStage.ACTIVE, entities, creation_time)


def _make_entity(state: RunState) -> Run:
    """Make MLflow's entity of a run from its state."""
    info = state.info
    return Run(
        RunInfo(
            run_id=info["run_id"],
            experiment_id=info["experiment_id"],
            user_id=info.get("user_id") or "unknown",
            status=info["status"],
            start_time=info["start_time"],
            end_time=info["end_time"],
            lifecycle_stage=LifecycleStage.ACTIVE,
            artifact_uri=records.format_spool_uri(state.folder / "artifacts"),
            run_name=info["run_name"],
        ),
        RunData(
            [Metric(*point) for point in state.metrics.values()],
            [Param(*param) for param in state.params.items()],
            [RunTag(*tag) for tag in state.tags.items()],
        ),
        RunInputs([make_dataset_input(record) for record in state.inputs], []),
    )


def make_dataset_input(record: dict[str, Any]) -> DatasetInput:
    """Make MLflow's entity of a dataset input from its dictionary."""
    tags = [InputTag(*tag) for tag in record["tags"].items()]
    return DatasetInput(Dataset(**record["dataset"]), tags)


class SpoolArtifacts(ArtifactRepository):
    """A run's artifacts: each is copied into the spool before its record is written.

    Args:
        artifact_uri: `spool:///ROOT/<run_id>/artifacts`.
    """

    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(artifact_uri, *args, **kwargs)
        self.folder = parse_spool_uri(artifact_uri)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        verify_artifact_path(artifact_path)
        name = Path(artifact_path or "", Path(local_file).name)
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.folder.parent / f"copy.{os.getpid()}.{threading.get_ident()}"
        try:
            digest, size = _copy(Path(local_file), temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)  # an incomplete copy on a full disk
        record = {"kind": "artifact", "path": name.as_posix(), "size": size, "sha256": digest}
        open_writer(self.folder.parent).append(record)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        for path in sorted(Path(local_dir).rglob("*")):
            if path.is_file():
                inside = path.parent.relative_to(local_dir)
                self.log_artifact(str(path), Path(artifact_path or "", inside).as_posix())

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        folder = self.folder / (path or "")
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        return [
            FileInfo(
                file.relative_to(self.folder).as_posix(),
                file.is_dir(),
                None if file.is_dir() else file.stat().st_size,
            )
            for file in files
        ]

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        shutil.copyfile(self.folder / remote_file_path, local_path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        raise NotImplementedError(
            "deleting artifacts is not supported by a spool; delete them at the server"
        )


def _copy(source: Path, target: Path) -> tuple[str, int]:
    digest, size = sha256(), 0
    with source.open("rb") as original, target.open("wb") as copy:
        while chunk := original.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += copy.write(chunk)
        copy.flush()
        os.fsync(copy.fileno())
    return digest.hexdigest(), size


def register_scheme() -> None:
    """Register the URI scheme `spool` and locked databases with MLflow in this process."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    _tracking_store_registry.register("spool", SpoolStore)
    _artifact_repository_registry.register("spool", SpoolArtifacts)
    register_databases()
