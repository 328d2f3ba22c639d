"""The MLflow run of this process: adopt or start it, and give it its final status.

This module loads neither torch nor MLflow: a run gets its final status even if a process ends
before it has loaded them.
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
from pyclassify.utils.masking import mask
from pyclassify.utils.text import format_reason

if TYPE_CHECKING:
    from mlflow.entities import RunInfo

# What MLflow calls a run that nobody named: "adjective-noun-number".
_RANDOM_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
_UNCHANGED = "unchanged"  # in place of a final status that another process sets

_lock = threading.Lock()
_adopted: str | None = None  # the id of the run that `mlflow run` started
_open: SpooledRun | None = None
_latest: str | None = None  # the id of either, also after its end
_final_status: str | None = None
_missing: list[str] = []  # what the run was to have and has not
_monitor: Monitor | None = None
_watches_exit = False
_error_at_start: object = None  # the last error of this interpreter that nobody caught
_before_end: list[Callable[[], None]] = []
_after_end: list[Callable[[], None]] = []


def adopt_run() -> bool:
    """Adopt the run that `mlflow run` started for this process.

    Returns:
        Whether there is such a run.
    """
    global _adopted, _latest, _final_status
    _adopted, _final_status = os.environ.get("MLFLOW_RUN_ID"), None
    _latest = _adopted
    _missing.clear()
    if _adopted is not None:
        _start_monitor(run_id=_adopted, enforces=True, spool_root=_locate(find_spool_root("runs")))
    return _adopted is not None


def watch_exit() -> None:
    """Have the run's status agree with this process's exit code, which comes after it.

    For a process that makes one run: its monitor stays until it has ended.
    """
    global _watches_exit
    _watches_exit = True


def _start_monitor(**facts: Any) -> None:
    """Start the monitor of this process's run, unless there is one or something else watches it."""
    global _monitor
    is_watched = _adopted is not None and os.environ.get(STATUS_BY_SLURM_ENV) == _adopted
    if _monitor is None and not is_watched and is_rank_zero():
        try:
            _monitor = monitor.start(watches_exit=_watches_exit, **facts)
        except OSError as error:  # too many processes
            warnings.warn(
                f"nothing will set the run's status if this process is killed ({error})",
                stacklevel=3,
            )


def _report(**message: Any) -> None:
    """Report to the run's monitor, if it has one."""
    if _monitor is not None:
        _monitor.report(**message)


def _close_monitor(is_abandoned: bool = False) -> None:
    """Let the run's monitor act or end: once the run has its status, or at this process's end."""
    global _monitor
    if _monitor is not None and (is_abandoned or not _watches_exit):
        _monitor.close()
        _monitor = None


def handle_crashes() -> None:
    """Have crashes reported again to the run's monitor, once a trainer has reset all handlers."""
    if _monitor is not None:
        _monitor.handle_crashes()


def _locate(folder: Path) -> str:
    return str(folder.absolute())


