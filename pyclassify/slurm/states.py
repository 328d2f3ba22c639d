"""SLURM's job states and accounting, and the MLflow status of a run whose job is in each state.

`STATES` has a line for each state in "JOB STATE CODES" of squeue(1) and sacct(1), from SLURM 2.6 to
25.05; a new state is one more line there. `PENDING_ADVICE` has the reasons for which a job may stay
pending forever. It does not have those that pass by themselves, such as Priority, Resources,
Dependency, BeginTime, Licenses and Reservation.
"""

from dataclasses import dataclass, field
from fnmatch import fnmatchcase

_RESUME = "; run `pyclassify slurm resume`"


@dataclass(frozen=True)
class State:
    """What a job state means for the job's run.

    Args:
        status: The MLflow status of the run.
        ended: Whether the state is final.
        reason: What happened and what to do, for the description of the run; empty after a success.
    """

    status: str
    ended: bool = False
    reason: str = ""


_WAITING, _RUNNING = State("SCHEDULED"), State("RUNNING")


def _failed(reason: str) -> State:
    return State("FAILED", True, reason)


STATES = {
    "BOOT_FAIL": _failed("a node of the job did not boot" + _RESUME),
    "CANCELLED": State("KILLED", True, "the job was cancelled"),
    "COMPLETED": State("FINISHED", True),
    "COMPLETING": _RUNNING,
    "CONFIGURING": _WAITING,
    "DEADLINE": _failed("the job did not end before its deadline"),
    "EXPEDITING": _WAITING,
    "FAILED": _failed("the job ended with an error"),
    "LAUNCH_FAILED": _failed("the job could not be launched on its node" + _RESUME),
    "NODE_FAIL": _failed("a node of the job failed" + _RESUME),
    "OUT_OF_MEMORY": _failed('the job exceeded its memory; request more by "mem"'),
    "PENDING": _WAITING,
    "POWER_UP_NODE": _WAITING,
    "PREEMPTED": State("KILLED", True, "the job was preempted" + _RESUME),
    "RECONFIG_FAIL": _failed("a node of the job could not be configured" + _RESUME),
    "REQUEUED": _WAITING,
    "REQUEUE_FED": _WAITING,
    "REQUEUE_HOLD": _WAITING,
    "RESIZING": _RUNNING,
    "RESV_DEL_HOLD": _WAITING,
    "REVOKED": State("KILLED", True, "another cluster of the federation started the job"),
    "RUNNING": _RUNNING,
    "SIGNALING": _RUNNING,
    "SPECIAL_EXIT": _WAITING,
    "STAGE_OUT": _RUNNING,
    "STOPPED": _RUNNING,
    "SUSPENDED": _RUNNING,
    "TIMEOUT": _failed('the job reached its time limit; request more by "time"'),
    "UPDATE_DB": _RUNNING,
}
# Prefixes of squeue's reason for a COMPLETING job -> the state that the job will end in.
_STATES_BY_REASON = {
    "deadline": "DEADLINE",
    "nodedown": "NODE_FAIL",
    "outofmemory": "OUT_OF_MEMORY",
    "preempt": "PREEMPTED",
    "timelimit": "TIMEOUT",
}

