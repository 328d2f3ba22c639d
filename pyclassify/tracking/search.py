"""Search for runs that a person names; the errors say what is wrong with a name."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pyclassify.spool.database import find_file, register_databases
from pyclassify.tracking.ui import format_ui_command
from pyclassify.utils.masking import mask

_MAX_SUGGESTIONS = 10
# Metrics of which lower values are better.
_LOWER_IS_BETTER = re.compile("loss|error|_ece|seconds|parameters")

_LOCATE_STORE = "go to the folder where they were made, or name their place by MLFLOW_TRACKING_URI"


def open_store() -> MlflowClient:
    """Open the store that MLFLOW_TRACKING_URI names, or mlflow.db in this folder.

    Raises:
        OSError: The store is a file that does not exist, which MLflow would create.
    """
    uri = mlflow.get_tracking_uri()
    path = find_file(uri)
    if path is not None and not path.is_file():
        raise OSError(f"there are no runs at {uri}; {_LOCATE_STORE}")
    register_databases()
    return MlflowClient()


def find_run(client: MlflowClient, run_id: str) -> Run:
    """Find a run by its id.

    Args:
        client: The store.
        run_id: The run's id, or its first eight or more digits.

    Raises:
        ValueError: There is no such run, there are several, or the run is deleted.
    """
    digits = run_id.lower()
    if not re.fullmatch(r"[0-9a-f]{8,32}", digits):
        raise ValueError(
            f"{run_id!r} is no run's id: 32 hexadecimal digits, or the first 8 or more of them; "
            f"{_hint_ui()}"
        )
    search = _search_by_id if len(digits) == 32 else _search_by_prefix
    found = search(client, digits)
    if not found:
        raise ValueError(
            f"there is no run {run_id} at {mask(mlflow.get_tracking_uri())}; {_hint_ui()}; "
            f"{_LOCATE_STORE}"
        )
    if len(found) > 1:
        ids = " and ".join(run.info.run_id for run in found)
        raise ValueError(f"{run_id} is the beginning of more than one id, {ids}; give more digits")
    (run,) = found
    if run.info.lifecycle_stage == "deleted":
        raise ValueError(
            f"run {run.info.run_id} ({run.info.run_name}) is deleted; "
            f"`mlflow runs restore --run-id {run.info.run_id}` brings it back"
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
        client: The store.
        experiment_name: The experiment.
        metric: The metric; of a loss, an error or seconds lower values are better.
        max_runs: The maximum number of runs.

    Raises:
        ValueError: There is no such experiment, or it has no finished run with the metric.
    """
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        names = [found.name for found in client.search_experiments()]
        raise ValueError(
            f"there is no experiment {experiment_name!r} at {mask(mlflow.get_tracking_uri())}; "
            f"{suggest_names(experiment_name, names)}"
        )
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment {experiment_name!r} is deleted; `mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}` brings it back"
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
            f"experiment {experiment_name!r} has no finished runs; train some, or compare those "
            "that there are by their ids"
        )
    best = [run for run in finished if metric in run.data.metrics]
    if not best:
        logged = {name for run in finished for name in run.data.metrics}
        raise ValueError(
            f"no finished run of experiment {experiment_name!r} has the metric {metric!r}; "
            f"{suggest_names(metric, logged) if logged else 'they have none at all'}"
        )
    return best


def suggest_names(name: str, names: Iterable[str]) -> str:
    """Suggest the names that are close to an unknown one, or else those that exist."""
    known = sorted(names)
    if close := get_close_matches(name, known):
        return f"nearest: {', '.join(close)}"
    more = ", and others" if len(known) > _MAX_SUGGESTIONS else ""
    return f"there are: {', '.join(known[:_MAX_SUGGESTIONS])}{more}"


def _hint_ui() -> str:
    return f"`{format_ui_command(mlflow.get_tracking_uri())}` lists the runs"
