"""A spool as MLflow's tracking store, so that any code can log to it through MLflow.

Its URI is `spool:///ROOT`, as MLFLOW_TRACKING_URI of a process or the URI of one `MlflowClient`.
"""

import json
import re
import time
import uuid
from contextlib import suppress
from typing import Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    Experiment,
    ExperimentTag,
    InputTag,
    LifecycleStage,
    LoggedModel,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunData,
    RunInfo,
    RunInputs,
    RunOutputs,
    RunStatus,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST
from mlflow.store.entities.paged_list import PagedList
from mlflow.store.tracking.abstract_store import AbstractStore
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_MODELS
from mlflow.utils.search_utils import SearchLoggedModelsUtils

from pyclassify.spool import records
from pyclassify.spool.artifact_store import SpoolArtifacts, parse_spool_uri
from pyclassify.spool.database import register_databases
from pyclassify.spool.records import create_spool
from pyclassify.spool.writer import RunState, RunWriter, list_open_runs, open_writer

_MODEL_ID = re.compile("m-[0-9a-f]{32}")
# The server rejects a name with one of these, and with it the model.
_INVALID_IN_NAMES = re.compile("""[/:.%"']""")


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
        points = [[m.key, m.value, m.timestamp, m.step or 0] for m in metrics or ()]
        if points:
            writer.append_points(points)
        of_models = [
            [metric.model_id, *point, metric.dataset_name, metric.dataset_digest]
            for metric, point in zip(metrics or (), points, strict=True)
            if metric.model_id
        ]
        if of_models:
            writer.append({"kind": "model_metrics", "points": of_models})
        if new := _select_new_params(params, writer.state.params, "run"):
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
        """Record a model whose files are among the run's artifacts in MLflow's tag of the run."""
        tags = self._open_writer(run_id).state.tags
        models = json.loads(tags.get(MLFLOW_LOGGED_MODELS, "[]"))
        value = json.dumps([*models, mlflow_model.get_tags_dict()])
        self.set_tag(run_id, RunTag(MLFLOW_LOGGED_MODELS, value))

    def create_logged_model(
        self,
        experiment_id: str,
        name: str | None = None,
        source_run_id: str | None = None,
        tags: Any = None,
        params: Any = None,
        model_type: str | None = None,
    ) -> LoggedModel:
        if not source_run_id:
            raise MlflowException(
                "a model without a run is not supported by a spool; start a run first "
                "(mlflow.start_run), or give source_run_id",
                INVALID_PARAMETER_VALUE,
            )
        if name is not None and (not name or _INVALID_IN_NAMES.search(name)):
            raise MlflowException(
                f"invalid model name: {name!r} (expected a name without / : . % and quotes)",
                INVALID_PARAMETER_VALUE,
            )
        writer = self._open_writer(source_run_id)
        model_id = f"m-{uuid.uuid4().hex}"
        record = {
            "kind": "model",
            "model": model_id,
            "name": name or f"spooled-{model_id[2:10]}",
            "type": model_type,
            "params": {param.key: str(param.value) for param in params or ()},
            "tags": {tag.key: str(tag.value) for tag in tags or ()},
            "time": int(time.time() * 1000),
        }
        models = writer.folder / records.MODELS_FOLDER
        with suppress(OSError):  # a full disk: the model's files would raise it
            models.mkdir(mode=0o700, exist_ok=True)
            (models / model_id).mkdir()
        writer.append(record)
        return self.get_logged_model(model_id)

    def get_logged_model(self, model_id: str, allow_deleted: bool = False) -> LoggedModel:
        return _make_logged_model(model_id, self._open_model_writer(model_id).state)

    def search_logged_models(
        self,
        experiment_ids: list[str],
        filter_string: str | None = None,
        datasets: Any = None,
        max_results: int | None = None,
        order_by: Any = None,
        page_token: str | None = None,
    ) -> PagedList[LoggedModel]:
        """Search the models of the runs that are open in this process.

        MLflow calls this after `get_run`, when it lists or downloads a run's artifacts.
        """
        models = [
            _make_logged_model(model_id, state)
            for state in list_open_runs(self.root)
            if state.info["experiment_id"] in map(str, experiment_ids)
            for model_id in state.models
        ]
        models = SearchLoggedModelsUtils.filter_logged_models(models, filter_string, datasets)
        return PagedList(SearchLoggedModelsUtils.sort(models, order_by)[:max_results], None)

    def finalize_logged_model(self, model_id: str, status: LoggedModelStatus) -> LoggedModel:
        writer = self._open_model_writer(model_id)
        writer.append({"kind": "model_status", "model": model_id, "status": status.value})
        return _make_logged_model(model_id, writer.state)

    def log_logged_model_params(self, model_id: str, params: Any) -> None:
        writer = self._open_model_writer(model_id)
        if new := _select_new_params(params, writer.state.models[model_id].params, "model"):
            writer.append({"kind": "model_params", "model": model_id, "values": new})

    def set_logged_model_tags(self, model_id: str, tags: Any) -> None:
        values = {tag.key: str(tag.value) for tag in tags}
        record = {"kind": "model_tags", "model": model_id, "values": values}
        self._open_model_writer(model_id).append(record)

    def delete_logged_model_tag(self, model_id: str, key: str) -> None:
        writer = self._open_model_writer(model_id)
        if key not in writer.state.models[model_id].tags:
            raise MlflowException(
                f"model {model_id} has no tag {key!r}; its tags are: "
                f"{', '.join(writer.state.models[model_id].tags) or 'none'}",
                RESOURCE_DOES_NOT_EXIST,
            )
        writer.append({"kind": "model_tags", "model": model_id, "values": {key: None}})

    def delete_logged_model(self, model_id: str) -> None:
        _raise_unsupported("deleting a model")

    def log_outputs(self, run_id: str, models: list[LoggedModelOutput]) -> None:
        writer = self._open_writer(run_id)
        logged = {model for model, _ in writer.state.outputs}
        if new := [[m.model_id, m.step] for m in models if m.model_id not in logged]:
            writer.append({"kind": "outputs", "models": new})

    def _open_model_writer(self, model_id: str) -> RunWriter:
        """Open the run of a model for writing."""
        for state in list_open_runs(self.root):
            if model_id in state.models:
                return open_writer(state.folder)
        if _MODEL_ID.fullmatch(model_id):
            for folder in self.root.glob(f"*/{records.MODELS_FOLDER}/{model_id}"):
                writer = self._open_writer(folder.parents[1].name)
                if model_id in writer.state.models:
                    return writer
        raise MlflowException(
            f"model {model_id} does not exist in the spool {self.root}; a model of the server has "
            "another ID there",
            RESOURCE_DOES_NOT_EXIST,
        )

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
        RunOutputs([LoggedModelOutput(*output) for output in state.outputs]),
    )


