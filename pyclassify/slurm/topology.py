"""How many nodes, processes and GPUs: decided by the project's parameters, checked by the JSON.

A project that has the parameters `devices` and `num_nodes` (as this one and Lightning's do) is
started with one process a device, and each process has a GPU unless the run is for the CPU. For
any other project the JSON's own numbers decide.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pyclassify.slurm.config import Config

# Values of Lightning's `accelerator`; with the others (`auto`) the JSON may say.
_CPU, _GPU = ("cpu",), ("gpu", "cuda")
# Parameters of this project that name files, which its MLproject does not declare as such.
_PATHS = ("data_path", "data.data_path", "ckpt_path", "weights", "model.weights")
# Those that may be other than a path: a run's id, or a word of another project's.
_PERHAPS = ("ckpt_path", "weights", "model.weights")


@dataclass(frozen=True)
class Topology:
    """What the job is made of.

    Args:
        nodes: Nodes.
        tasks: Processes on each node.
        gpus: GPUs of each node; all its processes see all of them.
    """

    nodes: int
    tasks: int
    gpus: int

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.nodes * self.tasks


@dataclass(frozen=True)
class _Said:
    """What a parameter was given, and where: `2` by `-P devices=2`."""

    name: str
    value: Any
    where: str

    def __str__(self) -> str:
        return f"{self.name} is {self.value} by {self.where}"


def decide(config: Config, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Topology:
    """Decide on the topology.

    Args:
        config: The configuration.
        given: The parameters of the command line.
        defaults: The entry point's parameters that have a default.

    Raises:
        ValueError: A number is none, or two sources disagree; both, and where they came from.
    """
    devices = _find("devices", given, defaults)
    nodes = _settle("nodes", config.nodes, _find("num_nodes", given, defaults))
    tasks = _settle("ntasks_per_node", config.ntasks_per_node, devices)
    if devices is None:
        return Topology(nodes, tasks, _follow_json(config, nodes, tasks))
    accelerator = _find("accelerator", given, defaults) or _Said("accelerator", "auto", "")
    if config.gpus == 0 and accelerator.value not in _GPU:
        return Topology(nodes, tasks, 0)
    if accelerator.value in _CPU:
        _check("gpus", config.gpus, 0, str(accelerator))
        _check("gpus_per_task", config.gpus_per_task, 0, str(accelerator))
        return Topology(nodes, tasks, 0)
    _check("gpus", config.gpus, nodes * tasks, f"{devices}, on {nodes} nodes")
    _check("gpus_per_task", config.gpus_per_task, 1, f"{devices}, and each process has 1 GPU")
    return Topology(nodes, tasks, tasks)


def _find(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> _Said | None:
    """Find a parameter by its short name, or by that of Lightning's option."""
    said = [
        _Said(name, given[each], f"-P {each}={given[each]}")
        for each in (name, f"trainer.{name}")
        if each in given
    ]
    if len(said) == 2 and said[0].value != said[1].value:
        raise ValueError(f"{said[0].where} and {said[1].where} set the same; give one of them")
    if said:
        return said[0]
    if name in defaults:
        return _Said(name, defaults[name], "the MLproject's default")
    return None


def _settle(key: str, checked: int | None, said: _Said | None) -> int:
    if said is None:
        return checked or 1
    try:
        number = float(said.value)
    except (TypeError, ValueError):
        number = 0.0
    if not number.is_integer() or number < 1:  # inf and nan are none
        raise ValueError(
            f"{said}; SLURM must be told how many: it takes a whole number from 1, such as "
            f"-P {said.name}=2"
        )
    _check(key, checked, int(number), str(said))
    return int(number)


def _check(key: str, checked: int | None, number: int, why: str) -> None:
    if checked not in (None, number):
        raise ValueError(
            f"{key} is {checked} in the backend config, and {why}; the parameters decide: leave "
            f"{key} out of the config, or make the two agree"
        )


def _follow_json(config: Config, nodes: int, tasks: int) -> int:
    """The GPUs of each node by the JSON alone."""
    if config.gpus is None:
        return (config.gpus_per_task or 0) * tasks
    if config.gpus % nodes:
        raise ValueError(
            f"gpus is {config.gpus} in the backend config, of the whole job, for {nodes} nodes; it "
            f"takes a multiple of {nodes}"
        )
    gpus = config.gpus // nodes
    if config.gpus_per_task is not None and config.gpus_per_task * tasks != gpus:
        raise ValueError(
            f"gpus is {config.gpus} in the backend config, and gpus_per_task makes "
            f"{config.gpus_per_task} x {tasks * nodes} processes; give one of the two"
        )
    return gpus


def place(
    given: Mapping[str, Any],
    entry_point: Any,
    is_snapshotted: Callable[[str], bool],
    snapshot: Path,
    submitted_in: Path,
) -> dict[str, Any]:
    """Make relative paths absolute: files of the snapshot there, others where they are.

    Args:
        given: The parameters of the command line.
        entry_point: MLflow's entry point, which says what is of type `path`.
        is_snapshotted: Whether a relative path is one of the snapshot's.
        snapshot: The folder of the snapshot.
        submitted_in: The folder of the submission.

    Returns:
        The parameters, with those defaults that are paths.
    """
    declared = {
        name: each.default
        for name, each in entry_point.parameters.items()
        if each.type == "path" and each.default is not None
    }
    placed = {**declared, **given}
    for name, value in placed.items():
        typed = name in entry_point.parameters and entry_point.parameters[name].type == "path"
        if not (typed or name in _PATHS) or not _is_relative(str(value)):
            continue
        if is_snapshotted(str(value)):
            if typed:  # MLflow would take it from the folder of the submission
                placed[name] = str(snapshot / value)
        elif typed or name not in _PERHAPS or (submitted_in / value).exists():
            placed[name] = str(submitted_in / value)
    return placed


def find_files(placed: Mapping[str, Any], entry_point: Any) -> list[str]:
    """The files and folders here that parameters name by an absolute path."""
    declared = entry_point.parameters
    named = [
        Path(str(value))
        for name, value in placed.items()
        if name in _PATHS or (name in declared and declared[name].type == "path")
    ]
    return [str(path) for path in named if path.is_absolute() and path.exists()]


def _is_relative(value: str) -> bool:
    # A checkpoint may be a run's id, which is a relative path too.
    return bool(value) and not urlsplit(value).scheme and not value.startswith(("/", "~", "$"))
