"""The starts of a run's jobs, as the run's folder tells them.

The file `attempts` has a line a start, in order: the job's number, how often SLURM had started it
again (SLURM_RESTART_COUNT), and the step in the file `progress` then, or `-` where there is none.
"""

from dataclasses import dataclass
from pathlib import Path

from pyclassify.slurm.status import RESUME

_NONE = "-"


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


def count_restarts(attempts: list[Attempt]) -> int:
    """How often SLURM started the run's jobs again."""
    most: dict[str, int] = {}
    for each in attempts:
        most[each.job_id] = max(each.restarts, most.get(each.job_id, 0))
    return sum(most.values())


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
            f"no step was gained since the last start (step {step}); {RESUME} --time TIME, with "
            "more time"
        )
    if started >= limit:
        return f'the job has started {started} times, and "requeue_attempts" is {limit}; {RESUME}'
    return ""
