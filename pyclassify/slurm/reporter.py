"""Report the start and the end of a job to MLflow; the script of the job runs this module.

It is copied into the run's folder with the packages slurm, spool and utils. Apart from them it may
import only mlflow and the standard library. The Python of the job's environment runs it there:

    python -m pyclassify.slurm.reporter start [OLDER_JOB]
    python -m pyclassify.slurm.reporter end EXIT_CODE SLURM_REPORT STDOUT STDERR [MAX_STARTS]
    python -m pyclassify.slurm.reporter refused MESSAGE STDOUT STDERR

OLDER_JOB is the number and state of another job of the run that has not ended. SLURM_REPORT is the
output of `query_slurm` in the script. MAX_STARTS is the maximum number of starts of a job that is
requeued after an interruption. `refused` reports that SLURM did not requeue the job.

Reports that can't reach the tracking server are written to the spool of the run.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pyclassify.slurm.status import (
    INTERRUPTED,
    JOB_ID_TAG,
    JOB_IDS_TAG,
    RESUME_HINT,
    STATE_TAG,
    STATUS_SOURCE_TAG,
    Outcome,
    apply_outcome,
    clear_description,
    derive_script_outcome,
    format_subject,
    set_tags,
)
from pyclassify.spool import records
from pyclassify.spool.records import FINAL_STATUSES
from pyclassify.utils.launcher import REQUEUE_EXIT_CODE, SPOOL_ENV
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.text import format_error

if TYPE_CHECKING:
    from mlflow import MlflowClient

NOTHING_STARTED_EXIT_CODE = 3  # the script ends, and the run stays as it is
_REQUEUED = Outcome("SCHEDULED", "the job is requeued")
_NO_STEP = "-"  # in the file of starts


@dataclass(frozen=True)
class _Start:
    """A start of a job: a line of the file `attempts` in the run's folder.

    Args:
        job_id: The job's number.
        restarts: How often SLURM had restarted the job (SLURM_RESTART_COUNT).
        step: The step of the newest checkpoint at the start; empty where it is unknown.
    """

    job_id: str
    restarts: int
    step: str = ""


def main(args: Sequence[str]) -> int:
    """Report the start or the end of this job.

    Args:
        args: The command line, as above.

    Returns:
        The exit code: `NOTHING_STARTED_EXIT_CODE`, `REQUEUE_EXIT_CODE` to have the job requeued, 0
        otherwise.
    """
    configure_mlflow(retries=2, timeout_seconds=20)
    run_id, job_id = os.environ["MLFLOW_RUN_ID"], os.environ["SLURM_JOB_ID"]
    folder = Path(os.environ[SPOOL_ENV]).parent
    command, *rest = args
    if command == "start":
        return report_start(run_id, job_id, folder, *rest)
    if command == "refused":
        message, *logs = rest
        reason = f"SLURM did not requeue the job ({message}); {RESUME_HINT}"
        outcome = Outcome("FAILED", reason)
        return _report_end(run_id, job_id, folder, outcome, [Path(log) for log in logs])
    exit_code, slurm_report, stdout, stderr, *max_starts = rest
    outcome = derive_script_outcome(int(exit_code), slurm_report)
    if max_starts and outcome == INTERRUPTED:
        reason = _find_requeue_obstacle(folder, job_id, int(max_starts[0]))
        outcome = Outcome("FAILED", reason) if reason else _REQUEUED
    _report_end(run_id, job_id, folder, outcome, [Path(stdout), Path(stderr)])
    return REQUEUE_EXIT_CODE if outcome == _REQUEUED else 0


def report_start(run_id: str, job_id: str, folder: Path, older_job: str = "") -> int:
    """Set the run RUNNING, with this job and its nodes as tags.

    Args:
        run_id: The run.
        job_id: This job's number.
        folder: The run's folder.
        older_job: The number and state of another job of the run that has not ended; or empty.

    Returns:
        The exit code: `NOTHING_STARTED_EXIT_CODE` where the run has another job or has ended.
    """
    if older_job:
        number, _, state = older_job.partition(" ")
        hint = RESUME_HINT.replace("RUN_ID", run_id)
        sys.stderr.write(
            f"nothing is started: job {number} of the run {run_id} is {state}; wait for that job, "
            f"or cancel it by `scancel {number}`, and then {hint}\n"
        )
        return NOTHING_STARTED_EXIT_CODE
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    starts, spool_root = _record_start(folder, job_id, restarts), folder / "spool"
    write = partial(_write_start, run_id=run_id, job_id=job_id, starts=starts)
    exit_code = _write_to_mlflow(run_id, spool_root, write)
    if exit_code == 0 and not _uses_spool() and [*spool_root.glob(f"{run_id}/*.records")]:
        write(open_spool(spool_root))  # so that a later upload does not undo it
    return exit_code


def open_spool(root: Path) -> "MlflowClient":
    """Open a client for the spools in a folder; works where this package is not installed.

    Args:
        root: The folder of the spools.
    """
    from mlflow import MlflowClient

    from pyclassify.spool import store

    store.register_scheme()
    return MlflowClient(records.format_spool_uri(root))


def _write_start(client: "MlflowClient", run_id: str, job_id: str, starts: Sequence[_Start]) -> int:
    run, is_restart = client.get_run(run_id), starts[-1].restarts > 0
    status, known_id = run.info.status, run.data.tags.get(JOB_ID_TAG, "")
    is_deleted = run.info.lifecycle_stage == "deleted"
    if is_deleted or (status in FINAL_STATUSES and not is_restart):
        state = "deleted" if is_deleted else f"already {status}"
        sys.stderr.write(f"nothing is started: the run {run_id} is {state}\n")
        return NOTHING_STARTED_EXIT_CODE
    client.update_run(run_id, status="RUNNING")
    tags = {
        # sbatch's id may have the cluster's name too.
        JOB_ID_TAG: known_id if known_id.partition(";")[0] == job_id else job_id,
        JOB_IDS_TAG: ",".join(dict.fromkeys(start.job_id for start in starts)),
        "slurm_restarts": str(_count_restarts(starts)),
        "slurm_nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
        "slurm_partition": os.environ.get("SLURM_JOB_PARTITION", ""),
    }
    if is_restart:  # the first end of the job is outdated
        tags |= {STATUS_SOURCE_TAG: "", STATE_TAG: ""}
        clear_description(client, run, format_subject(job_id))
    set_tags(client, run_id, tags)
    return 0


def _report_end(
    run_id: str, job_id: str, folder: Path, outcome: Outcome, logs: Sequence[Path]
) -> int:
    outcome = replace(outcome, reason=outcome.reason.replace("RUN_ID", run_id))
    write = partial(_write_end, run_id=run_id, job_id=job_id, outcome=outcome, logs=logs)
    return _write_to_mlflow(run_id, folder / "spool", write)


def _write_end(
    client: "MlflowClient", run_id: str, job_id: str, outcome: Outcome, logs: Sequence[Path]
) -> int:
    if outcome.status not in FINAL_STATUSES:  # the job is requeued
        client.update_run(run_id, status=outcome.status)
        return 0
    status = apply_outcome(client, run_id, outcome, job_id, logs)
    sys.stdout.write(f"run {run_id}: {status}\n")
    return 0


def _write_to_mlflow(run_id: str, spool_root: Path, write: "Callable[[MlflowClient], int]") -> int:
    """Write to MLflow, or to the run's spool where MLflow can't be reached.

    Args:
        run_id: The run.
        spool_root: The folder of the run's spool.
        write: Called with a client of MLflow, and after an error with one of the spool.

    Returns:
        The exit code that `write` returns.

    Raises:
        mlflow.exceptions.MlflowException: The run does not exist, or has no spool.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if _uses_spool():
        return write(open_spool(spool_root))
    try:
        return write(MlflowClient())
    except Exception as error:  # a database's driver has its own
        is_missing = (
            isinstance(error, MlflowException) and error.error_code == "RESOURCE_DOES_NOT_EXIST"
        )
        if is_missing or not records.is_spool(spool_root / run_id):
            raise
        sys.stderr.write(
            f"the report did not reach MLflow ({format_error(error)}) and is in the spool; upload "
            f"it by `pyclassify sync {spool_root}`\n"
        )
        return write(open_spool(spool_root))


