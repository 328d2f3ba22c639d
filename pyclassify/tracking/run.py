"""The MLflow run of this process: adopt or start the run, and set its final status.

This module imports neither torch nor MLflow, so that a run gets its final status even if the
process ends before they are imported.
"""

import atexit
import os
import re
import sys
import threading
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.spool import spooled_run
from pyclassify.spool.lock import RunLockedError
from pyclassify.spool.records import REASON_TAG, START_TAG
from pyclassify.spool.spooled_run import SpooledRun
from pyclassify.tracking import monitor
from pyclassify.tracking.monitor import Monitor
from pyclassify.utils import launcher
from pyclassify.utils.files import check_writable, describe_disk_error, is_disk_error
from pyclassify.utils.launcher import SPOOL_ENV, STATUS_BY_SLURM_ENV, is_rank_zero
from pyclassify.utils.text import format_reason

if TYPE_CHECKING:
    from mlflow.entities import RunInfo

# The names that MLflow generates for runs without a name: "adjective-noun-number".
_RANDOM_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
_UNCHANGED = "unchanged"  # reported as the final status if another process sets it

_lock = threading.Lock()
_adopted_id: str | None = None  # of the run that `mlflow run` created
_open_run: SpooledRun | None = None
_latest_id: str | None = None  # of the adopted or open run, also after its end
_final_status: str | None = None
_failures: list[str] = []  # errors that make the run FAILED when it ends
_monitor: Monitor | None = None
_watches_exit = False
_error_at_start: object = None  # the last uncaught error of this interpreter
_before_end: list[Callable[[], None]] = []
_after_end: list[Callable[[], None]] = []
_after_success: list[Callable[[bool], None]] = []


def adopt_run() -> bool:
    """Adopt the run that `mlflow run` created for this process, by MLFLOW_RUN_ID.

    Returns:
        Whether there is such a run.
    """
    global _adopted_id, _latest_id, _final_status
    _adopted_id, _final_status = os.environ.get("MLFLOW_RUN_ID"), None
    _latest_id = _adopted_id
    _failures.clear()
    if _adopted_id is not None:
        _start_monitor(
            run_id=_adopted_id, enforces=True, spool_root=_locate(find_spool_root("runs"))
        )
    return _adopted_id is not None


def watch_exit() -> None:
    """Have the monitor check the run's status against this process's exit code.

    Call it in a process that makes one run: the monitor then waits until the process has exited.
    """
    global _watches_exit
    _watches_exit = True


def _start_monitor(**facts: Any) -> None:
    """Start the monitor of this process's run, unless there is one or SLURM watches the run."""
    global _monitor
    is_watched = _adopted_id is not None and os.environ.get(STATUS_BY_SLURM_ENV) == _adopted_id
    if _monitor is None and not is_watched and is_rank_zero():
        try:
            _monitor = monitor.start(watches_exit=_watches_exit, **facts)
        except OSError as error:  # too many processes
            warnings.warn(
                f"could not start the process that monitors the run ({error}); if this process is "
                "killed, the run stays RUNNING",
                stacklevel=3,
            )


def _report(**message: Any) -> None:
    """Send a message to the run's monitor, if there is one."""
    if _monitor is not None:
        _monitor.report(**message)


def _close_monitor(is_abandoned: bool = False) -> None:
    """Close the pipe to the monitor, which then sets the status if needed, and exits."""
    global _monitor
    if _monitor is not None and (is_abandoned or not _watches_exit):
        _monitor.close()
        _monitor = None


def handle_crashes() -> None:
    """Restore the crash handlers of the run's monitor after a Trainer has reset all handlers."""
    if _monitor is not None:
        _monitor.handle_crashes()


def _locate(folder: Path) -> str:
    return str(folder.absolute())


def make_run_environment(info: "RunInfo") -> dict[str, str]:
    """Make the environment variables that `mlflow run` sets, by which a process adopts a run.

    Args:
        info: The run's info.
    """
    import mlflow

    return {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_RUN_ID": info.run_id,
        "MLFLOW_EXPERIMENT_ID": info.experiment_id,
    }


