"""Open a run for writing, upload it while it is written, and close it.

Records are written to the run's spool first, its write-ahead log, and uploaded from there. The
writer and the uploader are imported when a run is opened: other commands start without them.
"""

import os
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.spool import lock, records
from pyclassify.utils.masking import mask
from pyclassify.utils.signals import ignore_stop_signals
from pyclassify.utils.text import format_reason, join_some

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

    from pyclassify.spool.upload_thread import UploadThread

NO_STATUS_NOTE = "The run was created, but its final status could not be set."
_ATTEMPTS_TAG = "attempts"  # the number of times that training was started in a run
_END_TIMEOUT_SECONDS = 60.0  # for the last upload when the run ends
STOP_TIMEOUT_SECONDS = 4.0  # if a signal ends the run: its sender may soon kill this process
# MLflow's codes for a server that is unreachable or failing; other codes are permanent.
_OFFLINE_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "IO_ERROR")


class SpooledRun:
    """A run that this process writes to.

    Args:
        folder: Its folder in the spool.
        tracking_uri: The server to upload it to; empty if another process uploads it.
        active: Whether it is also MLflow's active run.

    Attributes:
        client: A client of the spool, which logs to the run.
        upload_thread: Uploads the run; None if another process does.
        attempts: The number of times that training was started in the run, including this one.

    Example:
        >>> run = open_run(None, "experiment", "name", {}, "http://server:5000", Path("runs/spool"))
        >>> run.client.log_metric(run.run_id, "loss", 0.5, step=1)
        >>> run.close("FINISHED")
        True
        >>> run.release()
    """

    def __init__(self, folder: Path, tracking_uri: str = "", active: bool = False) -> None:
        from mlflow import MlflowClient

        from pyclassify.spool.upload_thread import UploadThread

        lock.acquire(folder)
        self.folder, self.tracking_uri, self._is_active = folder, tracking_uri, active
        self._is_over = False
        self.run_id, self.spool_uri = folder.name, records.format_spool_uri(folder.parent)
        self.client = MlflowClient(self.spool_uri)
        self.upload_thread = UploadThread(folder, tracking_uri) if tracking_uri else None
        if self.upload_thread:
            self.upload_thread.writer.refresh = self.upload_thread.refresh
            self.upload_thread.start()
        tags = self.get_run().data.tags
        self.attempts = int(tags.get(_ATTEMPTS_TAG, "0")) + 1
        self.client.set_tag(self.run_id, _ATTEMPTS_TAG, self.attempts)
        for outdated in tags.keys() & {records.REASON_TAG, records.START_TAG}:
            self.client.delete_tag(self.run_id, outdated)
        self._fail_pending_models()
        self.client.update_run(self.run_id, status="RUNNING")

    @property
    def experiment_id(self) -> str:
        """The experiment's id."""
        return str(self.get_run().info.experiment_id)

    @property
    def server_id(self) -> str:
        """The run's ID at the server, which differs if the run was started offline."""
        return (self.upload_thread and self.upload_thread.server_id) or self.run_id

    def get_server_model_id(self, local_id: str) -> str:
        """Return a logged model's ID at the server.

        Args:
            local_id: Its ID in the spool.

        Returns:
            The ID; empty until the server has created the model, or if another process uploads it.
        """
        return self.upload_thread.get_model_id(local_id) if self.upload_thread else ""

    def get_server_model(self, local_id: str) -> "LoggedModel":
        """Get a logged model from the server, or from the spool if another process uploads it.

        Args:
            local_id: Its ID in the spool.

        Raises:
            mlflow.exceptions.MlflowException: There is no such model, or the server does not
                respond.
        """
        model_id = self.get_server_model_id(local_id) or local_id
        return self.get_server_client().get_logged_model(model_id)

    def get_run(self) -> "Run":
        """Get the run, as MLflow's entity."""
        return self.client.get_run(self.run_id)

    def get_server_client(self) -> "MlflowClient":
        """Get a client of the server, or of the spool if another process uploads the run."""
        from mlflow import MlflowClient

        return MlflowClient(self.tracking_uri) if self.tracking_uri else self.client

    def is_offline(self) -> bool:
        """Whether records do not reach the server at the moment."""
        return self.upload_thread is None or bool(self.upload_thread.last_error)

    def append(self, record: records.Record) -> None:
        """Append a record of a kind for which MLflow's store has no method."""
        from pyclassify.spool.writer import open_writer

        open_writer(self.folder).append(record)

    def sync(self) -> None:
        """Store all records on the disk (fsync), unless the run has ended.

        Raises:
            OSError: The disk can't be written at the moment.
        """
        from pyclassify.spool.writer import open_writer

        if self._is_over:
            return
        writer = open_writer(self.folder)
        if not writer.flush():
            raise OSError(f"{self.folder} can't be written; records are still in memory")
        writer.sync()

    def close(self, status: str, reason: str = "") -> bool:
        """Set the run's final status and upload the rest; return whether everything is uploaded.

        Args:
            status: The final status; empty if another process sets it.
            reason: Why a run is FAILED or KILLED, for the tag `status_reason`.

        Raises:
            OSError: The status is FINISHED, and some records are lost.
        """
        if reason:
            self.client.set_tag(self.run_id, records.REASON_TAG, reason)
        if status:
            self.client.set_terminated(self.run_id, status)
        timeout = STOP_TIMEOUT_SECONDS if status in ("", "KILLED") else _END_TIMEOUT_SECONDS
        is_uploaded = self.upload_thread is None or self.upload_thread.finish(timeout)
        if status == "FINISHED":  # only the clean-up is left
            ignore_stop_signals()
        if self.upload_thread is None:
            return True
        if is_uploaded:
            self.upload_thread.remove_copies(is_over=bool(status))
            return True
        self._report_unsent(self.upload_thread)
        if status == "FINISHED" and self.upload_thread.writer.list_pending():
            raise OSError(f"{self.folder} can't be written, and some records of the run are lost")
        return False

    def release(self) -> None:
        """Close the spool, release its lock, and remove the run from MLflow's active runs.

        MLflow sets the status of active runs to FINISHED when Python exits.
        """
        from mlflow.tracking._tracking_service import utils

        from pyclassify.spool.writer import close_writer

        if self._is_active:
            _leave_active_run()
        # MLflow caches the repository of a run's artifacts by its ID, whatever the store.
        utils._artifact_repos_cache.pop(self.run_id, None)
        close_writer(self.folder)
        lock.release(self.folder)
        self._is_over = True

    def _fail_pending_models(self) -> None:
        """Make the models FAILED that a process has left without a status when it died."""
        from pyclassify.spool.writer import open_writer

        for model_id, model in open_writer(self.folder).state.models.items():
            if model.status == "PENDING":
                self.client.finalize_logged_model(model_id, "FAILED")

    def _report_unsent(self, upload_thread: "UploadThread") -> None:
        size, files = upload_thread.find_unsent()
        unsent = f"{size:,} bytes of records" if size else join_some(files)
        message = (
            f"run {self.run_id} is not completely uploaded to {mask(self.tracking_uri)} "
            f"({upload_thread.last_error or 'the server is slow'}). Saved in {self.folder}: "
            f"{unsent}. Upload them later: pyclassify sync {self.folder}"
        )
        if lost := len(upload_thread.writer.list_pending()):
            message += f"; {lost:,} records that could not be written there are lost"
        sys.stderr.write(f"pyclassify: {message}\n")