def make_run_environment(info: "RunInfo") -> dict[str, str]:
    """Make the environment variables by which another process adopts a run, as `mlflow run` does.

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
    """Resume the adopted run or create a run, and upload from now on what is logged to it.

    Args:
        experiment_name: The experiment of a run created here; by default the one of
            MLFLOW_EXPERIMENT_NAME, or MLflow's default. A run that exists stays in its own.
        run_name: The run's name; by default a random one, which `name_run` replaces.
        tags: Tags to set.
        tracking_uri: The tracking server, which may be unreachable, or a spool that another
            process uploads; by default MLflow's own choice.
        save_dir: The folder whose `spool` takes what is logged first, unless PYCLASSIFY_SPOOL
            names another folder for it.

    Returns:
        The open run.

    Raises:
        RunLockedError: Another process writes to the run, which stays unchanged.
        OSError: `save_dir` or the spool can't be written; no run is made.
    """
    global _latest, _open, _error_at_start
    if _open is None:
        import mlflow

        from pyclassify.spool.store import parse_spool_uri

        adopt_run()
        uri = tracking_uri or mlflow.get_tracking_uri()
        is_spool = uri.startswith("spool:")
        root = parse_spool_uri(uri) if is_spool else find_spool_root(save_dir).absolute()
        for folder in (root,) if "://" in save_dir else (Path(save_dir).absolute(), root):
            check_writable(folder)
        start_id = ""
        if _adopted is None:
            start_id = uuid.uuid4().hex
            tags = {**(tags or {}), START_TAG: start_id}
        where = {"spool_root": str(root), "tracking_uri": uri}
        _start_monitor(start_id=start_id, **where)
        _report(**where)
        try:
            _open = spooled_run.open_run(_adopted, experiment_name, run_name, tags, uri, root)
        except BaseException as error:
            _report_failed_start(error)
            raise
        _latest = _open.run_id
        launcher.publish_run(find_spool_root(save_dir), _latest)
        _report(run_id=_latest)
        _error_at_start = getattr(sys, "last_value", None)
        atexit.register(_end_at_exit)  # before MLflow's own, which would say FINISHED
    return _open


def _report_failed_start(error: BaseException) -> None:
    """Have the monitor end a run that could not be opened, where nothing else does."""
    global _final_status
    if isinstance(error, RunLockedError):
        _final_status = _UNCHANGED  # the process that holds the run sets its status
    if spooled_run.NO_STATUS_NOTE in getattr(error, "__notes__", ()):
        _report(expected="FAILED", reason=format_reason(error), is_abandoned=True)
        _close_monitor(is_abandoned=True)
    elif isinstance(error, RunLockedError) or _adopted is None:
        _report(final=_UNCHANGED)
        _close_monitor()


def _end_at_exit() -> None:
    """End a run that a script or a notebook has left open."""
    error = getattr(sys, "last_value", None)
    if error is not None and error is not _error_at_start:
        end_run("FAILED", format_reason(error))
    else:
        end_run("FINISHED")


def find_spool_root(save_dir: str | Path) -> Path:
    """Find the folder of the spools of runs saved in `save_dir`: PYCLASSIFY_SPOOL if it is set."""
    return Path(os.environ.get(SPOOL_ENV) or Path(save_dir, "spool"))


def name_run(name: str) -> None:
    """Name the open run, unless a person named it."""
    if _open and _RANDOM_NAME.fullmatch(_open.get_run().info.run_name or ""):
        _open.client.update_run(_open.run_id, name=name)


def call_before_end(function: Callable[[], None]) -> None:
    """Call a function, in any thread, before the open run gets its final status."""
    _before_end.append(function)


def call_after_end(function: Callable[[], None]) -> None:
    """Call a function, in any thread, once the open run has its final status."""
    _after_end.append(function)


def get_resumable_run() -> str | None:
    """Get the id of the run that a person may resume; None for a SLURM job, which is requeued."""
    return None if os.environ.get(STATUS_BY_SLURM_ENV) == _latest else _latest


def set_final_status(status: str, reason: str = "") -> None:
    """Give this process's run its final status; only the first call counts, in any thread.

    Args:
        status: FINISHED, FAILED or KILLED. A run that was to be FINISHED and lacks something
            that it was to have is FAILED.
        reason: Why the run is FAILED or KILLED, for its tag `status_reason`.
    """
    global _final_status
    if status == "KILLED":
        _report(expected=status, reason=reason)  # this process may be ended before the rest
    with _lock:
        run_id = _open.run_id if _open else _adopted
        if run_id is None or _final_status is not None or not is_rank_zero():
            return
        handle_crashes()
        while _before_end:
            warn_on_error("the end of the run", _before_end.pop())
        if status == "FINISHED" and _missing:
            status, reason = "FAILED", describe_missing()
        left_to_slurm = status == "KILLED" and os.environ.get(STATUS_BY_SLURM_ENV) == run_id
        uploaded = True
        if _open is not None:
            uploaded = _open.close("" if left_to_slurm else status, "" if left_to_slurm else reason)
        elif not left_to_slurm:
            _terminate(run_id, status, reason)
        _final_status = _UNCHANGED if left_to_slurm else status
        _report(final=_final_status, enforces=_adopted is not None and uploaded)
        while _after_end:
            warn_on_error("the end of the run", _after_end.pop())


def _terminate(run_id: str, status: str, reason: str) -> None:
    """Give a run that was not opened its final status."""
    import mlflow

    client = mlflow.MlflowClient()
    if reason:
        client.set_tag(run_id, REASON_TAG, reason)
    client.set_terminated(run_id, status)


def end_run(status: str, reason: str = "") -> None:
    """Give this process's run its final status unless it has one, and release the run.

    Call it in the thread that started the run. Only that thread can remove the run from MLflow's
    list of active runs; MLflow marks those as FINISHED when Python exits.

    Args:
        status: FINISHED, FAILED or KILLED.
        reason: Why the run is FAILED or KILLED.
    """
    global _adopted, _open
    try:
        set_final_status(status, reason)
    except BaseException:
        _report(expected="FAILED" if status == "FINISHED" else status, is_abandoned=True)
        _report(reason=reason or "the run's end could not be logged")
        _close_monitor(is_abandoned=True)
        raise
    finally:
        if _open is not None:
            _open.release()
            atexit.unregister(_end_at_exit)
        _adopted = _open = None
        os.environ.pop("MLFLOW_RUN_ID", None)
        _close_monitor()


def describe_missing() -> str:
    """Describe what the run was to have and has not; empty if it has everything."""
    return "; ".join(_missing)


def fail_later(what: str, reason: str | BaseException) -> None:
    """Have the run be FAILED at its end for something that it was to have; the training goes on.

    Args:
        what: What the run lacks.
        reason: Why, or the error.
    """
    if isinstance(reason, BaseException):
        reason = _explain(reason)
    message = f"the run lacks {what} ({reason})"
    if is_rank_zero():
        _missing.append(message)
        warnings.warn(message, stacklevel=2)


def _explain(error: BaseException) -> str:
    """Describe an error in one line; of a disk, with the folder that it may be."""
    return describe_disk_error(error) if is_disk_error(error) else format_reason(error)


def fail_later_on_error(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function for something that the run was to have; an error fails the run at its end.

    Args:
        what: What the function makes.
        function: The function.
        args: Its arguments.

    Returns:
        The function's result, or None after an error.
    """
    try:
        return function(*args)
    except Exception as error:
        fail_later(what, error)
        return None


def warn_on_error(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function for something optional; an error becomes a warning.

    An error of a disk, which the next run would not have, fails the run at its end.

    Args:
        what: What the function makes, for the warning.
        function: The function.
        args: Its arguments.

    Returns:
        The function's result, or None after an error.
    """
    try:
        return function(*args)
    except Exception as error:
        if is_disk_error(error):
            fail_later(what, error)
        elif is_rank_zero():
            reason = mask(f"{type(error).__name__}: {error}")
            warnings.warn(f"{what} can't be made ({reason}); the run goes on without", stacklevel=2)
        return None