_LESS = 'reduce -P devices, -P num_nodes, "mem", "cpus_per_task" or "time"'
_ALL_OF_QOS = "this job and the other jobs of the QOS together exceed the limit of the QOS"
_ALL_OF_ACCOUNT = (
    "this job and the other jobs of the account together exceed the limit of the account"
)
_WAIT = f"wait for those jobs, or {_LESS}"
_BUDGET = "the granted hours are used up, and the job waits until the site grants more"
# Patterns of pending reasons (https://slurm.schedmd.com/job_reason_codes.html), of which the first
# match counts -> why the job may not start by itself; what to do.
PENDING_ADVICE = {
    "PartitionTimeLimit": '"time" exceeds the limit of the partition; reduce "time", or give '
    'another "partition"',
    "*MaxWallDurationPerJobLimit": '"time" exceeds the limit of the QOS or account; reduce "time", '
    'or give another "qos"',
    "QOSTimeLimit": '"time" exceeds the limit of the QOS; reduce "time", or give another "qos"',
    "AssociationTimeLimit": '"time" exceeds the limit of the account; reduce "time", or give '
    'another "account"',
    "PartitionNodeLimit": "the partition does not allow this number of nodes, or required nodes "
    'are down; give another -P num_nodes, "nodelist" or "partition"',
    "PartitionConfig": f"the job exceeds a limit of the partition; {_LESS}, or give another "
    '"partition"',
    "PartitionDown": 'the partition starts no jobs; give another "partition"',
    "PartitionInactive": 'the partition starts no jobs; give another "partition"',
    "QOSMax*PerUser*": "this job and your other jobs together exceed the limit of the QOS per "
    f'user; {_WAIT}, or give another "qos"',
    "QOSMax*": f'the job exceeds the limit of the QOS per job; {_LESS}, or give another "qos"',
    "QOSMin*": "the job requests less than the minimum of the QOS; request more, or give another "
    '"qos"',
    "QOSGrp*RunMinutes*": f'{_ALL_OF_QOS}; {_WAIT}, or give another "qos"',
    "QOSGrp*Minutes*": f'{_BUDGET}; give another "qos"',
    "QOSGrp*": f'{_ALL_OF_QOS}; {_WAIT}, or give another "qos"',
    "QOSNotAllowed": 'the account or partition may not use the QOS; give another "qos"',
    "QOSUsageThreshold": 'the account exceeded the usage threshold of the QOS; give another "qos"',
    "InvalidQOS": 'the QOS does not exist any more; give another "qos"',
    "InvalidAccount": 'the account does not exist any more; give another "account"',
    "AccountNotAllowed": 'the partition accepts no jobs of the account; give another "account" or '
    '"partition"',
    "AssocMaxJobsLimit": "your other jobs have to end first; wait for those jobs",
    "AssocMaxSubmitJobLimit": "your other jobs have to end first; wait for those jobs",
    "AssocMax*": f"the job exceeds the limit of the account per job; {_LESS}, or give another "
    '"account"',
    "AssocGrp*RunMinutes*": f'{_ALL_OF_ACCOUNT}; {_WAIT}, or give another "account"',
    "AssocGrp*Minutes*": f'{_BUDGET}; give another "account"',
    "AssocGrp*": f'{_ALL_OF_ACCOUNT}; {_WAIT}, or give another "account"',
    "MaxMemPer*": '"mem" exceeds the limit of the partition; reduce "mem"',
    "Max*PerAccount": "this job and the other jobs of the account together exceed the limit of the "
    f'QOS per account; {_WAIT}, or give another "account"',
    "BadConstraints": "no node satisfies all requests of the job; change "
    '"constraint", "nodelist", "gpu_type", -P devices, "mem" or "cpus_per_task"',
    "ReqNodeNotAvail*": "nodes that the job needs are down, drained or reserved; change "
    '"nodelist", or reduce "time" so that the job ends before a reservation begins',
    "NodeDown": 'a node that the job needs is down; change "nodelist"',
    "ReservationDeleted": 'the reservation was deleted; remove "reservation", or give another one',
    "DependencyNeverSatisfied": 'the job in "dependency" did not end as required; remove '
    '"dependency"',
    "DeadLine": 'the job can\'t end before its deadline; reduce "time", or give a later --deadline',
    "BurstBufferOperation": "an operation of the burst buffer failed; ask the site to repair it",
    "JobHeldUser": "the job is held; run `scontrol release JOB_ID`",
    "JobHeldAdmin": "an administrator holds the job; ask the site to release it",
    "JobHoldMaxRequeue": "the job was requeued too often and is held; read its log, then run "
    "`scontrol release JOB_ID`",
    "* held*": "SLURM holds the job after an error; read its log, then run `scontrol release "
    "JOB_ID`",
    "*in held state*": "the job is held; run `scontrol release JOB_ID`",
}


