"""Which MLflow run this process writes to, and the status that it leaves.

No torch here: a run must be told its end even when torch was never loaded.
"""

import os
import re
import threading
from collections.abc import Callable
from typing import Any

from pyclassify.tracking import insist

# What MLflow calls a run that nobody named: "adjective-noun-number".
_RANDOM_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")

# Set to the run of a job of the SLURM backend (pyclassify.slurm.script): a stop may be its time
# limit or its cancelling, which SLURM knows, and the job's script gives the run its status by that.
_BY_SLURM = "PYCLASSIFY_STATUS_BY_SLURM"
_LEFT = "left as it is"

_lock = threading.Lock()
_given: str | None = None  # the run that `mlflow run` made
_open: str | None = None  # MLflow's active run is each thread's own; the end may come from any
_marked: str | None = None
_before_end: list[Callable[[], None]] = []
_after_end: list[Callable[[], None]] = []


def is_rank_zero() -> bool:
    """Whether this process is the first of its job, as launchers say it in the environment."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    # In a shell of srun's, what Lightning launches has that shell's SLURM_PROCID.
    ranks = ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(name, 0)) == 0 for name in ranks)


def adopt() -> bool:
    """Take the run that `mlflow run` made for this process's own, if there is one.

    Returns:
        Whether there is.
    """
    global _given, _marked
    _given, _marked = os.environ.get("MLFLOW_RUN_ID"), None
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


def start(experiment_name: str | None, run_name: str | None, tags: dict[str, Any] | None) -> Any:
    """Go on with the adopted run, or make one.

    Args:
        experiment_name: The experiment of a run made here; MLFLOW_EXPERIMENT_NAME's, or MLflow's
            default, without it. A run that exists stays in its own.
        run_name: The run's name, kept from being MLflow's random one.
        tags: Tags to set.

    Returns:
        The active `mlflow.ActiveRun`.
    """
    import mlflow

    global _open
    if _open is None:
        adopt()
    if experiment_name and _given is None:
        mlflow.set_experiment(experiment_name)
    run = mlflow.active_run() or mlflow.start_run(run_name=run_name, tags=tags)
    _open = run.info.run_id
    return run


def name(run_name: str) -> None:
    """Name the open run, unless a person did."""
    import mlflow

    client = mlflow.MlflowClient()
    if _open and _RANDOM_NAME.fullmatch(client.get_run(_open).info.run_name or ""):
        client.update_run(_open, name=run_name)


def before_end(stop: Callable[[], None]) -> None:
    """Have something called, from whichever thread, before the open run gets its final status."""
    _before_end.append(stop)


def after_end(finish: Callable[[], None]) -> None:
    """Have something called once the open run has its final status: what may take its time."""
    _after_end.append(finish)


def mark(status: str) -> None:
    """Give this process's run its final status; the first call counts, from whichever thread.

    Args:
        status: FINISHED, FAILED or KILLED.
    """
    global _marked
    with _lock:
        run_id = _open or _given
        if run_id is None or _marked is not None or not is_rank_zero():
            return
        while _before_end:
            _before_end.pop()()
        import mlflow

        if status == "KILLED" and os.environ.get(_BY_SLURM) == run_id:
            _marked = _LEFT
        else:
            mlflow.MlflowClient().set_terminated(run_id, status)
            _marked = status
            if status == "KILLED" and _given is not None:
                insist.start(run_id, status)
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
        import mlflow

        if _marked == _LEFT:
            # Any status written now, as `end_run` does, may overwrite the one of the job's script.
            mlflow.tracking.fluent._active_run_stack.get().clear()
        else:
            mlflow.end_run(_marked or status)
    _given = _open = None
    os.environ.pop("MLFLOW_RUN_ID", None)
