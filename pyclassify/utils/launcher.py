"""What a launcher (srun, torchrun, a job's script) and the processes that it starts agree on.

A SLURM job's script (slurm/script) and the training in it know each other by three environment
variables, which the script sets, and one exit code:

    PYCLASSIFY_SPOOL            The folder of the job's spools. tracking/run opens the run's spool
                                there; slurm/reporter writes there while the server is away.
    PYCLASSIFY_PROGRESS         A file. training/exact_resume writes the step of each checkpoint to
                                it; slurm/reporter reads it, to requeue only what gains steps.
    PYCLASSIFY_STATUS_BY_SLURM  The id of the job's run. tracking/run leaves the status of that run
                                to slurm/reporter after a stop signal: the time limit and a
                                cancellation send the same signal, and SLURM knows which it was.
    exit code 75                The training has saved after SIGUSR1 and is to be started again.
                                cli and runs/seeds exit with it, the script and slurm/reporter
                                requeue the job.

Any other project can take part in the same way (docs/stops.md).

Processes that have no process group yet, perhaps on several nodes, share what the first of them
decides by a file in a shared folder.
"""

import json
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyclassify.utils import files

SPOOL_ENV = "PYCLASSIFY_SPOOL"
PROGRESS_ENV = "PYCLASSIFY_PROGRESS"
STATUS_BY_SLURM_ENV = "PYCLASSIFY_STATUS_BY_SLURM"
REQUEUE_EXIT_CODE = os.EX_TEMPFAIL  # 75, of sysexits.h

BROADCAST_TIMEOUT_SECONDS = 600.0  # seconds for the first process to decide
# By these a start of a job, or of a launcher's processes, differs from the one before.
_START = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)
MIN_PORT, PORT_COUNT, PORT_STRIDE = (
    10_000,
    20_000,
    997,
)  # below those that a system gives out by itself
_MAX_WORKERS = 8  # each takes memory


def publish(folder: Path, decided: Any) -> None:
    """Tell the other processes of this start.

    Args:
        folder: A folder that they all see.
        decided: What JSON can write.
    """
    path = _file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, json.dumps(decided))


def wait_for_value(folder: Path) -> Any:
    """Wait for what the first process of this start decides.

    Raises:
        TimeoutError: It says nothing.
    """
    path, end = _file(folder), time.monotonic() + BROADCAST_TIMEOUT_SECONDS
    while time.monotonic() < end:
        with suppress(OSError):
            return json.loads(path.read_text())
        time.sleep(0.1)
    raise TimeoutError(
        f"the first process has not said in {BROADCAST_TIMEOUT_SECONDS:.0f} s what to do, in "
        f"{path}; see what it says of itself, and whether all processes see that folder"
    )


def _file(folder: Path) -> Path:
    return folder / ("-".join(os.environ.get(name, "0") for name in _START) + ".json")


def is_rank_zero() -> bool:
    """Whether this process is the first of its job, as launchers say it in the environment."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"]) == 0
    # In a shell of srun's, what Lightning launches has that shell's SLURM_PROCID.
    ranks = ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(int(os.environ.get(name, 0)) == 0 for name in ranks)


def is_single_process() -> bool:
    """Whether no other process takes part, which could not know what this one decides."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) == 1


def choose_rendezvous(place: int) -> dict[str, str]:
    """Have each seed's processes meet at a port of their own.

    The first process may still be busy with one seed's artifacts, and listen, when another is
    through with it and starts the next: it would join the wrong ones.

    Args:
        place: How many seeds were trained before; the first keeps the port that there is.

    Returns:
        Variables of the environment, the same in each process; none where no launcher names a port.
    """
    environ = os.environ
    port = environ.get("MASTER_PORT")
    if port is None and int(environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_JOB_ID" in environ:
        port = str(15_000 + int(environ["SLURM_JOB_ID"][-4:]))  # as Lightning's SLURMEnvironment
    if port is None or place == 0:
        return {}
    other = MIN_PORT + (int(port) - MIN_PORT + place * PORT_STRIDE) % PORT_COUNT
    # At a port of its own torchrun's agent does not listen.
    return {"MASTER_PORT": str(other), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def count_workers(processes: int) -> int:
    """How many processes are to read images beside a process that trains.

    Args:
        processes: How many train on this machine.

    Returns:
        All of its processors but one, 1 to 8.
    """
    return min(max(count_cores(processes) - 1, 1), _MAX_WORKERS)


def count_cores(processes: int) -> int:
    """How many processors each of some processes of a run has on this machine.

    Those of this process's affinity count (sched_getaffinity(2)), not a container's quota of time.
    SLURM may have bound each of a job's processes to processors of its own, all to those of the
    job, or none to any: which, tells SLURM_CPUS_ON_NODE, those of the job (sbatch(1)).
    """
    linux = sys.platform == "linux"
    mine = len(os.sched_getaffinity(0)) if linux else os.cpu_count() or 1
    job = int(os.environ.get("SLURM_CPUS_ON_NODE", mine))
    return mine if mine < job else max(job // processes, 1)
