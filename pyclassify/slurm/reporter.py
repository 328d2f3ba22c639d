"""What a job tells MLflow of its own run, at its start and its end.

Copied into the run's folder and started there by the job's own Python, which needs to have mlflow
and nothing else:

    python -m pyclassify.slurm.reporter start OLDER_JOB
    python -m pyclassify.slurm.reporter end EXIT_CODE SAID STDOUT STDERR [STARTS_IN_ALL]
    python -m pyclassify.slurm.reporter refused WORDS STDOUT STDERR
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pyclassify.slurm import attempts, delivery, description
from pyclassify.slurm import status as reconcile
from pyclassify.slurm.status import LEFT, RESUME, Ending
from pyclassify.spool.records import FINAL

STAYS = 3  # exit code: nothing is to be started, and the run stays as it is
AGAIN = Ending("SCHEDULED", "the job is to start again")


def main(args: Sequence[str]) -> int:
    """Report the start or the end of this job.

    Returns:
        The exit code: `STAYS`, `LEFT` where the job is to be requeued, 1 for what is wrong.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    run_id, job_id = os.environ["MLFLOW_RUN_ID"], os.environ["SLURM_JOB_ID"]
    folder = Path(os.environ["PYCLASSIFY_SPOOL"]).parent
    verb, *rest = args
    if verb == "start":
        return start(run_id, job_id, folder, *rest)
    if verb == "refused":
        words, *logs = rest
        ending = Ending("FAILED", f"SLURM did not start the job again ({words}); {RESUME}")
        return end(run_id, job_id, folder, ending, [Path(log) for log in logs])
    code, said, out, err, *limit = rest
    ending = reconcile.of_script(int(code), said)
    if limit and ending == reconcile.STOPPED:
        why = attempts.why_not_again(folder, job_id, int(limit[0]))
        ending = Ending("FAILED", why) if why else AGAIN
    end(run_id, job_id, folder, ending, [Path(out), Path(err)])
    return LEFT if ending == AGAIN else 0


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
    begun, root = attempts.begin(folder, job_id, restarts), folder / "spool"
    said = partial(_start, run_id=run_id, job_id=job_id, begun=begun)
    code = delivery.tell(run_id, root, said)
    if code == 0 and not delivery.is_spooled() and [*root.glob(f"{run_id}/*.records")]:
        said(delivery.open_spool(root))  # what is delivered later must not undo it
    return code


def _start(client: Any, run_id: str, job_id: str, begun: list[attempts.Attempt]) -> int:
    run, again = client.get_run(run_id), begun[-1].restarts > 0
    status, known = run.info.status, run.data.tags.get("slurm_job_id", "")
    if run.info.lifecycle_stage == "deleted" or (status in FINAL and not again):
        what = "deleted" if run.info.lifecycle_stage == "deleted" else f"{status} already"
        sys.stderr.write(f"the run {run_id} is {what}; nothing is started\n")
        return STAYS
    client.update_run(run_id, status="RUNNING")
    tags = {
        # As sbatch gave it, it may have the cluster's name too.
        "slurm_job_id": known if known.partition(";")[0] == job_id else job_id,
        "slurm_job_ids": ",".join(dict.fromkeys(each.job_id for each in begun)),
        "slurm_restarts": str(attempts.count_restarts(begun)),
        "slurm_nodes": os.environ.get("SLURM_JOB_NODELIST", ""),
        "slurm_partition": os.environ.get("SLURM_JOB_PARTITION", ""),
    }
    if again:  # what was said of its first end is no more
        tags |= {reconcile.BY: "", reconcile.STATE: ""}
        description.forget(client, run, description.name_job(job_id))
    reconcile.tag(client, run_id, tags)
    return 0


def end(run_id: str, job_id: str, folder: Path, ending: Ending, logs: list[Path]) -> int:
    """Give the run its final status, unless the training has."""
    ending = replace(ending, words=ending.words.replace("RUN_ID", run_id))
    said = partial(_end, run_id=run_id, job_id=job_id, ending=ending, logs=logs)
    return delivery.tell(run_id, folder / "spool", said)


def _end(client: Any, run_id: str, job_id: str, ending: Ending, logs: list[Path]) -> int:
    if ending.status not in FINAL:  # it is to start again
        client.update_run(run_id, status=ending.status)
        return 0
    status = reconcile.settle(client, run_id, ending, job_id, logs)
    sys.stdout.write(f"run {run_id}: {status}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