def start_run(
    experiment_name: str | None,
    run_name: str | None,
    tags: dict[str, Any] | None,
    tracking_uri: str | None = None,
    save_dir: str = "runs",
) -> SpooledRun:
    """Open the adopted run or create a run, and start to upload what is logged to it.

    Args:
        experiment_name: The experiment of a new run; by default MLFLOW_EXPERIMENT_NAME, or
            MLflow's default experiment. An adopted run stays in its experiment.
        run_name: The run's name; by default a random one, which `name_run` replaces.
        tags: Tags to set.
        tracking_uri: The tracking server, which may be unreachable, or a spool that another
            process uploads; by default MLflow's tracking URI.
        save_dir: The folder of runs. Its subfolder `spool` is the write-ahead log, unless
            PYCLASSIFY_SPOOL names another folder.

    Returns:
        The open run.

    Raises:
        RunLockedError: Another process writes to the run. The run is not changed.
        OSError: `save_dir` or the spool can't be written. No run is created.
    """
    global _latest_id, _open_run, _error_at_start
    if _open_run is None:
        import mlflow

        from pyclassify.spool.artifact_store import parse_spool_uri

        adopt_run()
        uri = tracking_uri or mlflow.get_tracking_uri()
        is_spool = uri.startswith("spool:")
        root = parse_spool_uri(uri) if is_spool else find_spool_root(save_dir).absolute()
        for folder in (root,) if "://" in save_dir else (Path(save_dir).absolute(), root):
            check_writable(folder)
        start_id = ""
        if _adopted_id is None:
            start_id = uuid.uuid4().hex
            tags = {**(tags or {}), START_TAG: start_id}
        where = {"spool_root": str(root), "tracking_uri": uri}
        _start_monitor(start_id=start_id, **where)
        _report(**where)
        try:
            _open_run = spooled_run.open_run(
                _adopted_id, experiment_name, run_name, tags, uri, root
            )
        except BaseException as error:
            _report_failed_start(error)
            raise
        _latest_id = _open_run.run_id
        launcher.publish_run(find_spool_root(save_dir), _latest_id)
        _report(run_id=_latest_id)
        _error_at_start = getattr(sys, "last_value", None)
        atexit.register(_end_at_exit)  # runs before MLflow's handler, which sets FINISHED
    return _open_run


def _report_failed_start(error: BaseException) -> None:
    """Have the monitor end a run that could not be opened, if no other process ends it."""
    global _final_status
    if isinstance(error, RunLockedError):
        _final_status = _UNCHANGED  # the process that has locked the run sets its status
    if spooled_run.NO_STATUS_NOTE in getattr(error, "__notes__", ()):
        _report(expected="FAILED", reason=format_reason(error), is_abandoned=True)
        _close_monitor(is_abandoned=True)
    elif isinstance(error, RunLockedError) or _adopted_id is None:
        _report(final=_UNCHANGED)
        _close_monitor()


def _end_at_exit() -> None:
    """End a run that a script or a notebook left open."""
    error = getattr(sys, "last_value", None)
    if error is not None and error is not _error_at_start:
        end_run("FAILED", format_reason(error))
    else:
        end_run("FINISHED")


def find_spool_root(save_dir: str | Path) -> Path:
    """Find the folder of spools: PYCLASSIFY_SPOOL if it is set, else `spool` in `save_dir`."""
    return Path(os.environ.get(SPOOL_ENV) or Path(save_dir, "spool"))


def name_run(name: str) -> None:
    """Name the open run, unless the user has named it."""
    if _open_run and _RANDOM_NAME.fullmatch(_open_run.get_run().info.run_name or ""):
        _open_run.client.update_run(_open_run.run_id, name=name)


def call_before_end(function: Callable[[], None]) -> None:
    """Register a function to call, in any thread, before the open run gets its final status."""
    _before_end.append(function)


def call_after_end(function: Callable[[], None]) -> None:
    """Register a function to call, in any thread, after the open run has its final status."""
    _after_end.append(function)


def call_after_success(function: Callable[[bool], None]) -> None:
    """Register a function to call once the open run is FINISHED.

    Args:
        function: A function of whether everything is uploaded.
    """
    _after_success.append(function)


def get_resumable_run() -> str | None:
    """Get the id of the run to resume by hand; None for a SLURM job, which is requeued."""
    return None if os.environ.get(STATUS_BY_SLURM_ENV) == _latest_id else _latest_id


