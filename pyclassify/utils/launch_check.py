"""Check the launch of a training: one run, with the number of processes that was asked for.

A process knows by environment variables which launcher started it, and as which of how many. They
are compared with `devices` and `num_nodes` before a run is made: a launcher that starts another
number of processes would make several runs, train several times on the same data, or wait for ever
for a process that nobody starts. docs/launching.md has a table of the launchers.

These start the processes of a run:

    torchrun    TORCHELASTIC_RUN_ID; the processes have RANK, LOCAL_RANK and WORLD_SIZE.
    srun        SLURM_STEP_ID, of as many tasks as SLURM_NTASKS says; a task has SLURM_PROCID.
    Lightning   none of these: the first process of a node starts the others. They have LOCAL_RANK,
                NODE_RANK, MASTER_ADDR and MASTER_PORT, and no RANK.
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Variables that have to be whole numbers where they are set.
_NUMBERS = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK"),
    *("MASTER_PORT", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_NTASKS"),
)
# Launchers that are not supported: the variables of a process's rank and of their number.
_OTHER_LAUNCHERS = {
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE"),
    "mpirun_rsh": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    "aprun": ("ALPS_APP_PE", "ALPS_APP_SIZE"),
    "flux": ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
    "horovodrun": ("HOROVOD_RANK", "HOROVOD_SIZE"),
    "jsrun": ("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_SIZE"),
}
# By these the processes of a launcher that is not known here say which of how many they are.
_RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
# What Lightning gives to the processes that it starts.
_LIGHTNING = ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
# A job of this name is a shell for a person, in which Lightning starts the processes.
_SHELLS = ("bash", "csh", "fish", "interactive", "ksh", "sh", "tcsh", "zsh")
_COPYING_STRATEGY = re.compile(r"ddp_(spawn|fork|notebook)")


@dataclass(frozen=True)
class Launch:
    """The processes that a launcher started for a run.

    Args:
        launcher: torchrun, srun or sbatch; the last one is a job's script, a single process.
        nodes: The number of nodes.
        processes: Processes on each node.
    """

    launcher: str
    nodes: int
    processes: int

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.nodes * self.processes


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the launch of a training command, as far as its settings tell without torch.

    Args:
        settings: Dotted settings, as `options.list_settings` lists them.

    Raises:
        ValueError: The launch makes another number of processes, or of runs, than is asked for.
    """
    _check_numbers()  # which Lightning reads when it is imported
    if "trainer" in settings:  # a file, or all settings in one: known when the Trainer is made
        return
    strategy = str(settings.get("trainer.strategy", "auto"))
    if _COPYING_STRATEGY.match(strategy):
        refuse_strategy(strategy)
    if is_interactive() and strategy not in ("auto", "single_device"):
        raise ValueError(
            f"strategy {strategy} starts processes, which can't be done in a notebook or an "
            "interactive Python; leave --trainer.strategy out"
        )
    devices = count_devices(settings.get("trainer.devices", 1))
    num_nodes = count_devices(settings.get("trainer.num_nodes", 1))
    names_environment = "Environment" in str(settings.get("trainer.plugins"))
    if devices is not None and num_nodes is not None:
        check_launch(devices, num_nodes, names_environment)