def _make_logged_model(model_id: str, state: RunState) -> LoggedModel:
    """Make MLflow's entity of a logged model from the state of its run."""
    model, run_id = state.models[model_id], state.folder.name
    return LoggedModel(
        experiment_id=str(state.info["experiment_id"]),
        model_id=model_id,
        name=model.name,
        artifact_location=records.format_spool_uri(state.folder / records.MODELS_FOLDER / model_id),
        creation_timestamp=model.time,
        last_updated_timestamp=model.time,
        model_type=model.type,
        source_run_id=run_id,
        status=LoggedModelStatus(model.status),
        tags=dict(model.tags),
        params=dict(model.params),
        metrics=[
            Metric(name, value, time, step, model_id, dataset, digest, run_id)
            for name, value, time, step, dataset, digest in model.points
        ],
    )


def _select_new_params(params: Any, logged: dict[str, str], owner: str) -> dict[str, str]:
    """Select the parameters that are not logged yet.

    Raises:
        MlflowException: One is logged with another value.
    """
    for param in params or ():
        if logged.get(param.key, param.value) != param.value:
            raise MlflowException(
                f"parameter {param.key!r} is {logged[param.key]!r} and can't be changed to "
                f"{param.value!r}: parameters of a {owner} are immutable",
                INVALID_PARAMETER_VALUE,
            )
    return {param.key: str(param.value) for param in params or () if param.key not in logged}


def make_dataset_input(record: dict[str, Any]) -> DatasetInput:
    """Make MLflow's entity of a dataset input from its dictionary."""
    tags = [InputTag(*tag) for tag in record["tags"].items()]
    return DatasetInput(Dataset(**record["dataset"]), tags)


def register_scheme() -> None:
    """Register the URI scheme `spool` and locked databases with MLflow in this process."""
    from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    _tracking_store_registry.register("spool", SpoolStore)
    _artifact_repository_registry.register("spool", SpoolArtifacts)
    register_databases()
