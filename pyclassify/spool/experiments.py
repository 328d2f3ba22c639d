"""Check the names of a new run, and find or create its experiment, before the run is made."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pyclassify.utils.masking import mask
from pyclassify.utils.options import UsageError
from pyclassify.utils.text import shorten

if TYPE_CHECKING:
    from mlflow import MlflowClient

# In characters. Some databases accept more; others would reject the run when it is uploaded.
_MAX_EXPERIMENT_NAME = 500
_MAX_RUN_NAME = 250
_MAX_TAG_NAME = 250
_MAX_TAG_VALUE = 8000
_MAX_SHOWN = 40


def check_names(
    experiment_name: str | None, run_name: str | None, tags: Mapping[str, Any] | None
) -> None:
    """Check that names and tags are not too long for MLflow.

    Raises:
        UsageError: One is too long.
    """
    name = experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    option = "--trainer.logger.{}"
    _check_length("experiment's name", name, _MAX_EXPERIMENT_NAME, option.format("experiment_name"))
    _check_length("run's name", run_name, _MAX_RUN_NAME, option.format("run_name"))
    for tag, value in (tags or {}).items():
        _check_length("tag's name", tag, _MAX_TAG_NAME, option.format("tags"))
        _check_length(f"tag {tag!r}", str(value), _MAX_TAG_VALUE, option.format("tags"))


def _check_length(what: str, text: str | None, length: int, option: str) -> None:
    if text and len(text) > length:
        raise UsageError(
            f"the {what} is too long: {len(text)} characters ({shorten(text, _MAX_SHOWN)!r}), "
            f"expected at most {length}; give a shorter one by {option}"
        )


def open_experiment(client: "MlflowClient", name: str | None) -> str | None:
    """Find the experiment of a new run, or create it.

    Args:
        client: A client of the tracking server.
        name: The experiment; by default that of MLFLOW_EXPERIMENT_NAME.

    Returns:
        The experiment's ID; None if no name is given, and MLflow chooses the experiment.

    Raises:
        ValueError: The experiment is deleted, or the address is not that of an MLflow server.
        mlflow.exceptions.MlflowException: The server does not respond, or rejects the request.
    """
    chosen = name or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    experiment = client.get_experiment_by_name(chosen or "Default")
    if experiment is not None and not experiment.experiment_id:
        raise ValueError(
            f"{mask(client.tracking_uri)} is not an MLflow server; set MLFLOW_TRACKING_URI to the "
            "address at which the server's web page opens"
        )
    if chosen is None:
        return None
    if experiment is None:
        return create_experiment(client, chosen)
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment {chosen!r} is deleted; restore it by `mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}`, or give another "
            "--trainer.logger.experiment_name"
        )
    return str(experiment.experiment_id)


def create_experiment(client: "MlflowClient", name: str) -> str:
    """Create an experiment, unless another process has just created it; return its ID."""
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name))
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)
