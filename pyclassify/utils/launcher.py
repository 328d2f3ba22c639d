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

`launch_check` checks that a launcher started as many processes as the options ask for.
"""

import json
import os
import socket
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
# The tag with a run's folder: slurm/submit sets it, and runs/resume leaves such a run to slurm.
SLURM_FOLDER_TAG = "slurm_folder"

PUBLISH_TIMEOUT_SECONDS = 600.0  # for the first process to decide
# By these a start of a job, or of a launcher's processes, differs from the one before.
_START_VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)
_MIN_PORT, _PORT_COUNT = 10_000, 20_000  # below the ports that a system assigns by itself
_PORT_STRIDE = 997  # between the ports of two seeds, or of two steps
_MAX_WORKERS = 8  # each takes memory


def publish(folder: Path, value: Any) -> None:
    """Publish a value to the other processes of this start.

    Args:
        folder: A folder that all processes see.
        value: What JSON can write.
    """
    path = _name_file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, json.dumps(value))


def wait_for_value(folder: Path) -> Any:
    """Wait for the value that the first process of this start publishes.

    Args:
        folder: As for `publish`.

    Raises:
        TimeoutError: There is none after `PUBLISH_TIMEOUT_SECONDS`.
    """
    path, end = _name_file(folder), time.monotonic() + PUBLISH_TIMEOUT_SECONDS
    while time.monotonic() < end:
        with suppress(OSError):
            return json.loads(path.read_text())
        time.sleep(0.1)
    raise TimeoutError(
        f"the first process has not said in {PUBLISH_TIMEOUT_SECONDS:.0f} s what to do, in "
        f"{path}; see what it says of itself, and whether all processes see that folder"
    )


def _name_file(folder: Path) -> Path:
    return folder / ("-".join(os.environ.get(name, "0") for name in _START_VARIABLES) + ".json")


def publish_run(spools: Path, run_id: str) -> None:
    """Publish the run to the processes that torchrun starts in place of these, if one fails.

    Args:
        spools: The folder of the spools.
        run_id: The run's id.
    """
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        with suppress(OSError):  # then the processes started next make a run
            spools.mkdir(parents=True, exist_ok=True)
            files.write_atomically(_name_run_file(spools), run_id)


def adopt_restarted_run(spools: Path) -> None:
    """Adopt, by MLFLOW_RUN_ID, the run of the processes that torchrun has replaced by these.

    Args:
        spools: As for `publish_run`.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if restarts == 0:
        return
    with suppress(OSError):  # they had not made a run yet
        os.environ.setdefault("MLFLOW_RUN_ID", _name_run_file(spools).read_text())
    # torchrun's store still has the addresses of the replaced processes, and a process that reads
    # one before it is overwritten fails to connect ("Gloo connectFullMesh failed").
    os.environ.update(choose_rendezvous(restarts))


def _name_run_file(spools: Path) -> Path:
    """Name a file by torchrun's process, which starts the others and stays the same."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "").replace("/", "-")
    return spools.parent / f".torchrun-{run}-{socket.gethostname()}-{os.getppid()}"


def is_rank_zero() -> bool:
    """Whether this process is the first of its run, by the environment that launchers set."""
    # In a shell started by srun, the processes that Lightning launches have its SLURM_PROCID.
    ranks = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    # What is no number is refused by `launch_check`, in a line that the first process prints.
    return all(not os.environ.get(name, "0").strip("0").isdecimal() for name in ranks)


def is_single_process() -> bool:
    """Whether no other process takes part in the run, by the environment."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) == 1


def choose_rendezvous(index: int) -> dict[str, str]:
    """Choose the port at which the processes of one seed's training meet.

    The first process may still be busy with one seed's artifacts, and listen, when another one
    starts the next seed: at the same port it would join the wrong processes.

    Args:
        index: The number of seeds trained before; the first one keeps the launcher's port.

    Returns:
        Environment variables, the same in each process; none if no launcher names a port.
    """
    environ = os.environ
    port = environ.get("MASTER_PORT")
    if port is None and int(environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_JOB_ID" in environ:
        port = str(choose_slurm_port())
    if port is None or index == 0:
        return {}
    seed_port = _MIN_PORT + (int(port) - _MIN_PORT + index * _PORT_STRIDE) % _PORT_COUNT
    # torchrun's agent listens at the launcher's port only.
    return {"MASTER_PORT": str(seed_port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def choose_slurm_port() -> int:
    """Choose the port at which the processes of a SLURM step meet.

    It is that of Lightning's SLURMEnvironment for a job's first step. Steps of one job that run at
    once (`srun ... &`) would join each other at the same port.
    """
    port = 15_000 + int(os.environ["SLURM_JOB_ID"][-4:])
    step = int(os.environ.get("SLURM_STEP_ID", 0))
    return _MIN_PORT + (port - _MIN_PORT + step * _PORT_STRIDE) % _PORT_COUNT


def count_workers(processes: int) -> int:
    """Count the data workers of a process that trains: all its processors but one, 1 to 8.

    Args:
        processes: How many processes train on this machine.
    """
    return min(max(count_cores(processes) - 1, 1), _MAX_WORKERS)


def count_cores(processes: int) -> int:
    """Count the processors that each process of a run has on this machine.

    Those of this process's affinity count (sched_getaffinity(2)), not a container's quota of time.
    SLURM binds each process to its own processors, or all to those of the job, or none: by
    SLURM_CPUS_ON_NODE, the processors of the job (sbatch(1)), the first can be told from the rest.

    Args:
        processes: The number of processes of the run on this machine.
    """
    is_linux = sys.platform == "linux"
    own = len(os.sched_getaffinity(0)) if is_linux else os.cpu_count() or 1
    job = int(os.environ.get("SLURM_CPUS_ON_NODE", own))
    return own if own < job else max(job // processes, 1)
