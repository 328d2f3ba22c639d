"""What a job tells MLflow of its own run, at its start and its end.

Copied into the run's folder and started there by the job's own Python, which needs to have mlflow
and nothing else:

    python -m pyclassify.slurm.reporter start OLDER_JOB
    python -m pyclassify.slurm.reporter end EXIT_CODE SAID STDOUT STDERR [STARTS_IN_ALL]
    python -m pyclassify.slurm.reporter refused WORDS STDOUT STDERR
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyclassify.slurm.status import (
    BY,
    RESUME,
    STATE,
    STOPPED,
    Ending,
    forget,
    name_job,
    of_script,
    settle,
    tag,
)
from pyclassify.spool import records
from pyclassify.spool.records import FINAL_STATUSES
from pyclassify.spool.server import configure_mlflow
from pyclassify.utils.launcher import REQUEUE_EXIT_CODE, SPOOL_ENV
from pyclassify.utils.text import format_error

STAYS = 3  # exit code: nothing is to be started, and the run stays as it is
AGAIN = Ending("SCHEDULED", "the job is to start again")
_NONE = "-"
T = TypeVar("T")
_NO_SUCH_RUN = "RESOURCE_DOES_NOT_EXIST"


def main(args: Sequence[str]) -> int:
    """Report the start or the end of this job.

    Returns:
        The exit code: `STAYS`, `REQUEUE_EXIT_CODE` to have the job requeued, 1 after an error.
    """
    configure_mlflow(retries=2, timeout_seconds=20)
    run_id, job_id = os.environ["MLFLOW_RUN_ID"], os.environ["SLURM_JOB_ID"]
    folder = Path(os.environ[SPOOL_ENV]).parent
    verb, *rest = args
    if verb == "start":
        return start(run_id, job_id, folder, *rest)
    if verb == "refused":
        words, *logs = rest
        ending = Ending("FAILED", f"SLURM did not start the job again ({words}); {RESUME}")
        return end(run_id, job_id, folder, ending, [Path(log) for log in logs])
    code, said, out, err, *limit = rest
    ending = of_script(int(code), said)
    if limit and ending == STOPPED:
        why = why_not_again(folder, job_id, int(limit[0]))
        ending = Ending("FAILED", why) if why else AGAIN
    end(run_id, job_id, folder, ending, [Path(out), Path(err)])
    return REQUEUE_EXIT_CODE if ending == AGAIN else 0


def start(run_id: str, job_id: str, folder: Path, older: str = "") -> int:
    """Say that the run runs, in which job and where.

    Args:
        run_id: The run.
        job_id: This job's number.
        folder: The run's folder.
        older: The number and state of another job of this run that has not ended; or nothing.
    """
    if older:
        other, _, state = older.partition(" ")
        sys.stderr.write(
            f"the run {run_id} is job {other}'s, which is {state}; nothing is started: let it go "
            f"on, or cancel it by `scancel {other}` and then {RESUME}\n".replace("RUN_ID", run_id)
        )
        return STAYS
    restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    begun, root = begin(folder, job_id, restarts), folder / "spool"
    said = partial(_start, run_id=run_id, job_id=job_id, begun=begun)
    code = tell(run_id, root, said)
    if code == 0 and not is_spooled() and [*root.glob(f"{run_id}/*.records")]:
        said(open_spool(root))  # what is delivered later must not undo it
    return code


@dataclass(frozen=True)
class Attempt:
    """A start of a job.

    Args:
        job_id: The job's number.
        restarts: How often SLURM had started the job again.
        step: The step of the newest checkpoint by then; empty where nothing says it.
    """

    job_id: str
    restarts: int
    step: str = ""


def _start(client: Any, run_id: str, job_id: str, begun: list[Attempt]) -> int:
    run, again = client.get_run(run_id), begun[-1].restarts > 0
    status, known = run.info.status, run.data.tags.get("slurm_job_id", "")
    if run.info.lifecycle_stage == "deleted" or (status in FINAL_STATUSES and not again):
        what = "deleted" if run.info.lifecycle_stage == "deleted" else f"{status} already"
        sys.stderr.write(f"the run {run_id} is {what}; nothing is started\n")
        return STAYS
    client.update_run(run_id, status="RUNNING")
    tags = {
        # As sbatch gave it, it may have the cluster's name too.
        "slurm_job_id": known if known.partition(";")[0] == job_id else job_id,
        "slurm_job_ids": ",".join(dict.fromkeys(each.job_id for each in begun)),
        "slurm_restarts": str(count_restarts(begun)),
        "slurm_nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
        "slurm_partition": os.environ.get("SLURM_JOB_PARTITION", ""),
    }
    if again:  # what was said of its first end is no more
        tags |= {BY: "", STATE: ""}
        forget(client, run, name_job(job_id))
    tag(client, run_id, tags)
    return 0


def end(run_id: str, job_id: str, folder: Path, ending: Ending, logs: list[Path]) -> int:
    """Give the run its final status, unless the training has."""
    ending = replace(ending, words=ending.words.replace("RUN_ID", run_id))
    said = partial(_end, run_id=run_id, job_id=job_id, ending=ending, logs=logs)
    return tell(run_id, folder / "spool", said)


def _end(client: Any, run_id: str, job_id: str, ending: Ending, logs: list[Path]) -> int:
    if ending.status not in FINAL_STATUSES:  # it is to start again
        client.update_run(run_id, status=ending.status)
        return 0
    status = settle(client, run_id, ending, job_id, logs)
    sys.stdout.write(f"run {run_id}: {status}\n")
    return 0


def begin(folder: Path, job_id: str, restarts: int) -> list[Attempt]:
    """Note a start; returns all so far.

    Args:
        folder: The run's folder.
        job_id: The job's number.
        restarts: How often SLURM had started it again.
    """
    with (folder / "attempts").open("a") as file:
        file.write(f"{job_id} {restarts} {step_of(folder) or _NONE}\n")
    return read(folder)


def is_spooled() -> bool:
    """Whether this process writes to a spool alone."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").startswith("spool:")


