"""Check the launch of a training: it must be one run with `devices` x `num_nodes` processes.

Environment variables show which launcher started a process, its rank and the world size. They are
compared with `devices` and `num_nodes` before a run is created. A launcher that starts another
number of processes would create several runs, train several times on the same data, or wait forever
for a process that is never started. docs/launching.md has a table of the launchers.

These launchers start the processes of a run:

    torchrun    sets TORCHELASTIC_RUN_ID, and RANK, LOCAL_RANK and WORLD_SIZE in each process.
    srun        sets SLURM_STEP_ID, SLURM_NTASKS (the world size), and SLURM_PROCID in each task.
    Lightning   sets none of these. The first process of a node starts the others, with LOCAL_RANK,
                NODE_RANK, MASTER_ADDR and MASTER_PORT, but without RANK.
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyclassify.utils.options import UsageError

# Variables that must be whole numbers if they are set.
_INTEGER_VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"),
    *("MASTER_PORT", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS"),
)
# Unsupported launchers, and their variables for the rank and the world size.
_OTHER_LAUNCHERS = {
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE"),
    "mpirun_rsh": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    "aprun": ("ALPS_APP_PE", "ALPS_APP_SIZE"),
    "flux": ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_SIZE"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
}
# The variables in which unknown launchers pass a rank to a process.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
# The variables that Lightning sets in the processes that it starts.
_LIGHTNING_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
# A job with one of these names is an interactive shell, in which Lightning starts the processes.
_SHELLS = ("bash", "csh", "fish", "interactive", "ksh", "sh", "tcsh", "zsh")
_FORKING_STRATEGY = re.compile(r"ddp_(spawn|fork|notebook)")


@dataclass(frozen=True)
class Launch:
    """The processes that a launcher started for a run.

    Args:
        launcher: torchrun, srun or sbatch. With sbatch this is a job's script, a single process.
        nodes: The number of nodes.
        processes: The number of processes on each node.

    Example:
        >>> Launch("srun", nodes=2, processes=4).world_size
        8
    """

    launcher: str
    nodes: int
    processes: int

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.nodes * self.processes


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the launch of a training command by its settings, without importing torch.

    Args:
        settings: Dotted settings, as `options.list_settings` lists them.

    Raises:
        UsageError: The strategy forks or spawns processes that would each create a run.
        ValueError: The launcher did not start `devices` x `num_nodes` processes.
    """
    _check_integer_variables()  # Lightning reads them when it is imported
    if "trainer" in settings:  # a file or a mapping, which is checked with the Trainer
        return
    strategy = str(settings.get("trainer.strategy", "auto"))
    if _FORKING_STRATEGY.match(strategy):
        refuse_strategy(strategy)
    if is_interactive() and strategy not in ("auto", "single_device"):
        raise ValueError(
            f"--trainer.strategy {strategy} starts processes, which is not possible in a notebook "
            "or an interactive Python; omit the option"
        )
    devices = count_devices(settings.get("trainer.devices", 1))
    num_nodes = count_devices(settings.get("trainer.num_nodes", 1))
    names_environment = "Environment" in str(settings.get("trainer.plugins"))
    if devices is not None and num_nodes is not None:
        check_launch(devices, num_nodes, names_environment)


def check_launch(devices: int, num_nodes: int, names_environment: bool = False) -> None:
    """Check that a launcher, if any, started `devices` x `num_nodes` processes.

    Args:
        devices: The number of processes on each node.
        num_nodes: The number of nodes.
        names_environment: Whether a plugin of the Trainer sets the cluster environment, so that
            the variables of unknown launchers are not checked.

    Raises:
        ValueError: The launcher started another number of processes, or the environment has
            variables of an unknown or earlier launch.
    """
    _check_integer_variables()
    _check_other_launchers(devices, num_nodes)
    launch = detect_launch()
    if launch is None:
        if not names_environment:
            _check_ranks(devices, num_nodes)
            _check_own_launch(devices, num_nodes)
        return
    _check_launchers_in_launchers(launch, devices, num_nodes)
    if launch.launcher == "sbatch" and _read_number("SLURM_NTASKS", 1) > 1:
        _refuse_script(devices, num_nodes)
    if (launch.nodes, launch.processes) != (num_nodes, devices):
        _refuse_size(launch, devices, num_nodes)


