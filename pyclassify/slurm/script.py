"""The batch script as a pure function: configuration and facts to text."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyclassify.slurm.config import KEYS, Config
from pyclassify.slurm.topology import Topology

# What the training looks for: a signal says nothing of itself here, SLURM's state does.
STATUS_BY_SLURM = "PYCLASSIFY_STATUS_BY_SLURM"

_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)

_INTRODUCTION = """\
# Run {run_id} of MLflow, submitted by pyclassify {version}.
# It runs project/, a snapshot made at submission; reporter/ tells MLflow how it goes.
"""

_FUNCTIONS = """\
fail() {
  echo "$1" >&2
  exit 1
}

report() {
  (cd "$run_folder/reporter" && @PYTHON@ -m pyclassify.slurm.report "$@")
}

# SLURM's own word on this job; accounting may have it a moment later than the queue.
slurm_says() {
  local queued booked
  for _ in 1 2 3 4 5 6; do
    queued=$(squeue -h -j "$SLURM_JOB_ID" -o '%T %r' 2>/dev/null)
    booked=$(sacct -n -P -j "$SLURM_JOB_ID" -o State 2>/dev/null)
    case "$queued/$booked" in COMPLETING*/ | COMPLETING*/RUNNING*) sleep 0.5 ;; *) break ;; esac
  done
  printf '%s\n' "$queued" "$booked"
}

# Whatever happens, the run has a final status: the training's own, or else one by the exit code
# and by what SLURM says.
finish() {
  code=$?
  trap '' TERM
  said=
  [ "$code" -eq 0 ] || said=$(slurm_says)
  report end "$code" "$said" "$(readlink "/proc/$$/fd/1")" "$(readlink "/proc/$$/fd/2")"
}
trap finish EXIT
trap 'exit 143' TERM
"""

_DETAILS = """\
echo "job $SLURM_JOB_ID ($SLURM_JOB_NAME) in partition $SLURM_JOB_PARTITION"
echo "nodes: $SLURM_JOB_NODELIST ($SLURM_JOB_NUM_NODES); submitted from $SLURM_SUBMIT_HOST"
echo "run: $MLFLOW_RUN_ID; started at $(date)"
"""

_MODULES = """\
# A shell that is no login shell may not know `module`.
if ! type module >/dev/null 2>&1; then
  for each in /etc/profile.d/*mod*.sh; do
    # shellcheck source=/dev/null
    source "$each"
  done
fi
"""

_ALLOCATION = """\
if [ "$SLURM_JOB_NUM_NODES" != @NODES@ ]; then
  fail "SLURM gave $SLURM_JOB_NUM_NODES nodes; @NODES@ were asked for"
fi
"""

_RENDEZVOUS = """\
# Where the processes meet: the first node, by its address where its name does not resolve, and a
# port of this job's own.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$MASTER_ADDR" >/dev/null; then
  MASTER_ADDR=$(scontrol -o show node "$MASTER_ADDR" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
fi
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
export MASTER_ADDR MASTER_PORT
"""

# A signal is for what the shell runs, whose exit code is then the shell's.
_TASK = """
trap : TERM
if [ "$SLURM_NTASKS" != @TASKS@ ]; then
  echo "SLURM started $SLURM_NTASKS processes; @TASKS@ were asked for" >&2
  exit 1
fi
"""
_TASK_GPUS = """\
IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES-}"
if [ "${#gpus[@]}" -ne @GPUS@ ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  echo "process $SLURM_PROCID has ${#gpus[@]} GPUs; @GPUS@ were asked for on each node" >&2
  exit 1
fi
"""


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


def render(config: Config, facts: Facts) -> str:
    """Write the script of a job."""
    inside = _container(config, facts)
    parts = [
        "\n".join(["#!/bin/bash", *_directives(config, facts), ""]),
        _INTRODUCTION.format(run_id=facts.run_id, version=facts.version),
        "".join(f"{line}\n" for line in _exports(config, facts)),
        _FUNCTIONS.replace("@PYTHON@", shlex.join([*inside, "python"])),
        _DETAILS,
        "".join(f"{line}\n" for line in _prepare(config, facts)),
        _fill(_ALLOCATION, facts.topology),
        _RENDEZVOUS if facts.topology.world_size > 1 else "",
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
    text = str(value)
    if not _PLAIN.fullmatch(text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH {option}={text}"


def _exports(config: Config, facts: Facts) -> Iterator[str]:
    yield f"run_folder={shlex.quote(facts.folder)}"
    yield f"export MLFLOW_RUN_ID={shlex.quote(facts.run_id)}"
    yield f"export MLFLOW_EXPERIMENT_ID={shlex.quote(facts.experiment_id)}"
    if facts.tracking_uri is None:
        yield "# MLFLOW_TRACKING_URI has a password in it: it comes with the job's environment."
    else:
        yield f"export MLFLOW_TRACKING_URI={shlex.quote(facts.tracking_uri)}"
    yield f"export {STATUS_BY_SLURM}=1"
    yield "export PYTHONUNBUFFERED=1"
    for name, value in config.exports:
        if value is not None:
            yield f"export {name}={shlex.quote(value)}"


def _prepare(config: Config, facts: Facts) -> Iterator[str]:
    if config.modules:
        yield _MODULES.rstrip("\n")
    for module in config.modules:
        yield f"module load {shlex.quote(module)} || fail {shlex.quote(f'no module {module}')}"
    yield from config.setup
    yield from facts.activation
    yield 'cd "$run_folder/project" || exit'
    yield 'report start || fail "MLflow can\'t be told that the run starts"'


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
    task = _fill(_TASK + (_TASK_GPUS if topology.gpus else ""), topology) + facts.command + "\n"
    lines = [
        "# For a SLURM that does not set it, as Ulysses's.",
        f"export SLURM_NTASKS_PER_NODE={topology.tasks}",
        "",
        "# shellcheck disable=SC2016 # each process expands it",
        f"srun {shlex.join(options)} \\",
        f"  {shlex.join([*inside, 'bash', '-c'])} {shlex.quote(task)} &",
        "wait $!",
    ]
    return "\n".join(lines) + "\n"


def _container(config: Config, facts: Facts) -> tuple[str, ...]:
    """The words that run a command in the image."""
    if config.container is None:
        return ()
    return ("apptainer", "exec", "--nv", "--bind", facts.folder, config.container)
