"""Nodes, processes and GPUs of a job, and the paths among its parameters.

A project that has the parameters `devices` and `num_nodes` (as this one and Lightning's do) is
started with one process a device, and each process has a GPU unless the run is for the CPU. The
backend's configuration may repeat these numbers, and is checked against them. For any other project
the configuration's own numbers decide.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pyclassify.slurm.config import Config
from pyclassify.utils.options import MAYBE_PATH_OPTIONS, PATH_OPTIONS, SHORT_OPTIONS

if TYPE_CHECKING:
    from mlflow.projects._project_spec import EntryPoint

# Values of Lightning's `accelerator`; with the others (`auto`) the configuration may decide.
_CPU, _GPU = ("cpu",), ("gpu", "cuda")


@dataclass(frozen=True)
class Topology:
    """The nodes, processes and GPUs of a job.

    Args:
        nodes: The number of nodes.
        tasks: Processes on each node.
        gpus: GPUs of each node; all its processes see all of them.

    Example:
        >>> Topology(nodes=2, tasks=4, gpus=4).world_size
        8
    """

    nodes: int
    tasks: int
    gpus: int

    @property
    def world_size(self) -> int:
        """The number of processes."""
        return self.nodes * self.tasks


@dataclass(frozen=True)
class _Parameter:
    """A parameter's value, and where it was set: `2` by `-P devices=2`."""

    name: str
    value: Any
    source: str

    def __str__(self) -> str:
        return f"{self.name} is {self.value} by {self.source}"


def decide_topology(
    config: Config, parameters: Mapping[str, Any], defaults: Mapping[str, Any]
) -> Topology:
    """Decide how many nodes, processes and GPUs a job has.

    Args:
        config: The configuration.
        parameters: The parameters of the command line.
        defaults: The entry point's parameters that have a default.

    Raises:
        ValueError: A number is not a whole number from 1, or two sources disagree; the message
            has both, and where they came from.
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
    why = f"{devices}, and each process has 1 GPU"
    _check_count("gpus_per_task", config.gpus_per_task, 1, why)
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
        raise ValueError(f"{found[0].source} and {found[1].source} set the same; give one of them")
    if found:
        return found[0]
    if name in defaults:
        return _Parameter(name, defaults[name], "the MLproject's default")
    return None


def _choose_count(key: str, configured: int | None, parameter: _Parameter | None) -> int:
    """The parameter's number, which the configuration may repeat; without one, its own."""
    if parameter is None:
        return configured or 1
    try:
        number = float(parameter.value)
    except (TypeError, ValueError):
        number = 0.0
    if not number.is_integer() or number < 1:  # inf and nan are no integers
        raise ValueError(
            f"{parameter}; SLURM must be told how many: it takes a whole number from 1, such as "
            f"-P {parameter.name}=2"
        )
    _check_count(key, configured, int(number), str(parameter))
    return int(number)


def _check_count(key: str, configured: int | None, number: int, why: str) -> None:
    if configured not in (None, number):
        raise ValueError(
            f"{key} is {configured} in the backend config, and {why}; the parameters decide: leave "
            f"{key} out of the config, or make the two agree"
        )


def _count_configured_gpus(config: Config, nodes: int, tasks: int) -> int:
    """The GPUs of each node by the configuration alone."""
    if config.gpus is None:
        if config.gpu_type is not None and config.gpus_per_task is None:
            raise ValueError(
                f"gpu_type is {config.gpu_type!r} in the backend config, and nothing says how many "
                f'GPUs: the project has no parameter devices; give "gpus", such as {nodes * tasks}'
            )
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
        entry_point: MLflow's entry point, which says what is of type `path`.
        is_in_snapshot: Whether a relative path is one of the snapshot's.
        snapshot: The folder of the snapshot.
        submit_dir: The folder that the run is submitted from.

    Returns:
        The parameters, with those defaults that are paths.
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
            if typed:  # MLflow would take it from the folder of the submission
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
    # A checkpoint may be a run's id, which is a relative path too.
    return bool(value) and not urlsplit(value).scheme and not value.startswith(("/", "~", "$"))
