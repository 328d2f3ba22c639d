"""`pyclassify slurm reconcile`: make every run's status true, and tell what its job took."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyclassify.slurm import client
from pyclassify.slurm.client import Account
from pyclassify.slurm.status import STATE, Ending, becomes, find_ending, settle
from pyclassify.slurm.submitted_run import find_job_id, tail_of
from pyclassify.spool.records import FINAL_STATUSES

FORGOTTEN = "UNKNOWN"
_LOST = Ending("FAILED", "SLURM has forgotten the job, and nobody saw how it ended")
_SETTLES = 300.0  # seconds after a submission in which neither queue nor accounting may know it
_CLOCKS = 60.0  # seconds by which two hosts' clocks may differ
_PARENT = "mlflow.parentRunId"


def main(asked: argparse.Namespace) -> int:
    """Reconcile all runs that a job was submitted for, and whose end is not known for sure.

    Args:
        asked: `dry_run`, whether only to show.

    Returns:
        The exit code.

    Raises:
        SlurmError: SLURM does not answer; nothing is changed then.
    """
    from pyclassify.tracking import search

    store = search.open_store()
    runs = [run for run in _submitted(store) if not run.data.tags.get(STATE)]
    jobs = {run.info.run_id: _job_id(run) for run in runs}
    since = {
        job: run.info.start_time / 1000 - _CLOCKS for run in runs if (job := jobs[run.info.run_id])
    }
    known = client.ask(since, since)
    count: Counter[str] = Counter(looked_at=len(runs))
    for run in runs:
        job_id = jobs[run.info.run_id]
        account = known.get(job_id)
        for changed, status, words in _reconcile(store, run, job_id, account, asked.dry_run):
            count["changed"] += 1
            was = f"{changed.info.run_id} ({changed.info.run_name}): {changed.info.status}"
            sys.stdout.write(f"run {was} -> {status}{words and f', {words}'}\n")
    what = "would change" if asked.dry_run else "changed"
    sys.stdout.write(f"{count['looked_at']} runs looked at, {count['changed']} {what}\n")
    return 0


def _submitted(store: Any) -> Iterator[Any]:
    experiments = [each.experiment_id for each in store.search_experiments()]
    token = None
    while experiments:
        page = store.search_runs(
            experiments, "tags.slurm_folder LIKE '%'", max_results=1000, page_token=token
        )
        yield from page
        if not (token := page.token):
            return


def _job_id(run: Any) -> str:
    if run.info.status not in FINAL_STATUSES:  # its submission may have been killed
        return find_job_id(run)
    return str(run.data.tags.get("slurm_job_id", ""))


def _reconcile(
    store: Any, run: Any, job_id: str, account: Account | None, dry_run: bool
) -> Iterator[tuple[Any, str, str]]:
    """Make one run's status true; gives what changes: the run as it was, its status, and why."""
    if account is None:
        if not _is_lost(run):
            return
        ending, state, metrics = _LOST, FORGOTTEN, {}
    elif account.job.meaning.ended:
        ending = find_ending(account.job)
        state, metrics = account.job.state, account.metrics()
    else:
        yield from _follow(store, run, account.job.meaning.status, dry_run)
        return
    if run.info.status != "FINISHED" and _is_resubmitted(store, run):
        return
    status = becomes(run, ending) if account or run.info.status not in FINAL_STATUSES else ""
    if status and status != run.info.status:
        yield run, status, ending.words
        if status != "FINISHED":
            yield from _end_children(store, run, status, dry_run)
    if not dry_run:
        if status not in ("", run.info.status) or status in ("FAILED", "KILLED"):
            settle(store, run.info.run_id, ending, job_id, tail_of(run.data.tags, job_id).files())
        if account is None or account.attempts:  # else accounting has no row of the job yet
            _log(store, run, state, metrics)


def _is_lost(run: Any) -> bool:
    """Whether SLURM ought to know a run's job: another cluster's folder is not to be seen here."""
    folder, submitted = Path(run.data.tags["slurm_folder"]), run.info.start_time / 1000
    with suppress(OSError):  # a resume touches it
        submitted = max(submitted, (folder / "job.sh").stat().st_mtime)
    return time.time() - submitted > _SETTLES and folder.is_dir()


def _is_resubmitted(store: Any, run: Any) -> bool:
    """Whether the run was resumed since it was listed, so that its job is another one."""
    now = store.get_run(run.info.run_id).data.tags
    return bool(now.get("slurm_job_id", "") != run.data.tags.get("slurm_job_id", ""))


def _follow(store: Any, run: Any, status: str, dry_run: bool) -> Iterator[tuple[Any, str, str]]:
    """A job that waits or runs: so does its run, unless the training has said its end."""
    now = store.get_run(run.info.run_id).info.status
    if now in (*FINAL_STATUSES, status) or now != run.info.status:
        return
    yield run, status, ""
    if not dry_run:
        store.update_run(run.info.run_id, status=status)


def _end_children(
    store: Any, parent: Any, status: str, dry_run: bool
) -> Iterator[tuple[Any, str, str]]:
    """The runs that the job had under its own end with it."""
    condition = f"tags.`{_PARENT}` = '{parent.info.run_id}'"
    for run in store.search_runs([parent.info.experiment_id], condition):
        if run.info.status not in FINAL_STATUSES:
            yield run, status, "its parent's job ended"
            if not dry_run:
                store.set_terminated(run.info.run_id, status)


def _log(store: Any, run: Any, state: str, metrics: dict[str, float]) -> None:
    from mlflow.entities import Metric, RunTag

    # The same time at each try, so that a value is never there twice.
    timestamp = run.info.end_time or run.info.start_time
    values = [Metric(name, value, timestamp, 0) for name, value in metrics.items()]
    store.log_batch(run.info.run_id, metrics=values, tags=[RunTag(STATE, state)])
