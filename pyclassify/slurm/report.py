"""What a job tells MLflow of its own run, at its start and its end.

Copied into the run's folder and started there by the job's own Python, which needs to have mlflow
and nothing else:

    python -m pyclassify.slurm.report start
    python -m pyclassify.slurm.report end EXIT_CODE SAID STDOUT STDERR
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pyclassify.slurm import description, reconcile


def main(args: Sequence[str]) -> int:
    """Report the start or the end of this job.

    Returns:
        The exit code; 1 where nothing is to be started.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    run_id, job_id = os.environ["MLFLOW_RUN_ID"], os.environ["SLURM_JOB_ID"]
    if args[0] == "start":
        return start(run_id, job_id)
    code, said, *logs = args[1:]
    ending = reconcile.of_script(int(code), said)
    return end(run_id, job_id, ending, [Path(log) for log in logs])


def start(run_id: str, job_id: str) -> int:
    """Say that the run runs, in which job and where."""
    from mlflow import MlflowClient

    client = MlflowClient()
    run = client.get_run(run_id)
    status, known = run.info.status, run.data.tags.get("slurm_job_id", "")
    again = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
    if status in reconcile.FINAL and not again:
        sys.stderr.write(f"the run {run_id} is {status} already; nothing is started\n")
        return 1
    client.update_run(run_id, status="RUNNING")
    tags = {
        # As sbatch gave it, it may have the cluster's name too.
        "slurm_job_id": known if known.partition(";")[0] == job_id else job_id,
        "slurm_nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
        "slurm_partition": os.environ.get("SLURM_JOB_PARTITION", ""),
    }
    if again:  # what was said of its first end is no more
        tags[reconcile.BY] = ""
        description.forget(client, run, description.of_job(job_id))
    reconcile.tag(client, run_id, tags)
    return 0


def end(run_id: str, job_id: str, ending: reconcile.Ending, logs: list[Path]) -> int:
    """Give the run its final status, unless the training has."""
    from mlflow import MlflowClient

    client = MlflowClient()
    if ending.status not in reconcile.FINAL:  # it is to start again
        client.update_run(run_id, status=ending.status)
        return 0
    status = reconcile.settle(client, run_id, ending, job_id, logs)
    sys.stdout.write(f"run {run_id}: {status}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
