"""Settings that MLflow reads from the environment: its requests' limits and its progress bar.

What the user has set stays as it is.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# What MLflow does when a server does not answer; its defaults add up to minutes.
_RETRIES_ENV, _TIMEOUT_ENV = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
REQUEST_LIMITS = {_RETRIES_ENV: "1", _TIMEOUT_ENV: "30"}  # the uploader retries by itself
SHORT_REQUEST_LIMITS = {_RETRIES_ENV: "0", _TIMEOUT_ENV: "8"}


def configure_mlflow(retries: int | None = None, timeout_seconds: int | None = None) -> None:
    """Set what MLflow reads from the environment in a command, where the user has not set it.

    MLflow shows no progress bar for each artifact, and no stack trace of a database's error.

    Args:
        retries: How often a request is repeated; without it MLflow's default of seven.
        timeout_seconds: How long the server may take to answer; without it MLflow's default.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # It logs the stack trace of each error that it raises, and that becomes one line here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if retries is not None:
        os.environ.setdefault(_RETRIES_ENV, str(retries))
    if timeout_seconds is not None:
        os.environ.setdefault(_TIMEOUT_ENV, str(timeout_seconds))


def limit_requests() -> None:
    """Have MLflow give up on a server within seconds, unless the user has set how long."""
    for name, value in REQUEST_LIMITS.items():
        os.environ.setdefault(name, value)


@contextmanager
def short_request_limits() -> Iterator[None]:
    """Within this context give up on a server sooner, since somebody waits."""
    names = [name for name, value in REQUEST_LIMITS.items() if os.environ.get(name) == value]
    os.environ.update({name: SHORT_REQUEST_LIMITS[name] for name in names})
    try:
        yield
    finally:
        os.environ.update({name: REQUEST_LIMITS[name] for name in names})
