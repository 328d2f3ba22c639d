"""A lock in the registry, which lets one process at a time move the aliases of a model.

MLflow moves an alias whatever it named before, but creates a registered model of a name only once:
one that is called `NAME (being judged)` is the lock. It exists for the second in which a decision
is written. What a process leaves behind that is killed in that second is removed by the next, after
a minute.
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

STALE_SECONDS = 60.0  # after which the holder of a lock counts as dead; it needs one
_POLL_SECONDS = 0.05


@contextmanager
def lock_model(client: "MlflowClient", name: str) -> Iterator[Callable[[], bool]]:
    """Keep other processes, on whatever machine, from moving the aliases of a registered model.

    Args:
        client: The registry.
        name: The registered model.

    Yields:
        A function that returns whether the lock is still held: a process that takes longer than
        `STALE_SECONDS` loses it to the next.

    Raises:
        PermissionError: Another user's process died with the lock, and this user may not delete it.
        mlflow.exceptions.MlflowException: The registry refuses the lock, or does not answer.
    """
    lock, token = f"{name} (being judged)", uuid4().hex
    purpose = f"Keeps others from moving the aliases of {name}; it may be deleted after a minute."
    holder = f"By process {os.getpid()} on {socket.gethostname()}, {token}."
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
            # MLflow answers "does not exist" where the lock is released while it looks for it.
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
        current = _read_holder(client, lock)
        if token in current:  # the request was repeated, as its answer was lost
            return
        if not current or current != holder:
            holder, since = current, time.monotonic()
        elif time.monotonic() - since > STALE_SECONDS:
            _break(client, lock, holder)
        time.sleep(_POLL_SECONDS)


def _break(client: "MlflowClient", lock: str, holder: str) -> None:
    """Remove the lock of a process that is dead.

    Raises:
        PermissionError: The lock is another user's.
    """
    from mlflow.exceptions import MlflowException

    try:
        if _read_holder(client, lock) == holder:
            client.delete_registered_model(lock)
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            raise PermissionError(
                f"the registered model {lock!r} was left by a process that died and is another "
                "user's; have that user or an admin delete it"
            ) from error


def _release(client: "MlflowClient", lock: str, token: str) -> None:
    """Remove the lock, if it is still this process's."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        if token in _read_holder(client, lock):
            client.delete_registered_model(lock)


def _read_holder(client: "MlflowClient", lock: str) -> str:
    """Read who holds the lock; empty where nobody does."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(lock).description or "made by hand"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""
