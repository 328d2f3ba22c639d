"""Insisting on the status of a run that was stopped, against `mlflow run`.

`mlflow run` means to leave a status that the training set, but compares its name with numbers
(`mlflow.projects._maybe_set_run_terminated`, MLflow 3.17), and so calls all that exits with an
error FAILED, once it has gone. What was KILLED is KILLED again only when somebody outlives both.
"""

import os
import subprocess
import sys
import time

TIMEOUT_SECONDS = 30.0


def start_enforcing_status(run_id: str, status: str) -> None:
    """Start the process that has the last word, out of reach of the signals to this one.

    Args:
        run_id: A run of the current tracking URI.
        status: The status that it has, and shall keep.
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
    """Wait for another end and undo it; give up `TIMEOUT_SECONDS` after the parent process ended.

    Args:
        run_id: The run.
        status: The status that it shall have.
        parent: The id of the process that gave it that status.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    deadline = None
    while deadline is None or time.monotonic() < deadline:
        if deadline is None and os.getppid() != parent:
            deadline = time.monotonic() + TIMEOUT_SECONDS
        found = client.get_run(run_id).info.status
        if found in ("FAILED", "FINISHED"):
            client.set_terminated(run_id, status)
        if found != status:  # it may also run again, which is as it should be
            return
        time.sleep(0.2)


if __name__ == "__main__":
    enforce_final_status(sys.argv[1], sys.argv[2], parent=int(sys.argv[3]))
