"""What a job says of its run: to MLflow, or to the spool of the run where the server is away."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyclassify.spool import records
from pyclassify.utils.masking import mask

T = TypeVar("T")


def tell(run_id: str, root: Path, say: Callable[[Any], T]) -> T:
    """Say something to MLflow, or to the run's spool where that can't be.

    Args:
        run_id: The run.
        root: The folder of its spool.
        say: Called with an `MlflowClient`, and once more with that of the spool.

    Returns:
        What that returns.

    Raises:
        mlflow.exceptions.MlflowException: There is no such run, or the run has no spool.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if is_spooled():
        return say(open_spool(root))
    try:
        return say(MlflowClient())
    except Exception as error:  # a database's driver has its own
        unknown = isinstance(error, MlflowException) and error.error_code == _NO_SUCH_RUN
        if unknown or not records.is_spool(root / run_id):
            raise
        sys.stderr.write(
            f"MLflow can't be told ({mask(' '.join(str(error).split()))}); it is kept for "
            f"`pyclassify sync {root}`\n"
        )
        return say(open_spool(root))


_NO_SUCH_RUN = "RESOURCE_DOES_NOT_EXIST"


def is_spooled() -> bool:
    """Whether this process writes to a spool alone."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").startswith("spool:")


def open_spool(root: Path) -> Any:
    """The `MlflowClient` of the spools in a folder, also where this package is not installed."""
    from mlflow import MlflowClient

    from pyclassify.spool import store

    store.register()
    return MlflowClient(records.uri_of(root))