def open_spool(root: Path) -> Any:
    """The `MlflowClient` of the spools in a folder, also where this package is not installed."""
    from mlflow import MlflowClient

    from pyclassify.spool import store

    store.register_scheme()
    return MlflowClient(records.format_spool_uri(root))


def read(folder: Path) -> list[Attempt]:
    """The starts so far, in order; a line that is cut off is none."""
    try:
        lines = (folder / "attempts").read_text().splitlines()
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [
        Attempt(job_id, int(restarts), "" if step == _NONE else step)
        for job_id, restarts, step in (row for row in rows if len(row) == 3)
    ]


def step_of(folder: Path) -> str:
    """The step of the newest checkpoint, where the training says it."""
    try:
        return (folder / "progress").read_text().strip()
    except OSError:
        return ""


def tell(run_id: str, root: Path, say: Callable[[Any], T]) -> T:
    """Say something to MLflow, or to the run's spool where that can't be.

    Args:
        run_id: The run.
        root: The folder of its spool.
        say: Called with an `MlflowClient`, and once more with that of the spool.

    Returns:
        What that returns.

    Raises:
        mlflow.exceptions.MlflowException: There is no such run, or the run has no spool.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if is_spooled():
        return say(open_spool(root))
    try:
        return say(MlflowClient())
    except Exception as error:  # a database's driver has its own
        unknown = isinstance(error, MlflowException) and error.error_code == _NO_SUCH_RUN
        if unknown or not records.is_spool(root / run_id):
            raise
        sys.stderr.write(
            f"MLflow can't be told ({format_error(error)}); it is kept for "
            f"`pyclassify sync {root}`\n"
        )
        return say(open_spool(root))


def why_not_again(folder: Path, job_id: str, limit: int) -> str:
    """Say why a job is not to start again; nothing where it may.

    Args:
        folder: The run's folder.
        job_id: The job's number.
        limit: How often a job may start in all.
    """
    ours = [each for each in read(folder) if each.job_id == job_id]
    if not ours:
        return ""
    started, step = ours[-1].restarts + 1, step_of(folder)
    if step and step == ours[-1].step:
        return (
            f"no step was gained since the last start (step {step}); give more time by "
            "`pyclassify slurm resume RUN_ID --time TIME`"
        )
    if started >= limit:
        return f'the job has started {started} times, and "requeue_attempts" is {limit}; {RESUME}'
    return ""


def count_restarts(attempts: list[Attempt]) -> int:
    """How often SLURM started the run's jobs again."""
    most: dict[str, int] = {}
    for each in attempts:
        most[each.job_id] = max(each.restarts, most.get(each.job_id, 0))
    return sum(most.values())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
