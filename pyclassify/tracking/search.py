"""Find runs by ID or experiment, with errors that name what was searched and what exists."""

import re
from collections.abc import Iterable

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pyclassify.spool.database import find_file, register_databases
from pyclassify.tracking.ui import find_server_address, format_ui_command
from pyclassify.utils.masking import mask
from pyclassify.utils.options import UsageError
from pyclassify.utils.text import join_some, suggest

_MAX_NAMES = 10
# Metrics of which lower values are better.
_LOWER_IS_BETTER = re.compile("loss|error|_ece|seconds|parameters")

_HINT_STORE = "run the command in the folder of the runs, or set MLFLOW_TRACKING_URI"


def open_store(tracking_uri: str | None = None) -> MlflowClient:
    """Open a store.

    Args:
        tracking_uri: The store; by default that of MLFLOW_TRACKING_URI, or mlflow.db in the working
            directory.

    Raises:
        OSError: The store is a database file that does not exist. MLflow would create it.
    """
    uri = tracking_uri or mlflow.get_tracking_uri()
    path = find_file(uri)
    if path is not None and not path.is_file():
        raise OSError(f"there is no database at {uri}; {_HINT_STORE}")
    register_databases()
    return MlflowClient(tracking_uri)


def find_run(client: MlflowClient, run_id: str) -> Run:
    """Find a run by its ID.

    Args:
        client: The client of the store.
        run_id: The run's ID, or its first four or more digits.

    Raises:
        UsageError: `run_id` does not have the form of an ID.
        ValueError: There is no such run, there are several, or the run is deleted.
    """
    digits = run_id.lower()
    if not re.fullmatch(r"[0-9a-f]{4,32}", digits):
        raise UsageError(
            f"invalid run ID: {run_id!r} (expected 32 hexadecimal digits, or the first 4 or more "
            f"of them); {_hint_ui(client.tracking_uri)}"
        )
    search = _search_by_id if len(digits) == 32 else _search_by_prefix
    found = search(client, digits)
    if not found:
        raise ValueError(
            f"there is no run {run_id} at {mask(client.tracking_uri)}; "
            f"{_hint_ui(client.tracking_uri)}; if the run is in another store, {_HINT_STORE}"
        )
    if len(found) > 1:
        ids = " and ".join(run.info.run_id for run in found)
        raise ValueError(
            f"ambiguous run ID: {run_id} (more than one ID begins with it: {ids}); give more digits"
        )
    (run,) = found
    if run.info.lifecycle_stage == "deleted":
        raise ValueError(
            f"run {run.info.run_id} ({run.info.run_name}) is deleted; restore it with "
            f"`mlflow runs restore --run-id {run.info.run_id}`"
        )
    return run


def _search_by_id(client: MlflowClient, run_id: str) -> list[Run]:
    try:
        return [client.get_run(run_id)]
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []


def _search_by_prefix(client: MlflowClient, prefix: str) -> list[Run]:
    experiments = [found.experiment_id for found in client.search_experiments(ViewType.ALL)]
    condition = f"attributes.run_id LIKE '{prefix}%'"
    return list(client.search_runs(experiments, condition, ViewType.ALL, max_results=2))


def find_best_runs(
    client: MlflowClient, experiment_name: str, metric: str, max_runs: int
) -> list[Run]:
    """Find the best finished runs of an experiment, the best one first.

    Args:
        client: The client of the store.
        experiment_name: The experiment.
        metric: The metric. Lower is better if its name has loss, error, _ece, seconds or
            parameters; otherwise higher is better.
        max_runs: The maximum number of runs.

    Raises:
        ValueError: The experiment does not exist, or has no finished run with the metric.
    """
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        names = [found.name for found in client.search_experiments()]
        raise ValueError(
            f"there is no experiment {experiment_name!r} at {mask(mlflow.get_tracking_uri())}"
            f"{suggest_names(experiment_name, names, 'experiments')}"
        )
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment {experiment_name!r} is deleted; restore it with `mlflow experiments "
            f"restore --experiment-id {experiment.experiment_id}`"
        )
    order = "ASC" if _LOWER_IS_BETTER.search(metric) else "DESC"
    finished = client.search_runs(
        [experiment.experiment_id],
        "attributes.status = 'FINISHED'",
        order_by=[f"metrics.`{metric}` {order}"],
        max_results=max_runs,
    )
    if not finished:
        raise ValueError(
            f"experiment {experiment_name!r} has no finished runs; train some, or give the IDs of "
            "its unfinished runs"
        )
    best = [run for run in finished if metric in run.data.metrics]
    if not best:
        logged = {name for run in finished for name in run.data.metrics}
        raise ValueError(
            f"no finished run of experiment {experiment_name!r} has the metric {metric!r}"
            f"{suggest_names(metric, logged, 'metrics')}"
        )
    return best


def suggest_names(name: str, names: Iterable[str], noun: str) -> str:
    """Suggest the name nearest to an unknown one, or else list names that exist.

    Args:
        name: The unknown name.
        names: The existing names.
        noun: What the names are, in the plural: "metrics".

    Returns:
        The end of a message: ". Did you mean 'a'?", or "; existing metrics: a, b".
    """
    known = sorted(names)
    if not known:
        return f"; there are no {noun}"
    listed = join_some(known, _MAX_NAMES)
    return suggest(name, known) or f"; existing {noun}: {listed}"


def _hint_ui(uri: str) -> str:
    server = find_server_address(uri)
    return f"see the runs {f'at {server}' if server else f'with `{format_ui_command(uri)}`'}"
