"""The batch script as a pure function: configuration and facts to text."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyclassify.slurm import template
from pyclassify.slurm.keys import KEYS, Config
from pyclassify.slurm.topology import Topology

# What the training looks for: a signal says nothing of this run's end, SLURM's state does.
STATUS_BY_SLURM = "PYCLASSIFY_STATUS_BY_SLURM"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


@dataclass(frozen=True)
class Facts:
    """What a script needs to know beside the configuration.

    Args:
        run_id: The run's.
        experiment_id: Its experiment's.
        tracking_uri: Where the run is kept, as the nodes see it; nothing where it has a password,
            and so comes with the environment.
        name: The job's name.
        folder: The run's folder, as the nodes see it.
        topology: Nodes, processes and GPUs.
        command: The entry point's command, for bash.
        activation: Lines of bash that activate the environment.
        version: This package's.
        binds: Files and folders that a container needs beside the run's folder.
    """

    run_id: str
    experiment_id: str
    tracking_uri: str | None
    name: str
    folder: str
    topology: Topology
    command: str
    activation: tuple[str, ...]
    version: str
    binds: tuple[str, ...] = ()


def render(config: Config, facts: Facts) -> str:
    """Write the script of a job."""
    inside = _container(config, facts)
    parts = [
        "\n".join(["#!/bin/bash", *_directives(config, facts), ""]),
        template.INTRODUCTION.format(run_id=facts.run_id, version=facts.version),
        "".join(f"{line}\n" for line in _exports(config, facts)),
        _functions(config, inside),
        template.DETAILS,
        "".join(f"{line}\n" for line in _prepare(config, facts)),
        _fill(template.ALLOCATION, facts.topology),
        template.RENDEZVOUS if facts.topology.world_size > 1 else "",
        _srun(config, facts, inside),
    ]
    return "\n".join(part for part in parts if part)


def _directives(config: Config, facts: Facts) -> Iterator[str]:
    nodes, tasks, gpus = facts.topology.nodes, facts.topology.tasks, facts.topology.gpus
    for name, key in KEYS.items():
        value, option = getattr(config, name), key.metadata["option"]
        if name == "job_name":
            yield _directive(option, facts.name)
        elif name == "nodes":
            yield _directive("--nodes", nodes)
            yield _directive("--ntasks-per-node", tasks)
            if gpus:
                yield _directive("--gpus", nodes * gpus)
                yield _directive("--gpus-per-node", gpus)
        elif name == "requeue":
            yield _directive("--requeue" if value else "--no-requeue", True)
            if value:  # a log goes on where it was
                yield _directive("--open-mode", "append")
                yield _directive("--signal", f"B:USR1@{config.warning}")
        elif option and value not in (None, False):
            yield _directive(option, value)
    yield _directive("--chdir", facts.folder)
    yield _directive("--export", "ALL")
    for argument in config.sbatch_args:
        option, equals, text = argument.partition("=")
        yield _directive(option, text if equals else True)


def _directive(option: str, value: Any) -> str:
    """A line for sbatch, which reads quotes and backslashes like a shell, but expands nothing."""
    if value is True:
        return f"#SBATCH {option}"
    text = _CONTROL.sub(" ", str(value))  # a line's end would be the directive's
    if not _PLAIN.fullmatch(text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH {option}={text}"


def _functions(config: Config, inside: tuple[str, ...]) -> str:
    text = template.FUNCTIONS.replace("@PYTHON@", shlex.join([*inside, "python"]))
    text = text.replace("@SIGNALS@", _signals(config))
    if not config.requeue:
        return text.replace("@REQUEUE@", "")
    text = text.replace("@REQUEUE@", f" {config.attempts} || [ $? -ne 75 ] || requeue")
    return f"{text}\n{template.REQUEUE}"


def _signals(config: Config) -> str:
    """What is for the training alone, and ends none of the shells around it."""
    return " ".join(dict.fromkeys(each for each in ("TERM", "USR1", _warning(config)[1]) if each))


def _warning(config: Config) -> tuple[str, str]:
    """To whom SLURM sends a signal before the time limit (R, B), and which; or nothing."""
    if config.requeue:
        return "B", "USR1"
    whom, _, signal = (config.signal or "").partition("@")[0].rpartition(":")
    return whom, signal


def _exports(config: Config, facts: Facts) -> Iterator[str]:
    yield f"run_folder={shlex.quote(facts.folder)}"
    yield f"export MLFLOW_RUN_ID={shlex.quote(facts.run_id)}"
    yield f"export MLFLOW_EXPERIMENT_ID={shlex.quote(facts.experiment_id)}"
    if facts.tracking_uri is None:
        yield "# MLFLOW_TRACKING_URI has a password in it: it comes with the job's environment."
    else:
        yield f"export MLFLOW_TRACKING_URI={shlex.quote(facts.tracking_uri)}"
    yield f"export {STATUS_BY_SLURM}={shlex.quote(facts.run_id)}"
    yield 'export PYCLASSIFY_SPOOL="$run_folder/spool"'
    yield 'export PYCLASSIFY_PROGRESS="$run_folder/progress"'
    yield "export PYTHONUNBUFFERED=1"
    for name, value in config.exports:
        if value is not None:
            yield f"export {name}={shlex.quote(value)}"


def _prepare(config: Config, facts: Facts) -> Iterator[str]:
    if config.modules:
        yield template.MODULES.rstrip("\n")
    for module in config.modules:
        yield f"module load {shlex.quote(module)} || fail {shlex.quote(f'no module {module}')}"
    yield from config.setup
    yield from facts.activation
    yield 'cd "$run_folder/project" || exit'
    yield template.START.rstrip("\n")


def _fill(text: str, topology: Topology) -> str:
    for name, number in (
        ("NODES", topology.nodes),
        ("TASKS", topology.world_size),
        ("GPUS", topology.gpus),
    ):
        text = text.replace(f"@{name}@", str(number))
    return text


def _srun(config: Config, facts: Facts, inside: tuple[str, ...]) -> str:
    topology = facts.topology
    options = [f"--ntasks={topology.world_size}", f"--ntasks-per-node={topology.tasks}"]
    if config.cpus_per_task is not None:
        options.append(f"--cpus-per-task={config.cpus_per_task}")
    options += ["--export=ALL", "--kill-on-bad-exit=1", *config.srun_args]
    whom, signal = _warning(config)
    task = _fill(template.TASK + (template.TASK_GPUS if topology.gpus else ""), topology)
    task = (task + template.COMMAND).replace("@SIGNALS@", _signals(config))
    task = task.replace("@LEFT@", shlex.quote(f"{facts.folder}/left"))
    task = task.replace("@COMMAND@", facts.command)
    tells_training = "B" in whom and not config.requeue
    lines = [
        'rm -f "$run_folder/left"',
        "# For a SLURM that does not set it, as Ulysses's.",
        f"export SLURM_NTASKS_PER_NODE={topology.tasks}",
        "",
        f"srun {shlex.join(options)} \\",
        f"  {shlex.join([*inside, 'bash', '-c'])} {shlex.quote(task)} &",
        *([template.FORWARD.replace("@SIGNAL@", signal)] if tells_training else []),
        template.WAIT,
    ]
    return "\n".join(lines)


def _container(config: Config, facts: Facts) -> tuple[str, ...]:
    """The words that run a command in the image."""
    if config.container is None:
        return ()
    binds = ",".join(dict.fromkeys((facts.folder, *facts.binds)))
    return ("apptainer", "exec", "--nv", "--bind", binds, config.container)
