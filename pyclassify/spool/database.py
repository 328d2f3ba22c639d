"""Open MLflow's databases under an exclusive lock, so that several processes may open a new one.

MLflow creates the tables of a new database, and migrates those of an old one, without a lock: of
two processes that open it first, one fails in Alembic's migration. Here one process at a time opens
a database. MLflow calls these functions for SQLite in all its programs, such as `mlflow run` (entry
points in pyproject.toml), and for PostgreSQL in our own commands.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from mlflow.store.model_registry.abstract_store import AbstractStore as AbstractRegistryStore
    from mlflow.store.tracking.abstract_store import AbstractStore

_SQLITE = "sqlite:///"
_LOCK_TIMEOUT_SECONDS = 300.0  # then the holder is assumed to hang; a migration takes seconds
_POSTGRES_LOCK = 0x70796C6D  # key of pg_advisory_lock, not used by other programs


def open_tracking_store(store_uri: str, artifact_uri: str | None = None) -> "AbstractStore":
    """Open the tracking store of a database, as MLflow's own builder does, one process at a time.

    Raises:
        mlflow.exceptions.MlflowException: The file can't be opened, or the database server does not
            respond.
    """
    from mlflow.tracking._tracking_service.utils import _get_sqlalchemy_store

    with _lock_database(store_uri):
        return _get_sqlalchemy_store(store_uri, artifact_uri)


def open_registry_store(store_uri: str) -> "AbstractRegistryStore":
    """Open the registry of a database, as MLflow's own builder does, one process at a time.

    Raises:
        mlflow.exceptions.MlflowException: As in `open_tracking_store`.
    """
    from mlflow.tracking._model_registry.utils import _get_sqlalchemy_store

    with _lock_database(store_uri):
        return _get_sqlalchemy_store(store_uri)


def register_databases() -> None:
    """Register these functions with MLflow in this process, for SQLite and PostgreSQL."""
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    for scheme in ("sqlite", "postgresql"):
        _tracking_store_registry.register(scheme, open_tracking_store)


@contextmanager
def _lock_database(uri: str) -> Iterator[None]:
    if uri.startswith("postgresql"):
        with _lock_in_postgres(uri):
            yield
    elif path := find_file(uri):
        with _lock_file(path):
            yield
    else:  # in memory, or another kind of database, which has no lock here
        yield


def find_file(uri: str) -> Path | None:
    """Find the file of an SQLite database; None for one in memory or given by a `file:` URI."""
    name = unquote(uri.removeprefix(_SQLITE).partition("?")[0])
    is_path = uri.startswith(_SQLITE) and name and not name.startswith((":memory:", "file:"))
    return Path(name).absolute() if is_path else None


@contextmanager
def _lock_file(database: Path) -> Iterator[None]:
    """Hold the lock beside a database's file, unless the folder can't be written."""
    _check_file(database)
    try:
        from filelock import FileLock, Timeout
    except ImportError:  # only MLflow is installed, as on a login node
        yield
        return
    lock = FileLock(database.with_name(f".{database.name}.lock"), timeout=_LOCK_TIMEOUT_SECONDS)
    try:
        lock.acquire()
    except (OSError, NotImplementedError, Timeout):
        yield  # without a lock: who can't write to the folder creates no tables either
        return
    try:
        yield
    finally:
        # A process that waits for the lock notices that the file was removed, and locks a new one.
        with suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()


def _check_file(database: Path) -> None:
    """Check that SQLite can open a file; MLflow would retry for two minutes."""
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        if database.exists():
            if stat.S_ISDIR(database.stat().st_mode):
                raise IsADirectoryError(f"{database} is a directory, not a database")
            with database.open("rb"):
                pass
        elif not os.access(database.parent, os.W_OK):
            raise PermissionError(f"{database.parent} is not writable")
    except OSError as error:
        reason = f"{database}: {error.strerror}" if error.strerror else str(error)
        raise MlflowException(
            f"unable to open database file ({reason})", INVALID_PARAMETER_VALUE
        ) from error


@contextmanager
def _lock_in_postgres(uri: str) -> Iterator[None]:
    """Hold an advisory lock of the database, which releases it if this process dies."""
    import sqlalchemy
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    try:
        connection = engine.connect()
    except sqlalchemy.exc.OperationalError as error:
        # A rejected login is permanent; MLflow retries only TEMPORARILY_UNAVAILABLE.
        is_rejected = any(sign in str(error) for sign in ("FATAL", "password", "pg_hba"))
        code = INVALID_PARAMETER_VALUE if is_rejected else TEMPORARILY_UNAVAILABLE
        raise MlflowException(str(error), code) from error
    with connection:
        connection.execute(
            sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": _POSTGRES_LOCK}
        )
        yield
