"""Enforce the final status of a run that was stopped, against `mlflow run`.

`mlflow run` means to leave a status that the training set, but compares its name with numbers
(`mlflow.projects._maybe_set_run_terminated`, MLflow 3.17). It marks a run as FAILED whenever its
process exits with an error. So a run that was KILLED needs a process that outlives both and
corrects the status. This module is that process's program.
"""

import os
import subprocess
import sys
import time

TIMEOUT_SECONDS = 30.0  # for `mlflow run` to set its status, once the training has exited
_POLL_SECONDS = 0.2


def start_enforcing_status(run_id: str, status: str) -> None:
    """Start a process that enforces a run's status, in a session of its own.

    Signals to this process's group don't reach that process.

    Args:
        run_id: A run in the current store.
        status: The status that the run has.
    """
    import mlflow

    subprocess.Popen(
        [sys.executable, "-m", __name__, run_id, status, str(os.getpid())],
        env={**os.environ, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def enforce_final_status(run_id: str, status: str, parent: int) -> None:
    """Wait until another process ends the run with another status, and restore its status.

    Args:
        run_id: The run.
        status: The run's final status.
        parent: The id of the process that set it. The wait ends `TIMEOUT_SECONDS` after its exit.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        if deadline is None and os.getppid() != parent:
            deadline = time.monotonic() + TIMEOUT_SECONDS
        current = client.get_run(run_id).info.status
        if current in ("FAILED", "FINISHED"):
            client.set_terminated(run_id, status)
        if current != status:  # restored, or the run was resumed
            return
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    enforce_final_status(sys.argv[1], sys.argv[2], parent=int(sys.argv[3]))
