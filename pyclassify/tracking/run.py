"""Which MLflow run this process writes to, and the status that it leaves.

No torch here: a run must be told its end even when torch was never loaded.
"""

import os
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyclassify.spool import spooled_run
from pyclassify.spool.lock import RunLockedError
from pyclassify.spool.spooled_run import SpooledRun
from pyclassify.tracking import final_status
from pyclassify.utils.launcher import SPOOL_ENV, STATUS_BY_SLURM_ENV, is_rank_zero
from pyclassify.utils.masking import mask

# What MLflow calls a run that nobody named: "adjective-noun-number".
_RANDOM_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")
_LEFT = "left as it is"


_lock = threading.Lock()


_given: str | None = None  # the run that `mlflow run` made


_open: SpooledRun | None = None


_latest: str | None = None  # the id of either, also after its end


_marked: str | None = None


_before_end: list[Callable[[], None]] = []


_after_end: list[Callable[[], None]] = []


def adopt() -> bool:
    """Take the run that `mlflow run` made for this process's own, if there is one.

    Returns:
        Whether there is.
    """
    global _given, _latest, _marked
    _given, _marked = os.environ.get("MLFLOW_RUN_ID"), None
    _latest = _given
    return _given is not None


def hand_over(info: Any) -> dict[str, str]:
    """The environment by which another process adopts a run, as `mlflow run` would set it.

    Args:
        info: The run's `RunInfo`.
    """
    import mlflow

    return {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_RUN_ID": info.run_id,
        "MLFLOW_EXPERIMENT_ID": info.experiment_id,
    }


def start(
    experiment_name: str | None,
    run_name: str | None,
    tags: dict[str, Any] | None,
    tracking_uri: str | None = None,
    save_dir: str = "runs",
) -> SpooledRun:
    """Go on with the adopted run, or make one; and deliver from now on what is written of it.

    Args:
        experiment_name: The experiment of a run made here; MLFLOW_EXPERIMENT_NAME's, or MLflow's
            default, without it. A run that exists stays in its own.
        run_name: The run's name, kept from being MLflow's random one.
        tags: Tags to set.
        tracking_uri: The server, which may be away; or a spool that another process delivers.
            MLflow's own choice without it.
        save_dir: What is logged is written first into `spool` in this folder, or into the folder
            that PYCLASSIFY_SPOOL names.

    Returns:
        The run, open.

    Raises:
        RunLockedError: Another process writes to it; it stays as it is.
    """
    global _latest, _marked, _open
    if _open is None:
        import mlflow

        adopt()
        uri = tracking_uri or mlflow.get_tracking_uri()
        root = spool_root(save_dir).absolute()
        try:
            _open = spooled_run.open_run(_given, experiment_name, run_name, tags, uri, root)
        except RunLockedError:
            _marked = _LEFT  # its status is that of who holds it
            raise
        _latest = _open.run_id
    return _open


def spool_root(save_dir: str | Path) -> Path:
    """The folder of the spools of runs that are saved in a folder, or PYCLASSIFY_SPOOL's."""
    return Path(os.environ.get(SPOOL_ENV) or Path(save_dir, "spool"))


def name(run_name: str) -> None:
    """Name the open run, unless a person did."""
    if _open and _RANDOM_NAME.fullmatch(_open.read().info.run_name or ""):
        _open.client.update_run(_open.run_id, name=run_name)


def before_end(stop: Callable[[], None]) -> None:
    """Have something called, from whichever thread, before the open run gets its final status."""
    _before_end.append(stop)


def after_end(finish: Callable[[], None]) -> None:
    """Have something called once the open run has its final status: what may take its time."""
    _after_end.append(finish)


def current() -> str | None:
    """The run that someone may go on with by hand; a job's own script sees to that of a job."""
    return None if os.environ.get(STATUS_BY_SLURM_ENV) == _latest else _latest


def mark(status: str) -> None:
    """Give this process's run its final status; the first call counts, from whichever thread.

    Args:
        status: FINISHED, FAILED or KILLED.
    """
    global _marked
    with _lock:
        run_id = _open.run_id if _open else _given
        if run_id is None or _marked is not None or not is_rank_zero():
            return
        while _before_end:
            _before_end.pop()()
        left = status == "KILLED" and os.environ.get(STATUS_BY_SLURM_ENV) == run_id
        _marked = _LEFT if left else status
        if _open is not None:
            delivered = _open.close("" if left else status)
        elif not left:
            import mlflow

            mlflow.MlflowClient().set_terminated(run_id, status)
            delivered = True
        if status == "KILLED" and not left and _given is not None and delivered:
            final_status.start_enforcing(run_id, status)
        while _after_end:
            _after_end.pop()()


def end(status: str) -> None:
    """Give this process's run its final status unless it has one, and let go of it.

    Only the thread that started the run can take it off MLflow's own list; left there, it would
    be marked FINISHED when Python exits.

    Args:
        status: FINISHED, FAILED or KILLED.
    """
    global _given, _open
    mark(status)
    if _open is not None:
        _open.let_go()
    _given = _open = None
    os.environ.pop("MLFLOW_RUN_ID", None)


def attempt(what: str, make: Callable[..., Any], *args: Any) -> Any:
    """Make something that a run can do without; a failure costs a warning and gives None.

    Args:
        what: Its name, for the warning.
        make: Makes it.
        args: What `make` is called with.
    """
    try:
        return make(*args)
    except Exception as error:
        if is_rank_zero():
            reason = mask(f"{type(error).__name__}: {error}")
            warnings.warn(f"{what} can't be made ({reason}); the run goes on without", stacklevel=2)
        return None
