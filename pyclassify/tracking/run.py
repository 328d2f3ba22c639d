"""The MLflow run of this process: adopt or start it, and give it its final status.

This module loads neither torch nor MLflow: a run gets its final status even if a process ends
before it has loaded them.
"""

import os
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.spool import spooled_run
from pyclassify.spool.lock import RunLockedError
from pyclassify.spool.spooled_run import SpooledRun
from pyclassify.tracking import monitor
from pyclassify.utils.launcher import SPOOL_ENV, STATUS_BY_SLURM_ENV, is_rank_zero
from pyclassify.utils.masking import mask

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
    return _adopted is not None


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
    """
    global _latest, _final_status, _open
    if _open is None:
        import mlflow

        adopt_run()
        uri = tracking_uri or mlflow.get_tracking_uri()
        root = find_spool_root(save_dir).absolute()
        try:
            _open = spooled_run.open_run(_adopted, experiment_name, run_name, tags, uri, root)
        except RunLockedError:
            _final_status = _UNCHANGED  # the process that holds the run sets its status
            raise
        _latest = _open.run_id
    return _open


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


def set_final_status(status: str) -> None:
    """Give this process's run its final status; only the first call counts, in any thread.

    Args:
        status: FINISHED, FAILED or KILLED.
    """
    global _final_status
    with _lock:
        run_id = _open.run_id if _open else _adopted
        if run_id is None or _final_status is not None or not is_rank_zero():
            return
        while _before_end:
            _before_end.pop()()
        left_to_slurm = status == "KILLED" and os.environ.get(STATUS_BY_SLURM_ENV) == run_id
        _final_status = _UNCHANGED if left_to_slurm else status
        if _open is not None:
            uploaded = _open.close("" if left_to_slurm else status)
        elif not left_to_slurm:
            import mlflow

            mlflow.MlflowClient().set_terminated(run_id, status)
            uploaded = True
        if status == "KILLED" and not left_to_slurm and _adopted is not None and uploaded:
            monitor.start_enforcing_status(run_id, status)
        while _after_end:
            _after_end.pop()()


def end_run(status: str) -> None:
    """Give this process's run its final status unless it has one, and release the run.

    Call it in the thread that started the run. Only that thread can remove the run from MLflow's
    list of active runs; MLflow marks those as FINISHED when Python exits.

    Args:
        status: FINISHED, FAILED or KILLED.
    """
    global _adopted, _open
    set_final_status(status)
    if _open is not None:
        _open.release()
    _adopted = _open = None
    os.environ.pop("MLFLOW_RUN_ID", None)


def warn_on_error(what: str, function: Callable[..., Any], *args: Any) -> Any:
    """Call a function for something optional; an error becomes a warning.

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
        if is_rank_zero():
            reason = mask(f"{type(error).__name__}: {error}")
            warnings.warn(f"{what} can't be made ({reason}); the run goes on without", stacklevel=2)
        return None
