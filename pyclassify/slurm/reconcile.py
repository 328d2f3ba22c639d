"""`pyclassify slurm reconcile`: set the status of all submitted runs, and log what their jobs used.

It checks each run that was submitted until SLURM has confirmed how the job ended. The tag
`slurm_state` then has the final state of the job, and later calls skip the run.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pyclassify.slurm import client
from pyclassify.slurm.states import JobAccounting
from pyclassify.slurm.status import (
    JOB_ID_TAG,
    STATE_TAG,
    Outcome,
    apply_outcome,
    derive_run_outcome,
    resolve_status,
)
from pyclassify.slurm.submitted_run import find_job_id, make_job_logs
from pyclassify.spool.records import FINAL_STATUSES
from pyclassify.utils.launcher import SLURM_FOLDER_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_UNKNOWN_STATE = "UNKNOWN"  # the job's final state, where SLURM does not have the job any more
_LOST = Outcome("FAILED", "SLURM has no record of the job, so how it ended is unknown")
_GRACE_SECONDS = 300.0  # after a submission, while neither squeue nor sacct may have the job
_MAX_CLOCK_SKEW_SECONDS = 60.0  # between two hosts


def reconcile_runs(args: argparse.Namespace) -> int:
    """Set the status of all submitted runs whose final job state is not confirmed yet.

    Args:
        args: `dry_run`, whether to print the changes and make none.

    Returns:
        The exit code.

    Raises:
        SlurmError: SLURM does not respond; no run is changed.
    """
    from pyclassify.tracking import search

    store = search.open_store()
    runs = [run for run in _list_submitted_runs(store) if not run.data.tags.get(STATE_TAG)]
    job_ids = {run.info.run_id: find_job_id(run) for run in runs}
    earliest_submission = {
        job_id: run.info.start_time / 1000 - _MAX_CLOCK_SKEW_SECONDS
        for run in runs
        if (job_id := job_ids[run.info.run_id])
    }
    accounting = client.list_accounting(earliest_submission)
    changed_count = 0
    for run in runs:
        job_id = job_ids[run.info.run_id]
        changes = _reconcile_run(store, run, job_id, accounting.get(job_id), args.dry_run)
        for changed, status, reason in changes:
            changed_count += 1
            before = f"{changed.info.run_id} ({changed.info.run_name}): {changed.info.status}"
            sys.stdout.write(f"run {before} -> {status}{reason and f', {reason}'}\n")
    effect = "would change" if args.dry_run else "changed"
    sys.stdout.write(f"{len(runs)} runs checked, {changed_count} {effect}\n")
    return 0


def _list_submitted_runs(store: "MlflowClient") -> Iterator["Run"]:
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    token = None
    while experiments:
        page = store.search_runs(
            experiments, f"tags.{SLURM_FOLDER_TAG} LIKE '%'", max_results=1000, page_token=token
        )
        yield from page
        if not (token := page.token):
            return


def _reconcile_run(
    store: "MlflowClient", run: "Run", job_id: str, accounting: JobAccounting | None, dry_run: bool
) -> Iterator[tuple["Run", str, str]]:
    """Reconcile a run; yields each changed run as it was before, its new status and the reason."""
    if accounting is None:
        if not _is_lost(run):
            return
        outcome, state, metrics = _LOST, _UNKNOWN_STATE, {}
    elif accounting.job.meaning.ended:
        outcome = derive_run_outcome(run, accounting.job)
        state, metrics = accounting.job.state, accounting.compute_metrics()
    else:
        yield from _follow_open_job(store, run, accounting.job.meaning.status, dry_run)
        return
    if run.info.status != "FINISHED" and _was_resubmitted(store, run):
        return
    status = (
        resolve_status(run, outcome) if accounting or run.info.status not in FINAL_STATUSES else ""
    )
    if status and status != run.info.status:
        yield run, status, outcome.reason
        if status != "FINISHED":
            yield from _terminate_children(store, run, status, dry_run)
    if not dry_run:
        if status not in ("", run.info.status) or status in ("FAILED", "KILLED"):
            logs = make_job_logs(run.data.tags, job_id).list_files()
            apply_outcome(store, run.info.run_id, outcome, job_id, logs)
        if accounting is None or accounting.attempts:  # otherwise a later call asks sacct
            _record_final_state(store, run, state, metrics)


def _is_lost(run: "Run") -> bool:
    """Whether SLURM lost the job of a run; a run of another cluster has no folder on this host."""
    folder, submitted = Path(run.data.tags[SLURM_FOLDER_TAG]), run.info.start_time / 1000
    with suppress(OSError):  # a resume touches it
        submitted = max(submitted, (folder / "job.sh").stat().st_mtime)
    return time.time() - submitted > _GRACE_SECONDS and folder.is_dir()


def _was_resubmitted(store: "MlflowClient", run: "Run") -> bool:
    """Whether the run was resumed after it was listed, and so has another job."""
    tags = store.get_run(run.info.run_id).data.tags
    return bool(tags.get(JOB_ID_TAG, "") != run.data.tags.get(JOB_ID_TAG, ""))


def _follow_open_job(
    store: "MlflowClient", run: "Run", status: str, dry_run: bool
) -> Iterator[tuple["Run", str, str]]:
    """Set a run to the status of its pending or running job, unless the training has ended."""
    current = store.get_run(run.info.run_id).info.status
    if current in (*FINAL_STATUSES, status) or current != run.info.status:
        return
    yield run, status, ""
    if not dry_run:
        store.update_run(run.info.run_id, status=status)


def _terminate_children(
    store: "MlflowClient", parent: "Run", status: str, dry_run: bool
) -> Iterator[tuple["Run", str, str]]:
    """Terminate the child runs that the job had started."""
    condition = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}'"
    for run in store.search_runs([parent.info.experiment_id], condition):
        if run.info.status not in FINAL_STATUSES:
            yield run, status, "the job of its parent ended"
            if not dry_run:
                store.set_terminated(run.info.run_id, status)


def _record_final_state(
    store: "MlflowClient", run: "Run", state: str, metrics: dict[str, float]
) -> None:
    """Log what the job used, and its final state, after which later calls skip the run."""
    from mlflow.entities import Metric, RunTag

    # The same time at each attempt, so that no value is logged twice.
    timestamp = run.info.end_time or run.info.start_time
    values = [Metric(name, value, timestamp, 0) for name, value in metrics.items()]
    store.log_batch(run.info.run_id, metrics=values, tags=[RunTag(STATE_TAG, state)])
