"""Set MLflow's environment variables: the limits of its requests, and its progress bar.

Variables that the user has set are not changed.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# MLflow's retries and timeout if a server does not respond; its defaults add up to minutes.
_RETRIES_ENV, _TIMEOUT_ENV = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"
REQUEST_LIMITS = {_RETRIES_ENV: "1", _TIMEOUT_ENV: "30"}  # the uploader retries by itself
SHORT_REQUEST_LIMITS = {_RETRIES_ENV: "0", _TIMEOUT_ENV: "8"}


def configure_mlflow(retries: int | None = None, timeout_seconds: int | None = None) -> None:
    """Configure MLflow for a command, without progress bars and tracebacks of database errors.

    Args:
        retries: The maximum number of retries of a request; by default MLflow's seven.
        timeout_seconds: The timeout of a request; by default MLflow's 120 s.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # It logs the traceback of each error that it raises, which is reported in one line here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    if retries is not None:
        os.environ.setdefault(_RETRIES_ENV, str(retries))
    if timeout_seconds is not None:
        os.environ.setdefault(_TIMEOUT_ENV, str(timeout_seconds))


def limit_requests() -> None:
    """Limit MLflow's retries to one and its timeout to 30 s, unless the user has set them."""
    for name, value in REQUEST_LIMITS.items():
        os.environ.setdefault(name, value)


@contextmanager
def short_request_limits() -> Iterator[None]:
    """Within this context limit requests to 8 s without a retry, as a user is waiting."""
    names = [name for name, value in REQUEST_LIMITS.items() if os.environ.get(name) == value]
    os.environ.update({name: SHORT_REQUEST_LIMITS[name] for name in names})
    try:
        yield
    finally:
        os.environ.update({name: REQUEST_LIMITS[name] for name in names})
