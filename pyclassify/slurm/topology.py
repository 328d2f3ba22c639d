"""Nodes, processes and GPUs of a job, and the paths among its parameters.

A project with the parameters `devices` and `num_nodes`, such as this one, is started with one task
per device, and each task has a GPU unless the run is for the CPU. The configuration of the backend
may repeat these numbers, and is checked against them. For any other project the numbers of the
configuration count.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pyclassify.slurm.config import Config
from pyclassify.utils.options import (
    MAYBE_PATH_OPTIONS,
    PATH_OPTIONS,
    SHORT_OPTIONS,
    UsageError,
)

if TYPE_CHECKING:
    from mlflow.projects._project_spec import EntryPoint

# Values of Lightning's `accelerator`; with another one (`auto`) the configuration decides.
_CPU, _GPU = ("cpu",), ("gpu", "cuda")


@dataclass(frozen=True)
class Topology:
    """The nodes, processes and GPUs of a job.

    Args:
        nodes: The number of nodes.
        tasks: The number of tasks (processes) on each node.
        gpus: The number of GPUs on each node; each task sees all of them.

    Example:
        >>> Topology(nodes=2, tasks=4, gpus=4).world_size
        8
    """

    nodes: int
    tasks: int
    gpus: int

    @property
    def world_size(self) -> int:
        """The number of tasks on all nodes."""
        return self.nodes * self.tasks


@dataclass(frozen=True)
class _Parameter:
    """The value of a parameter and its source, such as `-P devices=2`."""

    name: str
    value: Any
    source: str

    def __str__(self) -> str:
        return f"{self.name} is {self.value} ({self.source})"


def decide_topology(
    config: Config, parameters: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Topology:
    """Decide how many nodes, processes and GPUs a job has.

    Args:
        config: The configuration.
        parameters: The parameters of the command line.
        defaults: The entry point's parameters that have a default.

    Raises:
        UsageError: A number is not an integer from 1, or two sources contradict each other; the
            message has both numbers and their sources.
    """
    devices = _find_parameter("devices", parameters, defaults)
    num_nodes = _find_parameter("num_nodes", parameters, defaults)
    nodes = _choose_count("nodes", config.nodes, num_nodes)
    tasks = _choose_count("ntasks_per_node", config.ntasks_per_node, devices)
    if devices is None:
        return Topology(nodes, tasks, _count_configured_gpus(config, nodes, tasks))
    accelerator = _find_parameter("accelerator", parameters, defaults)
    accelerator = accelerator or _Parameter("accelerator", "auto", "")
    if config.gpus == 0 and accelerator.value not in _GPU:
        return Topology(nodes, tasks, 0)
    if accelerator.value in _CPU:
        _check_count("gpus", config.gpus, 0, str(accelerator))
        _check_count("gpus_per_task", config.gpus_per_task, 0, str(accelerator))
        return Topology(nodes, tasks, 0)
    _check_count("gpus", config.gpus, nodes * tasks, f"{devices}, on {nodes} nodes")
    reason = f"{devices}, and each task has 1 GPU"
    _check_count("gpus_per_task", config.gpus_per_task, 1, reason)
    return Topology(nodes, tasks, tasks)


def _find_parameter(
    name: str, parameters: Mapping[str, Any], defaults: Mapping[str, Any]
) -> _Parameter | None:
    """Find a parameter by its short name, or by that of Lightning's option."""
    found = [
        _Parameter(name, parameters[key], f"-P {key}={parameters[key]}")
        for key in (name, f"trainer.{name}")
        if key in parameters
    ]
    if len(found) == 2 and found[0].value != found[1].value:
        raise UsageError(
            f"{found[0].source} and {found[1].source} contradict each other; give one of the two"
        )
    if found:
        return found[0]
    if name in defaults:
        return _Parameter(name, defaults[name], "default of the MLproject")
    return None


