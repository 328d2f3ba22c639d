"""SLURM's job states, and the MLflow status of a run whose job is in each of them.

`STATES` has a line for every state of "JOB STATE CODES" in squeue(1) and sacct(1), of SLURM 2.6 to
25.05: a state that is new in SLURM is one more line there.
"""

from dataclasses import dataclass

_RESUME = "; `pyclassify slurm resume` goes on"


@dataclass(frozen=True)
class State:
    """What a job state means for the job's run.

    Args:
        status: The MLflow status of the run.
        ended: Whether the state is a job's last.
        reason: What happened and what to do, for the run's description; empty after a success.
    """

    status: str
    ended: bool = False
    reason: str = ""


_WAITING, _RUNNING = State("SCHEDULED"), State("RUNNING")


def _failed(reason: str) -> State:
    return State("FAILED", True, reason)


STATES = {
    "BOOT_FAIL": _failed("its node did not start" + _RESUME),
    "CANCELLED": State("KILLED", True, "the job was cancelled"),
    "COMPLETED": State("FINISHED", True),
    "COMPLETING": _RUNNING,
    "CONFIGURING": _WAITING,
    "DEADLINE": _failed("the job's deadline came before its end"),
    "EXPEDITING": _WAITING,
    "FAILED": _failed("the job ended with an error"),
    "LAUNCH_FAILED": _failed("the job could not be launched on its node" + _RESUME),
    "NODE_FAIL": _failed("a node of the job failed" + _RESUME),
    "OUT_OF_MEMORY": _failed('the job took more memory than it has; give more by "mem"'),
    "PENDING": _WAITING,
    "POWER_UP_NODE": _WAITING,
    "PREEMPTED": State("KILLED", True, "the job had to make room for another" + _RESUME),
    "RECONFIG_FAIL": _failed("its node could not be configured" + _RESUME),
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
# Beginnings of squeue's reason for a job that is COMPLETING -> the state that the job gets.
_STATES_BY_REASON = {
    "deadline": "DEADLINE",
    "nodedown": "NODE_FAIL",
    "outofmemory": "OUT_OF_MEMORY",
    "preempt": "PREEMPTED",
    "timelimit": "TIMEOUT",
}


class SlurmError(OSError):
    """SLURM refused a command; the message is SLURM's own."""


class SlurmUnavailableError(SlurmError):
    """SLURM did not answer, so that the state of its jobs is unknown."""


class JobNotFoundError(SlurmError):
    """Neither squeue nor sacct has the job."""


@dataclass(frozen=True)
class Job:
    """A job as squeue or sacct reports it.

    Args:
        job_id: The job id, with the cluster's name after a semicolon where there are several.
        state: A key of `STATES`.
        reason: Why the job waits or has ended, in SLURM's words; may be empty.
        nodes: The node list in SLURM's short form, `n[1-2]`; empty before the job starts.
        elapsed: The time that the job ran, `1-02:03:04` (days, hours, minutes, seconds).
        exit_code: The exit code and signal, `1:0`; empty while the job runs.

    Example:
        >>> Job("7", "TIMEOUT").meaning.status
        'FAILED'
    """

    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""
    elapsed: str = ""
    exit_code: str = ""

    @property
    def meaning(self) -> State:
        """What the job's state means for its run."""
        return STATES[self.state]


def make_job(
    job_id: str, state: str, reason: str, nodes: str, elapsed: str, exit_code: str = ""
) -> Job:
    """Make a job from the columns of its row in squeue's or sacct's output.

    Raises:
        SlurmError: The state is not in `STATES`.
    """
    name, _, canceled_by = state.partition(" ")  # CANCELLED by UID
    name = name.rstrip("+")  # sacct truncates
    if name not in STATES:
        raise SlurmError(f"SLURM calls job {job_id} {state!r}, which is no state known here")
    nodes = "" if nodes in ("None assigned", "(null)") else nodes
    return Job(job_id, name, reason or canceled_by, nodes, elapsed, exit_code)


def infer_final_state(state: str, reason: str) -> str:
    """Infer the state that a job will end in from squeue's state and reason.

    Returns:
        A key of `STATES`; empty where the exit code says more than SLURM.
    """
    if state == "COMPLETING":
        prefixes = (prefix for prefix in _STATES_BY_REASON if reason.lower().startswith(prefix))
        return _STATES_BY_REASON.get(next(prefixes, ""), "")
    ended = state in STATES and STATES[state].ended and state not in ("COMPLETED", "FAILED")
    return state if ended else ""