def check_launch(devices: int, num_nodes: int, names_environment: bool = False) -> None:
    """Check that a launcher started as many processes as are asked for.

    Args:
        devices: Processes on each node.
        num_nodes: The number of nodes.
        names_environment: Whether Lightning is told by a plugin whose environment variables hold.

    Raises:
        ValueError: It started others, or cannot be told from variables that were left over.
    """
    _check_numbers()
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
    """Remove ranks from the environment of a task of srun, which has the true one in SLURM_PROCID.

    Those of the shell that called srun are the same for all tasks: each would take itself for the
    first one. Scripts set them too, to what SLURM says.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ and _is_slurm_task():
        for name in (*_RANKS, "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            os.environ.pop(name, None)


def check_single(command: str) -> None:
    """Check that a command that starts the processes of a training itself was started once.

    Args:
        command: The command's name.

    Raises:
        ValueError: A launcher started it several times.
    """
    _check_numbers()
    launch = detect_launch()
    if launch is not None and launch.world_size > 1:
        raise ValueError(
            f"{launch.launcher} started {launch.world_size} processes of `pyclassify {command}`, "
            "which itself starts those of the run; start it once, without a launcher"
        )


def detect_launch() -> Launch | None:
    """Detect the launcher of this process; None where Lightning starts the others, if any.

    Raises:
        ValueError: srun started more tasks on one node than on another.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        size = _read_number("WORLD_SIZE", 1)
        processes = _read_number("LOCAL_WORLD_SIZE", size)
        return Launch("torchrun", max(size // max(processes, 1), 1), processes)
    # Without SLURM_NTASKS the job has not said how many, and without SLURM_PROCID this is salloc's.
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
            f"srun started {', '.join(map(str, counts))} tasks on the nodes, and each node trains "
            "with as many; give srun --ntasks-per-node"
        )
    return Launch("srun", len(counts), counts[0])


def is_interactive() -> bool:
    """Whether this is a notebook or an interactive Python, where Lightning can start no process."""
    return hasattr(sys, "ps1") or bool(sys.flags.interactive)


def refuse_strategy(strategy: str) -> None:
    """Refuse a strategy whose processes are copies of this one, and end with each fit or test.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        f"strategy {strategy} trains in copies of this process, each of which would make a run; "
        "leave --trainer.strategy out"
    )


def _is_slurm_task() -> bool:
    """Whether srun started this process, as one of several tasks.

    A job's script has the variables of a first task too, and those of a step may be left over in a
    job that was submitted from it.
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


def _check_numbers() -> None:
    for name in _NUMBERS:
        value = os.environ.get(name)
        if value is not None and not re.fullmatch(r"\d+", value, re.ASCII):
            raise ValueError(
                f"{name} is {value!r} in the environment, where launchers set a whole number; "
                f"`unset {name}`"
            )


def _check_other_launchers(devices: int, num_nodes: int) -> None:
    """Refuse processes of a launcher that neither Lightning nor this package follows."""
    by_torchrun = _read_number("GROUP_WORLD_SIZE", 1)  # one torchrun on each node
    for launcher, (rank_name, size_name) in _OTHER_LAUNCHERS.items():
        size = _read_number(size_name, _read_number(rank_name) + 1)
        names = ((rank_name, "SLURM_PROCID"), (size_name, "SLURM_NTASKS"))
        by_srun = all(os.environ.get(name) == os.environ.get(other) for name, other in names)
        if size in (1, by_torchrun) or by_srun:  # srun sets those of MPI too
            continue
        command = _name_command("torchrun", *_choose_size([size], devices, num_nodes))
        raise ValueError(
            f"{launcher} started {size} processes ({size_name}={size}), each of which would be a "
            f"run; start them by {command}"
        )


def _check_launchers_in_launchers(launch: Launch, devices: int, num_nodes: int) -> None:
    """Refuse a torchrun without all its variables, or several that don't know of each other."""
    if launch.launcher == "torchrun":
        missing = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name not in os.environ]
        if missing:
            raise ValueError(
                f"TORCHELASTIC_RUN_ID is set in the environment and {', '.join(missing)} not; "
                "`unset TORCHELASTIC_RUN_ID`, or start by torchrun"
            )
        tasks = _read_number("SLURM_NTASKS", 1)
        if _is_slurm_task() and tasks > _read_number("GROUP_WORLD_SIZE", tasks):
            raise ValueError(
                f"srun started torchrun {tasks} times, each of which would be a run; start one a "
                f"node: {_name_command('srun torchrun', devices, tasks)}"
            )


def _refuse_script(devices: int, num_nodes: int) -> None:
    """Refuse the script of a job of several tasks, where those were meant to train."""
    counts = _list_tasks_per_node()
    one = " in one process by `srun --nodes=1 --ntasks=1 python -m pyclassify ...`"
    raise ValueError(
        f"the job has {sum(counts)} tasks and its script, which started this process, is 1 of "
        f"{devices} x {num_nodes} processes (devices x num_nodes); start them by "
        f"{_name_command('srun', *_choose_size(counts, devices, num_nodes))}"
        f"{', or' + one if devices * num_nodes == 1 else ''}"
    )