def _choose_count(key: str, configured: int | None, parameter: _Parameter | None) -> int:
    """The number of the parameter, which the configuration may repeat, or else of the latter."""
    if parameter is None:
        return configured or 1
    try:
        number = float(parameter.value)
    except (TypeError, ValueError):
        number = 0.0
    if not number.is_integer() or number < 1:  # inf and nan are not integers
        raise UsageError(
            f"invalid {parameter.name}: {parameter.value} (expected an integer from 1, such as "
            f"-P {parameter.name}=2, as SLURM needs the number)"
        )
    _check_count(key, configured, int(number), str(parameter))
    return int(number)


def _check_count(key: str, configured: int | None, number: int, reason: str) -> None:
    if configured not in (None, number):
        raise UsageError(
            f"{key} is {configured} in the backend config, but {reason}; remove {key} from the "
            "config, or give the same number by both"
        )


def _count_configured_gpus(config: Config, nodes: int, tasks: int) -> int:
    """The number of GPUs on each node by the configuration alone."""
    if config.gpus is None:
        if config.gpu_type is not None and config.gpus_per_task is None:
            raise UsageError(
                f"gpu_type is {config.gpu_type!r} in the backend config without a number of GPUs, "
                f'as the project has no parameter devices; give "gpus", such as {nodes * tasks}'
            )
        return (config.gpus_per_task or 0) * tasks
    if config.gpus % nodes:
        raise UsageError(
            f"invalid gpus in the backend config: {config.gpus} (expected a multiple of {nodes}, "
            f"as the job has {nodes} nodes)"
        )
    gpus = config.gpus // nodes
    if config.gpus_per_task is not None and config.gpus_per_task * tasks != gpus:
        raise UsageError(
            f"gpus is {config.gpus} in the backend config, but gpus_per_task is "
            f"{config.gpus_per_task} for {tasks * nodes} tasks; give one of the two"
        )
    return gpus


def resolve_paths(
    parameters: Mapping[str, Any],
    entry_point: "EntryPoint",
    is_in_snapshot: Callable[[str], bool],
    snapshot: Path,
    submit_dir: Path,
) -> dict[str, Any]:
    """Make relative paths absolute: files of the snapshot there, others where they are.

    Args:
        parameters: The parameters of the command line.
        entry_point: MLflow's entry point, which has the types of the parameters.
        is_in_snapshot: Whether a relative path is in the snapshot.
        snapshot: The folder of the snapshot.
        submit_dir: The folder that the run is submitted from.

    Returns:
        The parameters, and the defaults that are paths.
    """
    defaults = {
        name: parameter.default
        for name, parameter in entry_point.parameters.items()
        if parameter.type == "path" and parameter.default is not None
    }
    resolved = {**defaults, **parameters}
    for name, value in resolved.items():
        option = SHORT_OPTIONS.get(name, name)  # -P may give a short name
        typed = _is_declared_path(name, entry_point)
        # An option of `pyclassify` can be a path that the MLproject does not declare.
        if not (typed or option in PATH_OPTIONS) or not _is_relative(str(value)):
            continue
        if is_in_snapshot(str(value)):
            if typed:  # MLflow would resolve it against the folder of the submission
                resolved[name] = str(snapshot / value)
        elif typed or option not in MAYBE_PATH_OPTIONS or (submit_dir / value).exists():
            resolved[name] = str(submit_dir / value)
    return resolved


def list_input_paths(parameters: Mapping[str, Any], entry_point: "EntryPoint") -> list[str]:
    """List the files and folders here that parameters name by an absolute path."""
    paths = [
        Path(str(value))
        for name, value in parameters.items()
        if SHORT_OPTIONS.get(name, name) in PATH_OPTIONS or _is_declared_path(name, entry_point)
    ]
    return [str(path) for path in paths if path.is_absolute() and path.exists()]


def _is_declared_path(name: str, entry_point: "EntryPoint") -> bool:
    declared = entry_point.parameters
    return name in declared and declared[name].type == "path"


def _is_relative(value: str) -> bool:
    # A checkpoint may be a run's ID, which is a relative path too.
    return bool(value) and not urlsplit(value).scheme and not value.startswith(("/", "~", "$"))