def open_run(
    run_id: str | None,
    experiment_name: str | None,
    run_name: str | None,
    tags: dict[str, Any] | None,
    tracking_uri: str,
    root: Path,
) -> SpooledRun:
    """Open a run for writing, or create one, even while the server is unreachable.

    Args:
        run_id: The run that `mlflow run` created; None creates a run.
        experiment_name: The experiment of a new run.
        run_name: The name of a new run. By default it is MLflow's random name, `offline-<time>` if
            the server is unreachable, or `spooled-<id>` in a spool that another process uploads.
        tags: Tags to set.
        tracking_uri: The server, or a spool that another process uploads.
        root: The folder of spools; not used if `tracking_uri` is a spool.

    Raises:
        RunLockedError: Another process holds the run's lock.
        OSError: The spool can't be written. A new run is FAILED then.
        ValueError: A name is too long, or the experiment is deleted.
        mlflow.exceptions.MlflowException: The server rejects the request, or is not an MLflow
            server.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    from pyclassify.spool.artifact_store import parse_spool_uri
    from pyclassify.spool.experiments import check_names
    from pyclassify.spool.store import register_scheme
    from pyclassify.spool.store_errors import is_final
    from pyclassify.utils.mlflow_settings import limit_requests

    register_scheme()
    limit_requests()
    mlflow.set_tracking_uri(tracking_uri)
    if run_id is None:
        check_names(experiment_name, run_name, tags)
    is_spool = tracking_uri.startswith("spool:")
    root = parse_spool_uri(tracking_uri) if is_spool else root
    if run_id is not None:  # before the run's status is set to RUNNING
        lock.acquire(root / run_id)
    if is_spool:
        if run_id is None:
            run_id = _create_in_spool(tracking_uri, experiment_name, run_name, tags)
        return SpooledRun(root / run_id)
    try:
        _check_server(tracking_uri)
        if run_id is None:
            _activate_experiment(tracking_uri, experiment_name)
        return _open_at_server(run_id is None, run_name, tags, tracking_uri, root)
    except MlflowException as error:
        if error.error_code not in _OFFLINE_CODES or is_final(error, run_id is None):
            raise
        _warn_offline(error, tracking_uri, root)
    folder = _create_offline(run_id, experiment_name, run_name, tags, tracking_uri, root)
    return SpooledRun(folder, tracking_uri)


def upload_rest(folder: Path, client: "MlflowClient") -> None:
    """Upload what a run wrote to its spool and could not upload before its process died.

    Files that can't be stored now, and a run that another process uploads, are left to it and to
    `pyclassify sync`.

    Args:
        folder: The run's folder, which need not exist.
        client: A client of the server.

    Raises:
        mlflow.exceptions.MlflowException: The server does not respond, or rejects the request.
    """
    from pyclassify.spool.uploader import Uploader

    if records.is_spool(folder) and not records.is_done(folder):
        with suppress(OSError):
            Uploader(folder, client).upload()


def _warn_offline(error: Exception, tracking_uri: str, root: Path) -> None:
    from pyclassify.spool.store_errors import describe_server_error

    warnings.warn(
        f"the tracking server {mask(tracking_uri)} can't be reached "
        f"({describe_server_error(error)}); the run is saved in {root} and uploaded when the "
        "server is available",
        stacklevel=3,
    )


def _check_server(tracking_uri: str) -> None:
    """Check that the server responds, before any request that it may execute without a response."""
    from mlflow import MlflowClient

    from pyclassify.utils.mlflow_settings import short_request_limits

    with short_request_limits():
        MlflowClient(tracking_uri).search_experiments(max_results=1)


def _activate_experiment(tracking_uri: str, experiment_name: str | None) -> None:
    """Create the experiment of a new run if it is missing, and make it MLflow's active one."""
    import mlflow

    from pyclassify.spool.experiments import open_experiment

    experiment_id = open_experiment(mlflow.MlflowClient(tracking_uri), experiment_name)
    if experiment_name:
        mlflow.set_experiment(experiment_id=experiment_id)


