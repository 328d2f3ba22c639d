"""Which MLflow run this process writes to, and the status that it leaves.

No torch here: a run must be told its end even when torch was never loaded.
"""

import os
import re
import threading
from typing import Any

# What MLflow calls a run that nobody named: "adjective-noun-number".
_RANDOM_NAME = re.compile(r"[a-z]+-[a-z]+-\d+")

_lock = threading.Lock()
_open: str | None = None  # MLflow's active run is each thread's own; the end may come from any


def is_rank_zero() -> bool:
    """Whether this process is the first of its job, as launchers say it in the environment."""
    ranks = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return int(next((os.environ[name] for name in ranks if name in os.environ), "0")) == 0


def start(experiment_name: str | None, run_name: str | None, tags: dict[str, Any] | None) -> Any:
    """Go on with the run that `mlflow run` made, or make one.

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
    if experiment_name and not os.environ.get("MLFLOW_RUN_ID"):
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


def end(status: str) -> None:
    """Give this process's run its final status; the first call counts, from whichever thread.

    A run that `mlflow run` made counts as this process's own even before it was started here.

    Args:
        status: FINISHED, FAILED or KILLED.
    """
    global _open
    with _lock:
        run_id = _open or os.environ.get("MLFLOW_RUN_ID")
        _open = None
        os.environ.pop("MLFLOW_RUN_ID", None)
        if run_id is None or not is_rank_zero():
            return
        import mlflow

        active = mlflow.active_run()
        if active is not None and active.info.run_id == run_id:
            mlflow.end_run(status)
        else:
            mlflow.MlflowClient().set_terminated(run_id, status)