def _choose_size(counts: list[int], devices: int, num_nodes: int) -> tuple[int, int]:
    """What was asked for, or what the job has where that is a single process."""
    return (devices, num_nodes) if devices * num_nodes > 1 else (counts[0], len(counts))


def _refuse_size(launch: Launch, devices: int, num_nodes: int) -> None:
    asked, started = f"{num_nodes * devices}", launch.world_size
    if launch.launcher == "sbatch":
        launched = f"the job's script is 1 of {devices} x {num_nodes} processes"
        launcher = "srun"
    else:
        launched = (
            f"{launch.launcher} started {started} of {devices} x {num_nodes} processes"
            if started < devices * num_nodes
            else f"{launch.launcher} started {started} processes ({launch.processes} on "
            f"{launch.nodes} nodes) for {devices} x {num_nodes} = {asked}"
        )
        launcher = launch.launcher
    give = f", or give --devices {launch.processes} --num_nodes {launch.nodes}"
    raise ValueError(
        f"{launched} (devices x num_nodes); start them by "
        f"{_name_command(launcher, devices, num_nodes)}{give}"
    )


def _check_ranks(devices: int, num_nodes: int) -> None:
    """Refuse a rank or a number of processes that no launcher known here has set."""
    found = {name: os.environ[name] for name in (*_RANKS, "WORLD_SIZE") if name in os.environ}
    size = _read_number("WORLD_SIZE", devices * num_nodes)
    is_alone = devices * num_nodes == size == 1 and not any(
        _read_number(name) for name in _RANKS if name in found
    )
    if "SLURM_PROCID" in os.environ and _read_number("SLURM_PROCID") > 0:
        found["SLURM_PROCID"] = os.environ["SLURM_PROCID"]
        is_alone = False
    by_lightning = "RANK" not in found and all(name in os.environ for name in _LIGHTNING)
    fits = _read_number("LOCAL_RANK") < devices and _read_number("NODE_RANK") < num_nodes
    if not found or is_alone or (by_lightning and fits and size == devices * num_nodes):
        return
    if found.keys() == {"NODE_RANK"} and fits and num_nodes > 1:
        return  # Lightning starts the processes of each node: see _check_own_launch
    values = ", ".join(f"{name}={value}" for name, value in found.items())
    if devices * num_nodes == 1:
        devices = size
    raise ValueError(
        f"{values} in the environment, of a launcher that is not known here or left over by one; "
        f"`unset {' '.join(found)}`, or start {devices} x {num_nodes} processes (devices x "
        f"num_nodes) by {_name_command('torchrun', devices, num_nodes)}"
    )


def _check_own_launch(devices: int, num_nodes: int) -> None:
    """Refuse what Lightning can't start by itself."""
    if "LOCAL_RANK" in os.environ:
        return  # Lightning has started it
    if devices > 1 and is_interactive():
        raise ValueError(
            f"devices is {devices} in a notebook or an interactive Python, where no further "
            "process can be started; give --devices 1, or start it in a shell (in a notebook with "
            f"an exclamation mark before): python -m pyclassify ... --devices {devices}"
        )
    missing = [name for name in ("NODE_RANK", *_LIGHTNING[2:]) if name not in os.environ]
    if num_nodes > 1 and missing:
        raise ValueError(
            f"num_nodes is {num_nodes} and no launcher has started processes on {num_nodes} "
            f"nodes; on SLURM start them by {_name_command('srun', devices, num_nodes)}, else on "
            f"each node by {_name_command('torchrun', devices, num_nodes)}"
        )


def _name_command(launcher: str, devices: int, num_nodes: int) -> str:
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
    """Count devices, or nodes, by the value of the option; None for `auto`, -1 and what is wrong.

    Of "0,1" and [0, 1] each is one device.
    """
    text = str(value).strip()
    if isinstance(value, list) or re.search(r"[\[,]", text):
        return len(re.findall(r"\d+", text)) or None
    return int(text) if re.fullmatch(r"0*[1-9]\d*", text, re.ASCII) else None