def _uses_spool() -> bool:
    """Whether this process writes only to a spool."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").startswith("spool:")


def _record_start(folder: Path, job_id: str, restarts: int) -> list[_Start]:
    """Append a start to the file of starts; returns all starts so far."""
    with (folder / "attempts").open("a") as file:
        file.write(f"{job_id} {restarts} {_read_step(folder) or _NO_STEP}\n")
    return _read_starts(folder)


def _read_starts(folder: Path) -> list[_Start]:
    """Read the starts so far, in order, without a line that a full disk cut off."""
    try:
        lines = (folder / "attempts").read_text().splitlines()
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [
        _Start(job_id, int(restarts), "" if step == _NO_STEP else step)
        for job_id, restarts, step in (row for row in rows if len(row) == 3)
    ]


def _read_step(folder: Path) -> str:
    """Read the step of the newest checkpoint; empty where the training does not write it."""
    try:
        return (folder / "progress").read_text().strip()
    except OSError:
        return ""


def _find_requeue_obstacle(folder: Path, job_id: str, max_starts: int) -> str:
    """Find why a job must not be requeued; empty where it may be.

    Args:
        folder: The run's folder.
        job_id: The job's number.
        max_starts: How often the job may start.
    """
    starts = [start for start in _read_starts(folder) if start.job_id == job_id]
    if not starts:
        return ""
    count, step = starts[-1].restarts + 1, _read_step(folder)
    if step and step == starts[-1].step:
        return (
            f"the training made no progress since the last start (step {step}); give it more time "
            "by `pyclassify slurm resume RUN_ID --time TIME`"
        )
    if count >= max_starts:
        return (
            f'the job has started {count} times, and "requeue_attempts" is {max_starts}; '
            f"{RESUME_HINT}"
        )
    return ""


def _count_restarts(starts: Sequence[_Start]) -> int:
    """How often SLURM has restarted the run's jobs, all jobs together."""
    restarts: dict[str, int] = {}
    for start in starts:
        restarts[start.job_id] = max(start.restarts, restarts.get(start.job_id, 0))
    return sum(restarts.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