def drop_ranks_beside_srun() -> None:
    """Remove rank variables from the environment of a task of srun, whose rank is SLURM_PROCID.

    All tasks inherit the same variables from the shell that called srun, so that each task would
    take itself for rank 0.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and _is_slurm_task():
        for name in (*_RANKS, "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)


def check_single(command: str) -> None:
    """Check that a command that starts the processes of a training itself runs in one process.

    Args:
        command: The command's name.

    Raises:
        ValueError: A launcher started the command in several processes.
    """
    _check_integer_variables()
    launch = detect_launch()
    if launch is not None and launch.world_size > 1:
        raise ValueError(
            f"{launch.launcher} started {launch.world_size} processes of `pyclassify {command}`, "
            "but this command starts the processes of the run itself; start it once, without "
            f"{launch.launcher}"
        )


def detect_launch() -> Launch | None:
    """Detect the launcher of this process; None if Lightning starts the other processes.

    Raises:
        ValueError: srun started different numbers of tasks on the nodes.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        size = _read_number("WORLD_SIZE", 1)
        processes = _read_number("LOCAL_WORLD_SIZE", size)
        return Launch("torchrun", max(size // max(processes, 1), 1), processes)
    # A job without --ntasks has no SLURM_NTASKS, and a shell of salloc has no SLURM_PROCID.
    if "SLURM_NTASKS" not in os.environ or "SLURM_PROCID" not in os.environ:
        return None
    if _is_slurm_shell():
        return None
    if not _is_slurm_task():
        in_step = "SLURM_STEP_ID" in os.environ and _read_number("SLURM_NTASKS", 1) == 1
        return Launch("srun" if in_step else "sbatch", 1, 1)
    counts = _list_tasks_per_node()
    if len(set(counts)) > 1:
        raise ValueError(
            f"srun started {', '.join(map(str, counts))} tasks on {len(counts)} nodes, but each "
            "node must run the same number of tasks; give srun the option --ntasks-per-node"
        )
    return Launch("srun", len(counts), counts[0])


def is_interactive() -> bool:
    """Whether this is a notebook or an interactive Python, which can't start processes."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


def refuse_strategy(strategy: str) -> None:
    """Refuse a strategy that forks or spawns this process for each fit or test.

    Raises:
        UsageError: Always.
    """
    raise UsageError(
        f"unsupported --trainer.strategy: {strategy} (it forks or spawns this process, and each "
        "process would create a run); omit the option, or give ddp"
    )


def _is_slurm_task() -> bool:
    """Whether srun started this process as one of several tasks.

    The script of a job also has the variables of task 0, and a job that was submitted from a step
    inherits the variables of that step.
    """
    tasks = _read_number("SLURM_NTASKS", 1)
    in_step = "SLURM_STEP_ID" in os.environ and _read_number("SLURM_STEP_NUM_TASKS", tasks) == tasks
    return tasks > 1 and (_read_number("SLURM_PROCID") > 0 or in_step)


def _is_slurm_shell() -> bool:
    return os.environ.get("SLURM_JOB_NAME") in _SHELLS and _read_number("SLURM_NTASKS", 1) == 1


def _list_tasks_per_node() -> list[int]:
    """List the tasks of each node of this step: 2(x2),1 is [2, 2, 1]."""
    tasks, nodes = _read_number("SLURM_NTASKS", 1), _read_number("SLURM_NNODES", 1)
    text = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("SLURM_TASKS_PER_NODE", "")
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    counts = [int(count) for count, times in parts for _ in range(int(times or 1))]
    return counts if sum(counts) == tasks else [max(tasks // max(nodes, 1), 1)] * max(nodes, 1)


def _check_integer_variables() -> None:
    for name in _INTEGER_VARIABLES:
        value = os.environ.get(name)
        if value is not None and not re.fullmatch(r"\d+", value, re.ASCII):
            raise ValueError(
                f"invalid {name} in the environment: {value!r} (expected a whole number, as "
                f"launchers set it); run `unset {name}`"
            )


def _check_other_launchers(devices: int, num_nodes: int) -> None:
    """Refuse processes of a launcher that neither Lightning nor this package supports."""
    by_torchrun = _read_number("GROUP_WORLD_SIZE", 1)  # one torchrun on each node
    for launcher, (rank_name, size_name) in _OTHER_LAUNCHERS.items():
        size = _read_number(size_name, _read_number(rank_name) + 1)
        names = ((rank_name, "SLURM_PROCID"), (size_name, "SLURM_NTASKS"))
        by_srun = all(os.environ.get(name) == os.environ.get(other) for name, other in names)
        if size in (1, by_torchrun) or by_srun:  # srun sets those of MPI too
            continue
        command = _format_command("torchrun", *_choose_size([size], devices, num_nodes))
        raise ValueError(
            f"{launcher} started {size} processes ({size_name}={size}), and each process would "
            f"create a run; start the processes with {command}"
        )


def _check_launchers_in_launchers(launch: Launch, devices: int, num_nodes: int) -> None:
    """Refuse torchrun without all of its variables, or several independent torchruns."""
    if launch.launcher == "torchrun":
        missing = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name not in os.environ]
        if missing:
            raise ValueError(
                f"the environment has TORCHELASTIC_RUN_ID, but not {', '.join(missing)}; run "
                "`unset TORCHELASTIC_RUN_ID`, or start the training with torchrun"
            )
        tasks = _read_number("SLURM_NTASKS", 1)
        if _is_slurm_task() and tasks > _read_number("GROUP_WORLD_SIZE", tasks):
            raise ValueError(
                f"srun started torchrun {tasks} times, and each torchrun would create a run; start "
                f"one torchrun per node with {_format_command('srun torchrun', devices, tasks)}"
            )


def _refuse_script(devices: int, num_nodes: int) -> None:
    """Refuse a training in the script of a job that has several tasks."""
    counts = _list_tasks_per_node()
    command = _format_command("srun", *_choose_size(counts, devices, num_nodes))
    message = (
        f"the job has {sum(counts)} tasks, but its script started the training without srun, in 1 "
        f"process of {devices} x {num_nodes} (devices x num_nodes); start all with {command}"
    )
    if devices * num_nodes == 1:
        message += ", or a single one with `srun --nodes=1 --ntasks=1 python -m pyclassify ...`"
    raise ValueError(message)


def _choose_size(counts: list[int], devices: int, num_nodes: int) -> tuple[int, int]:
    """Choose the devices and nodes of the options, or those of the job if the former is 1 x 1."""
    return (devices, num_nodes) if devices * num_nodes > 1 else (counts[0], len(counts))


def _refuse_size(launch: Launch, devices: int, num_nodes: int) -> None:
    """Refuse a launch whose number of processes is not `devices` x `num_nodes`."""
    if launch.launcher == "sbatch":
        launcher, started = "srun", "the job's script started the training without srun, in 1 x 1"
    else:
        launcher = launch.launcher
        started = f"{launcher} started {launch.processes} x {launch.nodes}"
    raise ValueError(
        f"{started} processes (processes per node x nodes), but {devices} x {num_nodes} are "
        f"expected (devices x num_nodes); start them with "
        f"{_format_command(launcher, devices, num_nodes)}, or give --devices {launch.processes} "
        f"--num_nodes {launch.nodes}"
    )


def _check_ranks(devices: int, num_nodes: int) -> None:
    """Refuse a rank or a world size that no supported launcher has set."""
    found = {name: os.environ[name] for name in (*_RANKS, "WORLD_SIZE") if name in os.environ}
    size = _read_number("WORLD_SIZE", devices * num_nodes)
    is_alone = devices * num_nodes == size == 1 and not any(
        _read_number(name) for name in _RANKS if name in found
    )
    if "SLURM_PROCID" in os.environ and _read_number("SLURM_PROCID") > 0:
        found["SLURM_PROCID"] = os.environ["SLURM_PROCID"]
        is_alone = False
    by_lightning = "RANK" not in found and all(name in os.environ for name in _LIGHTNING_VARIABLES)
    fits = _read_number("LOCAL_RANK") < devices and _read_number("NODE_RANK") < num_nodes
    if not found or is_alone or (by_lightning and fits and size == devices * num_nodes):
        return
    if found.keys() == {"NODE_RANK"} and fits and num_nodes > 1:
        return  # Lightning starts the processes of each node: see _check_own_launch
    values = ", ".join(f"{name}={value}" for name, value in found.items())
    if devices * num_nodes == 1:
        devices = size
    raise ValueError(
        f"the environment has {values}, set by an unsupported launcher or left from an earlier "
        f"launch; run `unset {' '.join(found)}`, or start {devices} x {num_nodes} processes "
        f"(devices x num_nodes) with {_format_command('torchrun', devices, num_nodes)}"
    )


def _check_own_launch(devices: int, num_nodes: int) -> None:
    """Refuse processes that Lightning can't start by itself."""
    if "LOCAL_RANK" in os.environ:
        return  # Lightning has started this process
    if devices > 1 and is_interactive():
        raise ValueError(
            f"invalid --devices in a notebook or an interactive Python: {devices} (expected 1, as "
            "no further process can be started); give --devices 1, or run in a shell (in a "
            f"notebook, with `!` in front): python -m pyclassify ... --devices {devices}"
        )
    missing = [name for name in ("NODE_RANK", *_LIGHTNING_VARIABLES[2:]) if name not in os.environ]
    if num_nodes > 1 and missing:
        raise ValueError(
            f"--num_nodes is {num_nodes}, but no launcher has started processes on {num_nodes} "
            f"nodes; on SLURM, start them with {_format_command('srun', devices, num_nodes)}; "
            f"otherwise, on each node, with {_format_command('torchrun', devices, num_nodes)}"
        )


def _format_command(launcher: str, devices: int, num_nodes: int) -> str:
    command = f"pyclassify ... --devices {devices} --num_nodes {num_nodes}"
    if launcher == "srun":
        return f"`srun --nodes={num_nodes} --ntasks-per-node={devices} python -m {command}`"
    meet = " --rdzv-backend=c10d --rdzv-endpoint=FIRST_NODE:29500" if num_nodes > 1 else ""
    where = f"--nnodes={num_nodes}{meet}" if num_nodes > 1 else "--standalone"
    by_srun = f"srun --nodes={num_nodes} --ntasks-per-node=1 " if "srun" in launcher else ""
    return f"`{by_srun}torchrun {where} --nproc-per-node={devices} -m {command}`"


def _read_number(name: str, default: int = 0) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default


def count_devices(value: Any) -> int | None:
    """Count the devices or nodes that an option's value names.

    Args:
        value: A number, or a list of device indices such as [0, 1] or "0,1".

    Returns:
        The number; None for `auto`, -1 and invalid values.
    """
    text = str(value).strip()
    if isinstance(value, list) or re.search(r"[\[,]", text):
        return len(re.findall(r"\d+", text)) or None
    return int(text) if re.fullmatch(r"0*[1-9]\d*", text, re.ASCII) else None
