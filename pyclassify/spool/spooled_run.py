"""Opening a run for writing: into a spool first, and from there to the server."""

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from pyclassify.spool import records
from pyclassify.utils.masking import mask

ATTEMPTS = "attempts"  # the tag that says how often training was started in a run
END_SECONDS = 60.0  # that the server has at the end to take what is left
STOP_SECONDS = 4.0  # the same where a signal ends the run: its sender may soon kill this process

# What MLflow says of a server that is not there, or not well: other codes are its answer.
_AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "IO_ERROR")


class SpooledRun:
    """A run that this process writes to.

    Args:
        folder: Its folder in the spool.
        tracking_uri: Where it is delivered; nothing where another process sees to that.
        active: Whether it is MLflow's active run too.
    """

    def __init__(self, folder: Path, tracking_uri: str = "", active: bool = False) -> None:
        from mlflow import MlflowClient

        from pyclassify.spool import lock
        from pyclassify.spool.upload_thread import UploadThread

        lock.acquire(folder)
        self.folder, self.tracking_uri, self._active = folder, tracking_uri, active
        self._over = False
        self.run_id, self.spool_uri = folder.name, records.format_spool_uri(folder.parent)
        self.client = MlflowClient(self.spool_uri)
        self.delivery = UploadThread(folder, tracking_uri) if tracking_uri else None
        if self.delivery:
            self.delivery.opened.refresh = self.delivery.refresh
            self.delivery.start()
        self.attempts = int(self.read().data.tags.get(ATTEMPTS, "0")) + 1
        self.client.set_tag(self.run_id, ATTEMPTS, self.attempts)
        self.client.update_run(self.run_id, status="RUNNING")

    @property
    def experiment_id(self) -> str:
        """The experiment's id."""
        return str(self.read().info.experiment_id)

    @property
    def server_id(self) -> str:
        """The run's id at the server: another one where the run was begun without it."""
        return (self.delivery and self.delivery.server_id) or self.run_id

    def read(self) -> Any:
        """The run, as MLflow's entity."""
        return self.client.get_run(self.run_id)

    def server(self) -> Any:
        """An `MlflowClient` of the server, or of the spool where no server is delivered to."""
        from mlflow import MlflowClient

        return MlflowClient(self.tracking_uri) if self.tracking_uri else self.client

    def is_away(self) -> bool:
        """Whether what is logged does not reach the server at the moment."""
        return self.delivery is None or bool(self.delivery.trouble)

    def append(self, record: dict[str, Any]) -> None:
        """Write a record that is of this project and not of MLflow's store."""
        from pyclassify.spool.writer import open_writer

        open_writer(self.folder).append(record)

    def keep(self) -> None:
        """Have the disk keep what was logged, unless the run is over.

        Raises:
            OSError: It takes nothing at the moment.
        """
        from pyclassify.spool.writer import open_writer

        if self._over:
            return
        opened = open_writer(self.folder)
        if not opened.flush():
            raise OSError(f"{self.folder} can't be written, so that the log would be behind")
        opened.sync()

    def close(self, status: str) -> bool:
        """Give the run a status and deliver what is left; whether nothing is.

        Args:
            status: The final status; nothing where another process gives it one.
        """
        if status:
            self.client.set_terminated(self.run_id, status)
        if self.delivery is None:
            return True
        seconds = STOP_SECONDS if status in ("", "KILLED") else END_SECONDS
        if self.delivery.finish(seconds):
            self.delivery.clear(for_good=bool(status))
            return True
        why = self.delivery.trouble or "it is slow"
        size, files = self.delivery.unsent()
        some = f"{size:,} bytes" if size else name_some(files)
        text = (
            f"{some} of what run {self.run_id} logged have not reached {mask(self.tracking_uri)} "
            f"({why}); they are in {self.folder}, and when it can be reached: pyclassify sync "
            f"{self.folder}"
        )
        if lost := len(self.delivery.opened.waiting()):
            text += f"; {lost:,} records that could not be written there are lost"
        sys.stderr.write(f"pyclassify: {text}\n")
        return False

    def let_go(self) -> None:
        """Close the spool, and take the run off MLflow's own list: it would be called FINISHED."""
        import mlflow
        from mlflow.tracking._tracking_service import utils

        from pyclassify.spool import lock
        from pyclassify.spool.writer import close_writer

        if self._active and (stack := mlflow.tracking.fluent._active_run_stack.get()):
            stack.pop()
        # MLflow finds a run's files by its id alone, wherever the run is.
        utils._artifact_repos_cache.pop(self.run_id, None)
        close_writer(self.folder)
        lock.release(self.folder)
        self._over = True


