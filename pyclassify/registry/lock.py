"""One after the other moves a registered model's aliases, on whatever machines they are."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

POLL = 0.05  # seconds between two tries
STALE = 60.0  # seconds after which a lock is one of a process that is dead; it takes a second


@contextmanager
def alone(client: Any, name: str) -> Iterator[Callable[[], bool]]:
    """Keep others from moving a model's champion meanwhile, on whatever machine they are.

    MLflow moves an alias whatever it was, but makes a registered model of a name only once: one
    that is called `NAME (being judged)` is the lock. It is there for the second that a decision is
    written in. What a process leaves behind that is killed in that second is removed by the next,
    after a minute.

    Yields:
        What tells whether it still is so: who takes longer may be taken for dead.
    """
    lock, mine = f"{name} (being judged)", uuid4().hex
    told = f"Keeps others from moving the aliases of {name}; it may be deleted after a minute."
    where = f"By process {os.getpid()} on {socket.gethostname()}, {mine}."
    _take(client, lock, mine, f"{told} {where}")
    try:
        yield lambda: mine in _read_holder(client, lock)
    finally:
        _let_go(client, lock, mine)


def _take(client: Any, lock: str, mine: str, description: str) -> None:
    from mlflow.exceptions import MlflowException

    holder, since = "", time.monotonic()
    while True:
        try:
            client.create_registered_model(lock, description=description)
            return
        except MlflowException as error:
            # The other one is told of a lock that was let go while MLflow looked for it.
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
        now = _read_holder(client, lock)
        if mine in now:  # a request was repeated whose answer got lost
            return
        if not now or now != holder:
            holder, since = now, time.monotonic()
        elif time.monotonic() - since > STALE:
            _break(client, lock, holder)
        time.sleep(POLL)


def _break(client: Any, lock: str, holder: str) -> None:
    """Remove the lock of a process that is dead.

    Raises:
        PermissionError: It is another user's, and not to be removed by this one.
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


def _let_go(client: Any, lock: str, holder: str) -> None:
    """Remove a lock, if it is still that one's."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        if holder in _read_holder(client, lock):
            client.delete_registered_model(lock)


def _read_holder(client: Any, lock: str) -> str:
    """Who holds a lock; empty where nobody does."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(lock).description or "made by hand"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""