def _open_at_server(
    is_new: bool, run_name: str | None, tags: dict[str, Any] | None, tracking_uri: str, root: Path
) -> SpooledRun:
    """Open MLflow's active run, or start it."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri)
    users = mlflow.active_run()
    try:
        run = users or mlflow.start_run(run_name=run_name, tags=tags)
        folder = records.create_from_server(root, client, run.info.run_id)
        return SpooledRun(folder, tracking_uri, active=True)
    except BaseException as error:
        if users is None:
            _leave_active_run()
        if users is None and is_new:
            try:
                _fail_new_run(client, tags or {}, error)
            except Exception:  # of the server, which may be the cause of the error too
                error.add_note(NO_STATUS_NOTE)
        raise


def _leave_active_run() -> None:
    """Remove the run from MLflow's active runs, which are FINISHED when Python exits."""
    import mlflow

    if stack := mlflow.tracking.fluent._active_run_stack.get():
        stack.pop()


def _fail_new_run(client: "MlflowClient", tags: dict[str, Any], error: BaseException) -> None:
    """Set the final status of a new run that can't be opened."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    start_id = tags.get(records.START_TAG, "")
    for run in client.search_runs(experiments, f"tags.`{records.START_TAG}` = '{start_id}'"):
        client.set_tag(run.info.run_id, records.REASON_TAG, format_reason(error))
        client.delete_tag(run.info.run_id, records.START_TAG)
        is_stop = isinstance(error, KeyboardInterrupt)
        client.set_terminated(run.info.run_id, "KILLED" if is_stop else "FAILED")


def _create_in_spool(
    spool_uri: str,
    experiment_name: str | None,
    run_name: str | None,
    tags: dict[str, Any] | None,
) -> str:
    """Create a run in a spool that another process uploads; return its ID."""
    from mlflow import MlflowClient

    run = MlflowClient(spool_uri).create_run(
        f"name:{_choose_experiment(experiment_name)}", tags=tags, run_name=run_name
    )
    return str(run.info.run_id)


def _create_offline(
    run_id: str | None,
    experiment_name: str | None,
    run_name: str | None,
    tags: dict[str, Any] | None,
    tracking_uri: str,
    root: Path,
) -> Path:
    """Create a run's spool offline, unless the run has one."""
    import uuid

    from mlflow.tracking.context.registry import resolve_tags

    folder = root / (run_id or uuid.uuid4().hex)
    if records.is_spool(folder):
        return folder
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") if run_id else None
    return records.create_spool(
        folder,
        experiment_id or f"name:{_choose_experiment(experiment_name)}",
        run_name or f"offline-{int(time.time())}",
        resolve_tags(tags),
        int(time.time() * 1000),
        tracking_uri,
        is_at_server=run_id is not None,
    )


def _choose_experiment(experiment_name: str | None) -> str:
    return experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
