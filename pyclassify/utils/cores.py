"""The processors that a process may take."""

import os
import sys

_MOST_WORKERS = 8  # each takes memory


def count_workers(processes: int) -> int:
    """How many processes are to read images beside a process that trains.

    Args:
        processes: How many train on this machine.

    Returns:
        All of its processors but one, 1 to 8.
    """
    return min(max(count_cores(processes) - 1, 1), _MOST_WORKERS)


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
