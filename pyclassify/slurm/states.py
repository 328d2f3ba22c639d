"""SLURM's job states, and the MLflow status of a run whose job is in each of them.

`STATES` has a line for every state of "JOB STATE CODES" in squeue(1) and sacct(1), of SLURM 2.6 to
25.05: a state that is new in SLURM is one more line there. `PENDING_ADVICE` has the reasons for
which a job may wait for ever; those that pass by themselves (Priority, Resources, Dependency,
BeginTime, Licenses, Reservation and others) are not there.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

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

_LESS = 'fewer -P devices or -P num_nodes, or less "mem", "cpus_per_task" or "time"'
_BUDGET = "its hours are spent, and come back only when the site renews them"
# Why a job waits (https://slurm.schedmd.com/job_reason_codes.html), by patterns of which the first
# that matches counts -> why that does not pass by itself, or may not, and what to change.
PENDING_ADVICE = {
    "PartitionTimeLimit": '"time" is over the limit of the partition; give less, or another '
    '"partition"',
    "*MaxWallDurationPerJobLimit": '"time" is over the limit of the QOS or account; give less, or '
    'another "qos"',
    "QOSTimeLimit": '"time" is over the limit of the QOS; give less, or another "qos"',
    "AssociationTimeLimit": '"time" is over the limit of the account; give less, or another '
    '"account"',
    "PartitionNodeLimit": "the partition takes no job of so many nodes, or nodes that must be "
    'there are down; give another -P num_nodes, "nodelist" or "partition"',
    "PartitionConfig": f"the job breaks a limit of the partition; give {_LESS}, or another "
    '"partition"',
    "PartitionDown": 'the partition starts no jobs; give another "partition"',
    "PartitionInactive": 'the partition starts no jobs; give another "partition"',
    "QOSMax*PerUser*": "other jobs of yours have to end first; if there are none, the job asks for "
    f'more than the QOS gives a user: give {_LESS}, or another "qos"',
    "QOSMax*": f'the job asks for more than the QOS gives a job; give {_LESS}, or another "qos"',
    "QOSMin*": 'the job asks for less than the QOS demands; ask for more, or give another "qos"',
    "QOSGrp*RunMinutes*": "other jobs of the QOS have to end first; if there are none, the job "
    f'asks for more than the QOS has: give {_LESS}, or another "qos"',
    "QOSGrp*Minutes*": f'{_BUDGET}; give another "qos"',
    "QOSGrp*": "other jobs of the QOS have to end first; if there are none, the job asks for more "
    f'than the QOS has: give {_LESS}, or another "qos"',
    "QOSNotAllowed": 'the account or partition may not use the QOS; give another "qos"',
    "QOSUsageThreshold": 'the account has used too much for the QOS; give another "qos"',
    "InvalidQOS": 'there is no such QOS any more; give another "qos"',
    "InvalidAccount": 'there is no such account any more; give another "account"',
    "AccountNotAllowed": 'the partition takes no jobs of the account; give another "account" or '
    '"partition"',
    "AssocMaxJobsLimit": "other jobs of yours have to end first",
    "AssocMaxSubmitJobLimit": "other jobs of yours have to end first",
    "AssocMax*": f"the job asks for more than the account gives a job; give {_LESS}, or another "
    '"account"',
    "AssocGrp*RunMinutes*": "other jobs of the account have to end first; if there are none, the "
    f'job asks for more than the account has: give {_LESS}, or another "account"',
    "AssocGrp*Minutes*": f'{_BUDGET}; give another "account"',
    "AssocGrp*": "other jobs of the account have to end first; if there are none, the job asks for "
    f'more than the account has: give {_LESS}, or another "account"',
    "MaxMemPer*": '"mem" is over the limit of the partition; give less',
    "Max*PerAccount": "other jobs of the account have to end first; if there are none, the job "
    f'asks for more than the QOS gives an account: give {_LESS}, or another "account"',
    "BadConstraints": "no node has all that the job asks for; change "
    '"constraint", "nodelist", "gpu_type", -P devices, "mem" or "cpus_per_task"',
    "ReqNodeNotAvail*": "nodes that the job needs are down, drained or reserved; change "
    '"nodelist", or give less "time" so that the job ends before a reservation begins',
    "NodeDown": 'a node that the job needs is down; change "nodelist"',
    "ReservationDeleted": 'the reservation is gone; leave "reservation" out, or give another',
    "DependencyNeverSatisfied": 'the job of "dependency" did not end as it had to; leave it out',
    "DeadLine": 'the job can\'t end before its deadline; give less "time" or a later --deadline',
    "BurstBufferOperation": "an operation of the burst buffer failed; the site has to repair it",
    "JobHeldUser": "the job is held; `scontrol release JOB_ID` lets it start",
    "JobHeldAdmin": "an administrator holds the job, and has to release it",
    "JobHoldMaxRequeue": "the job started too often and is held; see its log, then `scontrol "
    "release JOB_ID`",
    "* held*": "SLURM holds the job after an error; see its log, then `scontrol release JOB_ID`",
    "*in held state*": "the job is held; `scontrol release JOB_ID` lets it start",
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

    @property
    def advice(self) -> str:
        """Why a job that waits may never start, and what to change; empty where it has to wait."""
        if STATES[self.state].status != "SCHEDULED":
            return ""
        found = (text for glob, text in PENDING_ADVICE.items() if fnmatchcase(self.reason, glob))
        return next(found, "").replace("JOB_ID", self.job_id.partition(";")[0])


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
