"""A lock in the registry, which lets one process at a time move the aliases of a model.

MLflow has no compare-and-set for aliases, but creates a registered model of a name only once: the
lock is a registered model `NAME (alias lock)`. It exists for the second in which a decision is
written. If a process is killed in that second, the next process removes its lock after a minute.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from mlflow import MlflowClient

STALE_SECONDS = 60.0  # after which the holder of a lock, which needs one second, counts as dead
_POLL_SECONDS = 0.05


@contextmanager
def lock_model(client: "MlflowClient", name: str) -> Iterator[Callable[[], bool]]:
    """Acquire the lock on the aliases of a registered model, for all processes on all machines.

    Args:
        client: The registry.
        name: The registered model.

    Yields:
        A function that returns whether the lock is still held: another process may acquire it
        after `STALE_SECONDS`.

    Raises:
        PermissionError: The process of another user died with the lock, and this user has no
            permission to delete it.
        mlflow.exceptions.MlflowException: The registry refuses the lock, or does not answer.
    """
    lock, token = f"{name} (alias lock)", uuid4().hex
    purpose = f"Lock on the aliases of {name}; safe to delete after a minute."
    holder = f"Held by process {os.getpid()} on {socket.gethostname()}, {token}."
    _acquire(client, lock, token, f"{purpose} {holder}")
    try:
        yield lambda: token in _read_holder(client, lock)
    finally:
        _release(client, lock, token)


def _acquire(client: "MlflowClient", lock: str, token: str, description: str) -> None:
    from mlflow.exceptions import MlflowException

    holder, since = "", time.monotonic()
    while True:
        try:
            client.create_registered_model(lock, description=description)
            return
        except MlflowException as error:
            # MLflow raises "does not exist" if the lock is released during the request.
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
        current = _read_holder(client, lock)
        if token in current:  # the response was lost, and the client repeated the request
            return
        if not current or current != holder:
            holder, since = current, time.monotonic()
        elif time.monotonic() - since > STALE_SECONDS:
            _break(client, lock, holder)
        time.sleep(_POLL_SECONDS)


def _break(client: "MlflowClient", lock: str, holder: str) -> None:
    """Remove the lock of a dead process.

    Raises:
        PermissionError: This user has no permission to delete it.
    """
    from mlflow.exceptions import MlflowException

    try:
        if _read_holder(client, lock) == holder:
            client.delete_registered_model(lock)
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            raise PermissionError(
                f"the registered model {lock!r} is a lock that a process of another user left when "
                "it died; ask that user or an admin to delete it"
            ) from error


def _release(client: "MlflowClient", lock: str, token: str) -> None:
    """Remove the lock, if it is still this process's."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        if token in _read_holder(client, lock):
            client.delete_registered_model(lock)


def _read_holder(client: "MlflowClient", lock: str) -> str:
    """Read which process holds the lock; empty if none does."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(lock).description or "created manually"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""
