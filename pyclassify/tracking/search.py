"""Find the runs that a person names, and say what is wrong with a name."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pyclassify.tracking.ui import format_ui_command
from pyclassify.utils.masking import mask
from pyclassify.utils.text import format_error

# Metrics of which less is better; of all others more is.
_LESS = re.compile("loss|error|_ece|seconds|parameters")


def open_store() -> MlflowClient:
    """Open the store that MLFLOW_TRACKING_URI names, or mlflow.db in this folder.

    Raises:
        OSError: It is a file that is not there; MLflow would make it.
    """
    uri = mlflow.get_tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri[10:].partition("?")[0]).is_file():
        raise OSError(f"there are no runs at {uri}; {_elsewhere()}")
    return MlflowClient()


def find_run(client: MlflowClient, run_id: str) -> Run:
    """Find a run.

    Args:
        client: The store.
        run_id: Its id, or the first eight or more digits of it.

    Raises:
        ValueError: There is no such run, or more than one, or it is deleted.
    """
    digits = run_id.lower()
    if not re.fullmatch(r"[0-9a-f]{8,32}", digits):
        raise ValueError(
            f"{run_id!r} is no run's id: 32 hexadecimal digits, or the first 8 or more of them; "
            f"{_listed()}"
        )
    found = _with_id(client, digits) if len(digits) == 32 else _with_prefix(client, digits)
    if not found:
        raise ValueError(
            f"there is no run {run_id} at {mask(mlflow.get_tracking_uri())}; {_listed()}; "
            f"{_elsewhere()}"
        )
    if len(found) > 1:
        ids = " and ".join(each.info.run_id for each in found)
        raise ValueError(f"{run_id} is the beginning of more than one id, {ids}; give more digits")
    (run,) = found
    if run.info.lifecycle_stage == "deleted":
        raise ValueError(
            f"run {run.info.run_id} ({run.info.run_name}) is deleted; "
            f"`mlflow runs restore --run-id {run.info.run_id}` brings it back"
        )
    return run


def _with_id(client: MlflowClient, run_id: str) -> list[Run]:
    try:
        return [client.get_run(run_id)]
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []


def _with_prefix(client: MlflowClient, digits: str) -> list[Run]:
    everywhere = [each.experiment_id for each in client.search_experiments(ViewType.ALL)]
    condition = f"attributes.run_id LIKE '{digits}%'"
    return list(client.search_runs(everywhere, condition, ViewType.ALL, max_results=2))


def find_best_runs(client: MlflowClient, experiment_name: str, metric: str, best: int) -> list[Run]:
    """Find the best finished runs of an experiment, the best one first.

    Args:
        client: The store.
        experiment_name: The experiment.
        metric: The metric that they are judged by; of a loss, an error or seconds less is better.
        best: How many runs at most.

    Raises:
        ValueError: There is no such experiment, or no finished run with the metric in it.
    """
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        names = [each.name for each in client.search_experiments()]
        raise ValueError(
            f"there is no experiment {experiment_name!r} at {mask(mlflow.get_tracking_uri())}; "
            f"{suggest_names(experiment_name, names)}"
        )
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment {experiment_name!r} is deleted; `mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}` brings it back"
        )
    order = "ASC" if _LESS.search(metric) else "DESC"
    finished = client.search_runs(
        [experiment.experiment_id],
        "attributes.status = 'FINISHED'",
        order_by=[f"metrics.`{metric}` {order}"],
        max_results=best,
    )
    if not finished:
        raise ValueError(
            f"experiment {experiment_name!r} has no finished runs; train some, or compare those "
            "that there are by their ids"
        )
    judged = [run for run in finished if metric in run.data.metrics]
    if not judged:
        logged = {name for run in finished for name in run.data.metrics}
        raise ValueError(
            f"no finished run of experiment {experiment_name!r} has the metric {metric!r}; "
            f"{suggest_names(metric, logged) if logged else 'they have none at all'}"
        )
    return judged


def format_store_error(error: MlflowException) -> str:
    """Say in one line that the store can't be read, and why."""
    uri = mask(mlflow.get_tracking_uri())
    return f"the runs at {uri} can't be read ({format_error(error)}); {_elsewhere()}"


def suggest_names(name: str, names: Iterable[str]) -> str:
    """Say which names are like one that there is not, or else which there are."""
    known = sorted(names)
    if near := get_close_matches(name, known):
        return f"nearest: {', '.join(near)}"
    more = ", and others" if len(known) > 10 else ""
    return f"there are: {', '.join(known[:10])}{more}"


def _listed() -> str:
    return f"`{format_ui_command(mlflow.get_tracking_uri())}` lists the runs"


def _elsewhere() -> str:
    return "go to the folder where they were made, or name their place by MLFLOW_TRACKING_URI"
