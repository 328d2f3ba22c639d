"""The protocol between a launcher (srun, torchrun, a job's script) and the processes it starts.

A SLURM job's script (slurm/script) and the training in it use three environment variables, which
the script sets, and one exit code:

    PYCLASSIFY_SPOOL            The folder of the job's spools. tracking/run opens the run's spool
                                there; slurm/reporter writes there while the server is unreachable.
    PYCLASSIFY_PROGRESS         A file. training/exact_resume writes the step of each checkpoint to
                                it; slurm/reporter requeues a job only if the step has increased.
    PYCLASSIFY_STATUS_BY_SLURM  The id of the job's run. After a stop signal, tracking/run leaves
                                the status of this run to slurm/reporter: the time limit and
                                scancel send the same signal, and only SLURM knows which it was.
    exit code 75                The training saved a checkpoint after SIGUSR1 and must be started
                                again. cli and runs/seeds exit with it; the script and
                                slurm/reporter requeue the job.

Any other project can follow the same protocol (docs/resuming.md#requeue-another-project).

Processes that have no process group yet, perhaps on several nodes, broadcast values of the first
process through a file in a shared folder.

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

PUBLISH_TIMEOUT_SECONDS = 600.0  # for the first process to publish a value
# Together, these identify one start of a job's processes.
_START_VARIABLES = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)
_MIN_PORT, _PORT_COUNT = 10_000, 20_000  # below the ephemeral ports of the system
_PORT_STRIDE = 997  # between the ports of two seeds, or of two steps
_MAX_WORKERS = 8  # each worker needs memory
_SECONDS_PER_DAY = 86_400
_MAX_RUN_FILE_DAYS = 7


def publish(folder: Path, value: Any) -> None:
    """Publish a value to the other processes of this start.

    Args:
        folder: A folder that all processes see.
        value: A value that JSON can represent.
    """
    path = _name_file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, json.dumps(value))


def wait_for_value(folder: Path) -> Any:
    """Wait for the value that the first process of this start publishes.

    Args:
        folder: The folder given to `publish`.

    Raises:
        TimeoutError: No value was published within `PUBLISH_TIMEOUT_SECONDS`.
    """
    path, end = _name_file(folder), time.monotonic() + PUBLISH_TIMEOUT_SECONDS
    while time.monotonic() < end:
        with suppress(OSError):
            return json.loads(path.read_text())
        time.sleep(0.1)
    raise TimeoutError(
        f"timed out after {PUBLISH_TIMEOUT_SECONDS:.0f} s waiting for the first process (rank 0) "
        f"to write {path}; check the output of rank 0, and that all nodes share this folder"
    )


def _name_file(folder: Path) -> Path:
    return folder / ("-".join(os.environ.get(name, "0") for name in _START_VARIABLES) + ".json")


def publish_run(spools: Path, run_id: str) -> None:
    """Publish the run's ID to the processes that torchrun starts after a failure (--max-restarts).

    Also remove such files of earlier launches on this machine.

    Args:
        spools: The folder of spools.
        run_id: The run's ID.
    """
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
        with suppress(OSError):  # the restarted processes create another run then
            spools.mkdir(parents=True, exist_ok=True)
            files.write_atomically(_name_run_file(spools), run_id)
            _remove_stale_run_files(spools)


def adopt_restarted_run(spools: Path) -> None:
    """Adopt the run that was published before torchrun restarted the processes.

    This sets MLFLOW_RUN_ID, and another port for the process group.

    Args:
        spools: The folder given to `publish_run`.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if restarts == 0:
        return
    with suppress(OSError):  # no run was created before the restart
        os.environ.setdefault("MLFLOW_RUN_ID", _name_run_file(spools).read_text())
    # torchrun's store still has the addresses of the failed processes. A process that reads such an
    # address before it is overwritten can't connect ("Gloo connectFullMesh failed").
    os.environ.update(choose_rendezvous(restarts))


def _name_run_file(spools: Path) -> Path:
    """Name a file after torchrun's agent, the parent process before and after a restart."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "").replace("/", "-")
    return spools.parent / f".torchrun-{run}-{socket.gethostname()}-{os.getppid()}"


def _remove_stale_run_files(spools: Path) -> None:
    """Remove old files of agents that have exited.

    A run file stays until then: torchrun also restarts all processes if one fails after the run
    has ended. The age protects agents in other containers, whose processes are not visible here.
    """
    oldest = time.time() - _MAX_RUN_FILE_DAYS * _SECONDS_PER_DAY
    for path in spools.parent.glob(f".torchrun-*-{socket.gethostname()}-*"):
        pid = path.name.rpartition("-")[2]
        with suppress(OSError):
            if pid.isdecimal() and path.stat().st_mtime < oldest and not _is_alive(int(pid)):
                path.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:  # PermissionError: the process of another user
        return not isinstance(error, ProcessLookupError)
    return True


def is_rank_zero() -> bool:
    """Whether this process has rank 0, by the environment variables of launchers."""
    # In a shell started by srun, the processes that Lightning launches inherit its SLURM_PROCID.
    ranks = ("RANK",) if "RANK" in os.environ else ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    # A rank that is not a number counts as 0, so that one process prints the error of launch_check.
    return all(not os.environ.get(name, "0").strip("0").isdecimal() for name in ranks)


def is_single_process() -> bool:
    """Whether the run has a single process, by the environment variables of launchers."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) == 1


def choose_rendezvous(index: int) -> dict[str, str]:
    """Choose the rendezvous port of one seed's training.

    Rank 0 may still upload the artifacts of one seed, and listen at its port, when another process
    starts the next seed. At the same port, that process would join the wrong process group.

    Args:
        index: The number of seeds trained before; with 0 the launcher's port is used.

    Returns:
        Environment variables, the same in each process; empty if no launcher set a port.
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
    """Choose the rendezvous port of a SLURM step.

    For the first step of a job it is the port of Lightning's SLURMEnvironment. Each further step
    gets another port: concurrent steps of a job (`srun ... &`) would join one process group at the
    same port.
    """
    port = 15_000 + int(os.environ["SLURM_JOB_ID"][-4:])
    step = int(os.environ.get("SLURM_STEP_ID", 0))
    return _MIN_PORT + (port - _MIN_PORT + step * _PORT_STRIDE) % _PORT_COUNT


def count_workers(processes: int) -> int:
    """Count the data workers of a process that trains: its CPU cores less one, from 1 to 8.

    Args:
        processes: The number of processes of the run on this machine.
    """
    return min(max(count_cores(processes) - 1, 1), _MAX_WORKERS)


def count_cores(processes: int) -> int:
    """Count the CPU cores that each process of a run has on this machine.

    The CPU affinity counts (sched_getaffinity(2)), not a container's CPU quota. SLURM may bind
    each process to its own cores, all processes to the cores of the job, or none. The first case
    is recognized by SLURM_CPUS_ON_NODE, the cores of the job (sbatch(1)).

    Args:
        processes: The number of processes of the run on this machine.
    """
    is_linux = sys.platform == "linux"
    own = len(os.sched_getaffinity(0)) if is_linux else os.cpu_count() or 1
    job = int(os.environ.get("SLURM_CPUS_ON_NODE", own))
    return own if own < job else max(job // processes, 1)