def name_some(files: list[str]) -> str:
    """Name a few of the things that wait."""
    rest = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return f"{', '.join(files[:3])}{rest}"


def open_run(
    given: str | None,
    experiment_name: str | None,
    run_name: str | None,
    tags: dict[str, Any] | None,
    tracking_uri: str,
    root: Path,
) -> SpooledRun:
    """Open a run; the arguments are those of `run.start` and the id of the adopted run.

    Raises:
        RunLockedError: Another process writes to it.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pyclassify.spool import lock
    from pyclassify.spool.records import create_from_server
    from pyclassify.spool.server import describe_server_error, limit_requests, short_timeouts
    from pyclassify.spool.store import parse_spool_uri, register_scheme

    register_scheme()
    limit_requests()
    mlflow.set_tracking_uri(tracking_uri)
    spools = tracking_uri.startswith("spool:")
    root = parse_spool_uri(tracking_uri) if spools else root
    if given is not None:  # before the server hears that it runs
        lock.acquire(root / given)
    if spools:
        client = MlflowClient(tracking_uri)
        if given is None:
            name = experiment_name or _environment("MLFLOW_EXPERIMENT_NAME", "Default")
            given = client.create_run(f"name:{name}", tags=tags, run_name=run_name).info.run_id
        return SpooledRun(root / given)
    try:
        with (
            short_timeouts()
        ):  # before anything is asked for that may be done although nobody answers
            MlflowClient(tracking_uri).search_experiments(max_results=1)
        if experiment_name and given is None:
            mlflow.set_experiment(experiment_name)
        active = mlflow.active_run() or mlflow.start_run(run_name=run_name, tags=tags)
        client = MlflowClient(tracking_uri)
        return SpooledRun(
            create_from_server(root, client, active.info.run_id), tracking_uri, active=True
        )
    except MlflowException as error:
        if error.error_code not in _AWAY:
            raise
        warnings.warn(
            f"the tracking server {mask(tracking_uri)} can't be reached "
            f"({describe_server_error(error)}); what is logged is kept in {root} and delivered "
            "when it can",
            stacklevel=2,
        )
    return SpooledRun(
        _make(given, experiment_name, run_name, tags, tracking_uri, root), tracking_uri
    )


def _make(
    given: str | None,
    experiment_name: str | None,
    run_name: str | None,
    tags: dict[str, Any] | None,
    tracking_uri: str,
    root: Path,
) -> Path:
    """Make a spool without the server's help, unless there is one."""
    import uuid

    from mlflow.tracking.context.registry import resolve_tags

    from pyclassify.spool.records import create_spool

    run_id = given or uuid.uuid4().hex
    if records.is_spool(root / run_id):
        return root / run_id
    experiment = _environment("MLFLOW_EXPERIMENT_ID", "") if given else ""
    name = experiment_name or _environment("MLFLOW_EXPERIMENT_NAME", "Default")
    return create_spool(
        root / run_id,
        experiment or f"name:{name}",
        run_name or f"away-from-{int(time.time())}",
        resolve_tags(tags),
        int(time.time() * 1000),
        tracking_uri,
        given_id=given is not None,
    )


def _environment(name: str, default: str) -> str:
    return os.environ.get(name) or default