class SlurmError(OSError):
    """SLURM refused a command; the message is SLURM's."""


class SlurmUnavailableError(SlurmError):
    """SLURM did not respond, so the state of its jobs is unknown."""


class JobNotFoundError(SlurmError):
    """Neither squeue nor sacct has the job."""


@dataclass(frozen=True)
class Job:
    """A job as squeue or sacct reports it.

    Args:
        job_id: The job id, with the cluster's name after a semicolon where there are several.
        state: A key of `STATES`.
        reason: SLURM's reason why the job is pending or has ended; may be empty.
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

    @property
    def advice(self) -> str:
        """Why a pending job may never start, and what to change; empty where it will start."""
        if STATES[self.state].status != "SCHEDULED":
            return ""
        found = (text for glob, text in PENDING_ADVICE.items() if fnmatchcase(self.reason, glob))
        return next(found, "").replace("JOB_ID", self.job_id.partition(";")[0])


@dataclass(frozen=True)
class Attempt:
    """One attempt of a job; each requeue begins a new one.

    Args:
        submitted: When the job was submitted or requeued, in seconds of Unix time.
        started: When the attempt started, in seconds of Unix time; None if it did not start.
        elapsed_seconds: How long the attempt ran.
        gpus: The number of allocated GPUs.
    """

    submitted: float
    started: float | None
    elapsed_seconds: int
    gpus: int


@dataclass
class JobAccounting:
    """The state of a job, and what all its attempts used.

    Args:
        job: The job, in the state of its last attempt.
        attempts: The attempts in order; empty while only squeue has the job.
        max_rss_mb: The maximum resident memory of a process of the job, in MB; 0 where SLURM does
            not record it.

    Example:
        >>> JobAccounting(Job("7", "COMPLETED"), [Attempt(0, 10, 3600, 2)]).compute_metrics()
        {'attempts': 1, 'elapsed_seconds': 3600, 'gpu_hours': 2.0, 'queue_seconds': 10}
    """

    job: Job
    attempts: list[Attempt] = field(default_factory=list)
    max_rss_mb: float = 0.0

    def compute_metrics(self) -> dict[str, float]:
        """Sum up queue time, elapsed time and GPU hours of all attempts, as metrics of the run."""
        started = [attempt for attempt in self.attempts if attempt.started is not None]
        gpu_seconds = sum(attempt.elapsed_seconds * attempt.gpus for attempt in started)
        metrics = {
            "attempts": len(started),
            "elapsed_seconds": sum(attempt.elapsed_seconds for attempt in started),
            "gpu_hours": round(gpu_seconds / 3600, 4),
            "queue_seconds": sum((attempt.started or 0) - attempt.submitted for attempt in started),
        }
        if self.max_rss_mb:
            metrics["max_rss_mb"] = round(self.max_rss_mb, 1)
        return metrics


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
        raise SlurmError(
            f"unknown state of job {job_id}: {state!r} (expected a job state of SLURM 2.6 to 25.05)"
        )
    nodes = "" if nodes in ("None assigned", "(null)") else nodes
    return Job(job_id, name, reason or canceled_by, nodes, elapsed, exit_code)


def infer_final_state(state: str, reason: str) -> str:
    """Infer the state that a job will end in from squeue's state and reason.

    Returns:
        A key of `STATES`; empty where the exit code is more precise.
    """
    if state == "COMPLETING":
        prefixes = (prefix for prefix in _STATES_BY_REASON if reason.lower().startswith(prefix))
        return _STATES_BY_REASON.get(next(prefixes, ""), "")
    ended = state in STATES and STATES[state].ended and state not in ("COMPLETED", "FAILED")
    return state if ended else ""