def set_final_status(status: str, reason: str = "") -> None:
    """Set the final status of this process's run; only the first call counts, in any thread.

    Args:
        status: FINISHED, FAILED or KILLED. After a call of `fail_later`, FINISHED becomes FAILED.
        reason: Why the run is FAILED or KILLED, for its tag `status_reason`.
    """
    global _final_status
    if status == "KILLED":
        _report(expected=status, reason=reason)  # this process may be ended before the rest
    with _lock:
        run_id = _open_run.run_id if _open_run else _adopted_id
        if run_id is None or _final_status is not None or not is_rank_zero():
            return
        handle_crashes()
        while _before_end:
            warn_on_error("clean up at the end of the run", _before_end.pop())
        if status == "FINISHED" and _failures:
            status, reason = "FAILED", describe_failures()
        left_to_slurm = status == "KILLED" and os.environ.get(STATUS_BY_SLURM_ENV) == run_id
        uploaded = True
        if _open_run is not None:
            uploaded = _open_run.close(
                "" if left_to_slurm else status, "" if left_to_slurm else reason
            )
        elif not left_to_slurm:
            _terminate(run_id, status, reason)
        _final_status = _UNCHANGED if left_to_slurm else status
        _report(final=_final_status, enforces=_adopted_id is not None and uploaded)
        while _after_success:
            function = _after_success.pop()
            if status == "FINISHED":
                _warn_if_failing(function, uploaded)
        while _after_end:
            warn_on_error("clean up at the end of the run", _after_end.pop())


def _warn_if_failing(function: Callable[[bool], None], uploaded: bool) -> None:
    """Call a function of `call_after_success`; its error does not fail the run, which has ended."""
    try:
        function(uploaded)
    except Exception as error:
        warnings.warn(
            f"could not remove checkpoints that are not needed ({format_reason(error)}); they stay "
            "in the folder of the run, which is FINISHED",
            stacklevel=3,
        )


def _terminate(run_id: str, status: str, reason: str) -> None:
    """Set the final status of a run that was not opened."""
    import mlflow

    client = mlflow.MlflowClient()
    if reason:
        client.set_tag(run_id, REASON_TAG, reason)
    client.set_terminated(run_id, status)


def end_run(status: str, reason: str = "") -> None:
    """Set the final status of this process's run unless it has one, and release the run.

    Call it in the thread that started the run: only that thread can remove the run from MLflow's
    list of active runs, which MLflow marks as FINISHED when Python exits.

    Args:
        status: FINISHED, FAILED or KILLED.
        reason: Why the run is FAILED or KILLED.
    """
    global _adopted_id, _open_run
    try:
        set_final_status(status, reason)
    except BaseException:
        _report(expected="FAILED" if status == "FINISHED" else status, is_abandoned=True)
        _report(reason=reason or "could not log the end of the run")
        _close_monitor(is_abandoned=True)
        raise
    finally:
        if _open_run is not None:
            _open_run.release()
            atexit.unregister(_end_at_exit)
        _adopted_id = _open_run = None
        os.environ.pop("MLFLOW_RUN_ID", None)
        _close_monitor()


def describe_failures() -> str:
    """Describe the required results that could not be logged; empty if there are none."""
    return "; ".join(_failures)


def fail_later(action: str, reason: str | BaseException) -> None:
    """Warn of an error now, and mark the run as FAILED when it ends; the training continues.

    Args:
        action: What could not be done, as an infinitive: "log the parameters".
        reason: Why, or the error.
    """
    if isinstance(reason, BaseException):
        is_disk = is_disk_error(reason)
        reason = describe_disk_error(reason) if is_disk else format_reason(reason)
    message = f"could not {action} ({reason})"
    if is_rank_zero():
        _failures.append(message)
        warnings.warn(f"{message}; the run will be FAILED when it ends", stacklevel=2)


def warn_on_error(
    action: str,
    function: Callable[..., Any],
    *args: Any,
    is_required: bool = False,
    has_fallback: bool = False,
) -> Any:
    """Call a function and turn its error into a warning, so that the training continues.

    Args:
        action: What the function does, as an infinitive, for the warning: "plot the figures".
        function: The function.
        args: Its arguments.
        is_required: Whether an error also makes the run FAILED when it ends. A disk error always
            does, since it is an error of the machine and not of the network or the data.
        has_fallback: Whether the result is saved in another way after an error, so that a disk
            error does not make the run FAILED either.

    Returns:
        The function's result, or None after an error.
    """
    try:
        return function(*args)
    except Exception as error:
        is_disk = is_disk_error(error)
        if is_required or (is_disk and not has_fallback):
            fail_later(action, error)
        elif is_rank_zero():
            reason = describe_disk_error(error) if is_disk else format_reason(error)
            message = f"could not {action} ({reason}); the run continues without this result"
            warnings.warn(message, stacklevel=2)
        return None
