"""Every state that SLURM has for a job, and what it means for the run.

From "JOB STATE CODES" in squeue(1) and sacct(1), of versions 2.6 to 25.05.
"""

from dataclasses import dataclass

_ON = "; `pyclassify slurm resume` goes on"


@dataclass(frozen=True)
class State:
    """What a state means.

    Args:
        status: The MLflow status of the run.
        ended: Whether the job stays in this state.
        words: What it is and what to do, for the run's description; nothing where all is well.
    """

    status: str
    ended: bool = False
    words: str = ""


_WAITING, _RUNNING = State("SCHEDULED"), State("RUNNING")


def _failed(words: str) -> State:
    return State("FAILED", True, words)


STATES = {
    "BOOT_FAIL": _failed("its node did not start" + _ON),
    "CANCELLED": State("KILLED", True, "the job was cancelled"),
    "COMPLETED": State("FINISHED", True),
    "COMPLETING": _RUNNING,
    "CONFIGURING": _WAITING,
    "DEADLINE": _failed("the job's deadline came before its end"),
    "EXPEDITING": _WAITING,
    "FAILED": _failed("the job ended with an error"),
    "LAUNCH_FAILED": _failed("the job could not be launched on its node" + _ON),
    "NODE_FAIL": _failed("a node of the job failed" + _ON),
    "OUT_OF_MEMORY": _failed('the job took more memory than it has; give more by "mem"'),
    "PENDING": _WAITING,
    "POWER_UP_NODE": _WAITING,
    "PREEMPTED": State("KILLED", True, "the job had to make room for another" + _ON),
    "RECONFIG_FAIL": _failed("its node could not be configured" + _ON),
    "REQUEUED": _WAITING,
    "REQUEUE_FED": _WAITING,
    "REQUEUE_HOLD": _WAITING,
    "RESIZING": _RUNNING,
    "RESV_DEL_HOLD": _WAITING,
    "REVOKED": State("KILLED", True, "another cluster of the federation took the job"),
    "RUNNING": _RUNNING,
    "SIGNALING": _RUNNING,
    "SPECIAL_EXIT": _WAITING,
    "STAGE_OUT": _RUNNING,
    "STOPPED": _RUNNING,
    "SUSPENDED": _RUNNING,
    "TIMEOUT": _failed('the job came to its time limit; give more by "time"'),
    "UPDATE_DB": _RUNNING,
}
# The queue's reasons of a job that ends, by their beginnings.
_REASONS = {
    "deadline": "DEADLINE",
    "nodedown": "NODE_FAIL",
    "outofmemory": "OUT_OF_MEMORY",
    "preempt": "PREEMPTED",
    "timelimit": "TIMEOUT",
}


def state_by(state: str, reason: str) -> str:
    """How a job ends, by the queue's state and reason; nothing where an exit code says more."""
    if state == "COMPLETING":
        return next((_REASONS[each] for each in _REASONS if reason.lower().startswith(each)), "")
    told = state in STATES and STATES[state].ended and state not in ("COMPLETED", "FAILED")
    return state if told else ""


class SlurmError(OSError):
    """SLURM refuses something; its own words."""


class SlurmSilent(SlurmError):
    """SLURM does not answer, so that nothing is known."""


@dataclass(frozen=True)
class Job:
    """What SLURM says of a job.

    Args:
        job_id: Its number.
        state: A key of `STATES`.
        reason: Why it waits or has ended, in SLURM's words; may be empty.
        nodes: Its nodes, as SLURM shortens them; empty before it starts.
        elapsed: Days, hours, minutes and seconds that it ran, as in `1-02:03:04`.
        exit_code: Its exit code and signal, `1:0`; empty while it runs.
    """

    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""
    elapsed: str = ""
    exit_code: str = ""

    @property
    def meaning(self) -> State:
        """What the state means for the run."""
        return STATES[self.state]


def make_job(
    job_id: str, state: str, reason: str, nodes: str, elapsed: str, exit_code: str = ""
) -> Job:
    """Make a job of the columns of its row.

    Raises:
        SlurmError: Its state is none that is known.
    """
    name, _, by = state.partition(" ")
    name = name.rstrip("+")
    if name not in STATES:
        raise SlurmError(f"SLURM calls job {job_id} {state!r}, which is no state known here")
    nodes = "" if nodes in ("None assigned", "(null)") else nodes
    return Job(job_id, name, reason or by, nodes, elapsed, exit_code)


def rows_of(text: str, job_id: str, columns: int) -> list[list[str]]:
    """The rows of a job in an answer."""
    number = job_id.partition(";")[0]
    return [row for row in rows_among(text, columns) if row[0] == number]


def rows_among(text: str, columns: int) -> list[list[str]]:
    """The rows of an answer, among what a site's own wrappers may say before and after."""
    rows = [line.strip().split("|") for line in text.splitlines()]
    return [row[:columns] for row in rows if len(row) >= columns]
