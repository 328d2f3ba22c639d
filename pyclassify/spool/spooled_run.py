"""Open a run for writing, upload it while it is written, and close it.

What is logged goes into the run's spool first, its write-ahead log, and from there to the server.
What writes and uploads is imported when a run is opened: other commands start without it.
"""

import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.spool import lock, records
from pyclassify.utils.masking import mask
from pyclassify.utils.text import format_reason, join_some

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from pyclassify.spool.upload_thread import UploadThread

NO_STATUS_NOTE = "The run was made, and could not be given a final status."
_ATTEMPTS_TAG = "attempts"  # how often training was started in a run
_END_TIMEOUT_SECONDS = 60.0  # for the server to take what is left when the run ends
STOP_TIMEOUT_SECONDS = 4.0  # if a signal ends the run: its sender may soon kill this process
# MLflow's codes for a server that is not there, or not well; other codes are the server's answer.
_OFFLINE_CODES = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "IO_ERROR")


class SpooledRun:
    """A run that this process writes to.

    Args:
        folder: Its folder in the spool.
        tracking_uri: Where it is uploaded; empty if another process uploads it.
        active: Whether it is MLflow's active run too.

    Attributes:
        client: A client of the spool, which logs to the run.
        upload_thread: Uploads the run; None if another process does.
        attempts: How often training was started in the run, with this time.

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
        self.client.update_run(self.run_id, status="RUNNING")

    @property
    def experiment_id(self) -> str:
        """The experiment's id."""
        return str(self.get_run().info.experiment_id)

    @property
    def server_id(self) -> str:
        """The run's id at the server: another one if the run was begun without the server."""
        return (self.upload_thread and self.upload_thread.server_id) or self.run_id

    def get_run(self) -> "Run":
        """Get the run, as MLflow's entity."""
        return self.client.get_run(self.run_id)

    def get_server_client(self) -> "MlflowClient":
        """Get a client of the server, or of the spool if another process uploads the run."""
        from mlflow import MlflowClient

        return MlflowClient(self.tracking_uri) if self.tracking_uri else self.client

    def is_offline(self) -> bool:
        """Whether what is logged does not reach the server at the moment."""
        return self.upload_thread is None or bool(self.upload_thread.last_error)

    def append(self, record: records.Record) -> None:
        """Append a record of a kind that MLflow's store does not have."""
        from pyclassify.spool.writer import open_writer

        open_writer(self.folder).append(record)

    def sync(self) -> None:
        """Have the disk store what was logged, unless the run is over.

        Raises:
            OSError: The disk takes nothing at the moment.
        """
        from pyclassify.spool.writer import open_writer

        if self._is_over:
            return
        writer = open_writer(self.folder)
        if not writer.flush():
            raise OSError(f"{self.folder} can't be written, so that the log would be behind")
        writer.sync()

    def close(self, status: str, reason: str = "") -> bool:
        """Give the run its final status and upload what is left; returns whether nothing is left.

        Args:
            status: The final status; empty if another process sets it.
            reason: Why a run is FAILED or KILLED, for the tag `status_reason`.

        Raises:
            OSError: Of a run that was to be FINISHED something that was logged is lost.
        """
        if reason:
            self.client.set_tag(self.run_id, records.REASON_TAG, reason)
        if status:
            self.client.set_terminated(self.run_id, status)
        if self.upload_thread is None:
            return True
        is_stopped = status in ("", "KILLED")
        if self.upload_thread.finish(STOP_TIMEOUT_SECONDS if is_stopped else _END_TIMEOUT_SECONDS):
            self.upload_thread.remove_copies(is_over=bool(status))
            return True
        self._report_unsent(self.upload_thread)
        if status == "FINISHED" and self.upload_thread.writer.list_pending():
            raise OSError(f"{self.folder} can't be written, and some of what was logged is lost")
        return False

    def release(self) -> None:
        """Close the spool and release its lock, and take the run off MLflow's list of active runs.

        MLflow gives the runs of that list the status FINISHED when Python exits.
        """
        from mlflow.tracking._tracking_service import utils

        from pyclassify.spool.writer import close_writer

        if self._is_active:
            _leave_active_run()
        # MLflow finds a run's artifacts by its id alone, in whichever store the run is.
        utils._artifact_repos_cache.pop(self.run_id, None)
        close_writer(self.folder)
        lock.release(self.folder)
        self._is_over = True

    def _report_unsent(self, upload_thread: "UploadThread") -> None:
        size, files = upload_thread.find_unsent()
        unsent = f"{size:,} bytes" if size else join_some(files)
        message = (
            f"{unsent} of what run {self.run_id} logged have not reached {mask(self.tracking_uri)} "
            f"({upload_thread.last_error or 'it is slow'}); they are in {self.folder}, and when it "
            f"can be reached: pyclassify sync {self.folder}"
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
    """Open a run for writing, or make one; without the server, too.

    Args:
        run_id: The run that `mlflow run` made; None makes a run.
        experiment_name: The experiment of a run that is made here.
        run_name: The run's name; without it MLflow's random one, `away-from-<time>` where
            the server can't be reached, or `spooled-<id>` in a spool that another process uploads.
        tags: Tags to set.
        tracking_uri: The server; or a spool, which another process uploads.
        root: The folder of spools; not used if `tracking_uri` is a spool.

    Raises:
        RunLockedError: Another process writes to the run.
        OSError: The spool can't be written. A run that was made here is FAILED then.
        ValueError: A name is too long, or the experiment is deleted.
        mlflow.exceptions.MlflowException: The server refuses, or is not one of MLflow's.
    """
    import mlflow
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pyclassify.spool.experiments import check_names, open_experiment
    from pyclassify.spool.store import parse_spool_uri, register_scheme
    from pyclassify.spool.store_errors import describe_server_error, is_final
    from pyclassify.utils.mlflow_settings import limit_requests, short_request_limits

    register_scheme()
    limit_requests()
    mlflow.set_tracking_uri(tracking_uri)
    if run_id is None:
        check_names(experiment_name, run_name, tags)
    is_spool = tracking_uri.startswith("spool:")
    root = parse_spool_uri(tracking_uri) if is_spool else root
    if run_id is not None:  # before the server is told that the run runs
        lock.acquire(root / run_id)
    if is_spool:
        if run_id is None:
            run_id = _create_in_spool(tracking_uri, experiment_name, run_name, tags)
        return SpooledRun(root / run_id)
    try:
        with short_request_limits():  # before any request that may be carried out without an answer
            MlflowClient(tracking_uri).search_experiments(max_results=1)
        if run_id is None:
            experiment_id = open_experiment(MlflowClient(tracking_uri), experiment_name)
            if experiment_name:
                mlflow.set_experiment(experiment_id=experiment_id)
        return _open_at_server(run_id is None, run_name, tags, tracking_uri, root)
    except MlflowException as error:
        if error.error_code not in _OFFLINE_CODES or is_final(error, run_id is None):
            raise
        warnings.warn(
            f"the tracking server {mask(tracking_uri)} can't be reached "
            f"({describe_server_error(error)}); what is logged is kept in {root} and delivered "
            "when it can",
            stacklevel=2,
        )
    folder = _create_offline(run_id, experiment_name, run_name, tags, tracking_uri, root)
    return SpooledRun(folder, tracking_uri)


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
            except Exception:  # the server's, which the error may be about
                error.add_note(NO_STATUS_NOTE)
        raise


def _leave_active_run() -> None:
    """Take the run off MLflow's list of active runs, which are FINISHED when Python exits."""
    import mlflow

    if stack := mlflow.tracking.fluent._active_run_stack.get():
        stack.pop()


def _fail_new_run(client: "MlflowClient", tags: dict[str, Any], error: BaseException) -> None:
    """Give a run that was made and can't be opened its final status."""
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
    """Create a run in a spool that another process uploads; returns its id."""
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
    """Create a spool without the server, unless there is one."""
    import uuid

    from mlflow.tracking.context.registry import resolve_tags

    folder = root / (run_id or uuid.uuid4().hex)
    if records.is_spool(folder):
        return folder
    experiment_id = os.environ.get("MLFLOW_EXPERIMENT_ID") if run_id else None
    return records.create_spool(
        folder,
        experiment_id or f"name:{_choose_experiment(experiment_name)}",
        run_name or f"away-from-{int(time.time())}",
        resolve_tags(tags),
        int(time.time() * 1000),
        tracking_uri,
        given_id=run_id is not None,
    )


def _choose_experiment(experiment_name: str | None) -> str:
    return experiment_name or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
