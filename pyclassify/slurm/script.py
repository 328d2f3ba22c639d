"""The batch script as a pure function: configuration and facts to text."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyclassify.slurm.config import KEYS, Config
from pyclassify.slurm.topology import Topology
from pyclassify.utils.launcher import (
    PROGRESS_ENV,
    REQUEUE_EXIT_CODE,
    SPOOL_ENV,
    STATUS_BY_SLURM_ENV,
)
from pyclassify.utils.masking import holds_credentials

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
INTRODUCTION = """\
# Run {run_id} of MLflow, submitted by pyclassify {version}.
# It runs project/, a snapshot made at submission; reporter/ tells MLflow how it goes.
# shellcheck disable=SC2016 # what is in single quotes is meant as it is
"""
FUNCTIONS = """\
fail() {
  echo "$1" >&2
  exit 1
}

report() {
  (cd "$run_folder/reporter" && @PYTHON@ -m pyclassify.slurm.reporter "$@")
}

# SLURM's own word on this job; accounting may have it a moment later than the queue.
slurm_says() {
  local queued booked step restarts
  restarts=$(scontrol show job "$SLURM_JOB_ID" 2>&1 | sed -n 's/.* Restarts=\\([0-9]*\\).*/\\1/p')
  if [ "${restarts:-0}" -gt "${SLURM_RESTART_COUNT:-0}" ]; then
    echo REQUEUED
    return
  fi
  for _ in {1..10}; do
    queued=$(squeue -h -j "$SLURM_JOB_ID" -o '%T %r' 2>/dev/null)
    step=ended
    if [ -n "${!-}" ]; then  # srun was started, and has ended
      step=$(sacct -n -P -j "$SLURM_JOB_ID.0" -o State 2>/dev/null)
    fi
    booked=$(sacct -n -P -j "$SLURM_JOB_ID" -o State 2>/dev/null)
    case "$queued/$booked/$step" in
      COMPLETING*//* | COMPLETING*/RUNNING*/* | COMPLETING*/PENDING*/*) sleep 0.5 ;;
      RUNNING*/?*/ | RUNNING*/?*/RUNNING) sleep 0.5 ;;
      *) break ;;
    esac
  done
  printf '%s\\n' "$queued" "$booked"
}

# What was told to stop may still be saving: of the half minute until SLURM kills (KillWait) it has
# one half, before the report of its end, and all the rest, as SLURM ends it with this script.
wait_for_training() {
  local seconds
  for ((seconds = 0; seconds < $1; seconds++)); do
    if [ -z "${!-}" ] || ! kill -0 "$!" 2>/dev/null; then break; fi
    sleep 1
  done
}

# Whatever happens, the run has a final status: the training's own, or else one by the exit code
# and by what SLURM says. The report's exit code is 75 where the job is to start again.
finish() {
  code=$?
  trap '' @SIGNALS@
  wait_for_training 15
  said=
  [ "$code" -eq 0 ] || said=$(slurm_says)
  logs=("$(readlink "/proc/$$/fd/1")" "$(readlink "/proc/$$/fd/2")")
  report end "$code" "$said" "${logs[@]}"@REQUEUE@
  wait_for_training 30
}
trap finish EXIT
trap 'exit 143' TERM

# A job of this run's that is older and has not ended; one that is about to is waited for.
find_older() {
  local id state folder found
  for _ in {1..60}; do
    found=$(squeue -h -u "$(id -un)" -o '%i|%T|%Z' 2>/dev/null |
      while IFS='|' read -r id state folder; do
        [ "$folder" = "$run_folder" ] || continue
        [ "$id" -ge "$SLURM_JOB_ID" ] || echo "$id $state"
      done | head -n 1)
    [[ $found == *COMPLETING ]] || break
    sleep 1
  done
  echo "$found"
}
"""
REQUEUE = """\
# SLURM ends this script when it puts the job into the queue again, and may be too busy at first.
requeue() {
  local words
  for _ in {1..8}; do
    words=$(scontrol requeue "$SLURM_JOB_ID" 2>&1) && return
    sleep 2
  done
  report refused "$words" "${logs[@]}"
}

# The warning before the time limit is for the training: SLURM sends it to this script alone.
warn() {
  [ -n "${!-}" ] || exit 75 # nothing has begun
  scancel --signal=USR1 "$SLURM_JOB_ID" || kill -USR1 "$!"
}
trap warn USR1
"""
START = """\
report start "$(find_older)" || case $? in
  3) trap - EXIT && exit 1 ;; # the run is another job's, or has ended: it stays as it is
  *) fail "MLflow can't be told that the run starts" ;;
esac
# By this SLURM signals all that a task runs, or the first process of it alone.
PROCTRACK=$(scontrol show config | sed -n 's/^ProctrackType *= *//p')
export PROCTRACK
"""
DETAILS = """\
echo "job $SLURM_JOB_ID ($SLURM_JOB_NAME) in partition $SLURM_JOB_PARTITION"
echo "nodes: $SLURM_JOB_NODELIST ($SLURM_JOB_NUM_NODES); submitted from $SLURM_SUBMIT_HOST"
echo "run: $MLFLOW_RUN_ID; started at $(date)"
"""
MODULES = """\
# A shell that is no login shell may not know `module`.
if ! type module >/dev/null 2>&1; then
  for each in /etc/profile.d/*mod*.sh; do
    # shellcheck source=/dev/null
    source "$each"
  done
fi
"""
ALLOCATION = """\
if [ "$SLURM_JOB_NUM_NODES" != @NODES@ ]; then
  fail "SLURM gave $SLURM_JOB_NUM_NODES nodes; @NODES@ were asked for"
fi
"""
RENDEZVOUS = """\
# Where the processes meet: the first node, by its address where its name does not resolve, and a
# port of this job's own.
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if ! getent hosts "$MASTER_ADDR" >/dev/null; then
  MASTER_ADDR=$(scontrol -o show node "$MASTER_ADDR" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
fi
MASTER_PORT=$((15000 + SLURM_JOB_ID % 15000))
export MASTER_ADDR MASTER_PORT
"""
TASK = """
trap : @SIGNALS@
if [ "$SLURM_NTASKS" != @TASKS@ ]; then
  echo "SLURM started $SLURM_NTASKS processes; @TASKS@ were asked for" >&2
  exit 1
fi
"""
# A signal is for what the shell runs, whose exit code is then the shell's; but exit code 75 is no
# failure, for which srun would kill the other processes while they save.
COMMAND = """
(
  trap : @SIGNALS@
  @COMMAND@
) <&0 &
command=$!
pass() { # shellcheck disable=SC2046,SC2317 # called by a trap, for several children
  [[ $PROCTRACK == proctrack/[lp]* ]] ||
    kill -s "$1" $(cat "/proc/$command/task/$command/children" || pgrep -P "$command")
}
for signal in @SIGNALS@; do
  # shellcheck disable=SC2064 # filled in now
  trap "pass $signal" "$signal"
done
until wait "$command"; ! kill -0 "$command" 2>/dev/null; do :; done
wait "$command"
code=$?
[ "$code" -ne 75 ] || { : >@LEFT@ && exit 0; }
exit "$code"
"""
FORWARD = """\
# The warning before the time limit is for the training.
trap 'kill -@SIGNAL@ "$!"' @SIGNAL@
"""
WAIT = """\
until wait "$!"; ! kill -0 "$!" 2>/dev/null; do :; done
wait "$!"
code=$?
[ "$code" -ne 0 ] || [ ! -e "$run_folder/left" ] || code=75
# A job that has to make room is given a time of grace, of which SLURM tells the training alone; it
# goes into the queue again at its end, unless it ends before.
if [ "$code" -ne 0 ] && [ "$code" -ne 75 ]; then
  while scontrol show job "$SLURM_JOB_ID" 2>&1 | grep -q 'PreemptTime=[0-9]'; do sleep 1; done
fi
(exit "$code")
"""
TASK_GPUS = """\
IFS=, read -r -a gpus <<<"${CUDA_VISIBLE_DEVICES-}"
if [ "${#gpus[@]}" -ne @GPUS@ ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
  echo "process $SLURM_PROCID has ${#gpus[@]} GPUs; @GPUS@ were asked for on each node" >&2
  exit 1
fi
"""


@dataclass(frozen=True)
class JobSpec:
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


def render_job_script(config: Config, facts: JobSpec) -> str:
    """Write the script of a job."""
    inside = _container(config, facts)
    parts = [
        "\n".join(["#!/bin/bash", *_directives(config, facts), ""]),
        INTRODUCTION.format(run_id=facts.run_id, version=facts.version),
        "".join(f"{line}\n" for line in _exports(config, facts)),
        _functions(config, inside),
        DETAILS,
        "".join(f"{line}\n" for line in _prepare(config, facts)),
        _fill(ALLOCATION, facts.topology),
        RENDEZVOUS if facts.topology.world_size > 1 else "",
        _srun(config, facts, inside),
    ]
    return "\n".join(part for part in parts if part)


def _directives(config: Config, facts: JobSpec) -> Iterator[str]:
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
    text = FUNCTIONS.replace("@PYTHON@", shlex.join([*inside, "python"]))
    text = text.replace("@SIGNALS@", _signals(config))
    if not config.requeue:
        return text.replace("@REQUEUE@", "")
    text = text.replace(
        "@REQUEUE@", f" {config.attempts} || [ $? -ne {REQUEUE_EXIT_CODE} ] || requeue"
    )
    return f"{text}\n{REQUEUE}"


def _signals(config: Config) -> str:
    """What is for the training alone, and ends none of the shells around it."""
    return " ".join(dict.fromkeys(each for each in ("TERM", "USR1", _warning(config)[1]) if each))


def _warning(config: Config) -> tuple[str, str]:
    """To whom SLURM sends a signal before the time limit (R, B), and which; or nothing."""
    if config.requeue:
        return "B", "USR1"
    whom, _, signal = (config.signal or "").partition("@")[0].rpartition(":")
    return whom, signal


def _exports(config: Config, facts: JobSpec) -> Iterator[str]:
    yield f"run_folder={shlex.quote(facts.folder)}"
    yield f"export MLFLOW_RUN_ID={shlex.quote(facts.run_id)}"
    yield f"export MLFLOW_EXPERIMENT_ID={shlex.quote(facts.experiment_id)}"
    if facts.tracking_uri is None:
        yield "# MLFLOW_TRACKING_URI has a password in it: it comes with the job's environment."
    else:
        yield f"export MLFLOW_TRACKING_URI={shlex.quote(facts.tracking_uri)}"
    yield f"export {STATUS_BY_SLURM_ENV}={shlex.quote(facts.run_id)}"
    yield f'export {SPOOL_ENV}="$run_folder/spool"'
    yield f'export {PROGRESS_ENV}="$run_folder/progress"'
    yield "export PYTHONUNBUFFERED=1"
    for name, value in config.exports:
        if value is not None:
            yield f"export {name}={shlex.quote(value)}"


def _prepare(config: Config, facts: JobSpec) -> Iterator[str]:
    if config.modules:
        yield MODULES.rstrip("\n")
    for module in config.modules:
        yield f"module load {shlex.quote(module)} || fail {shlex.quote(f'no module {module}')}"
    yield from config.setup
    yield from facts.activation
    yield 'cd "$run_folder/project" || exit'
    yield START.rstrip("\n")


def _fill(text: str, topology: Topology) -> str:
    for name, number in (
        ("NODES", topology.nodes),
        ("TASKS", topology.world_size),
        ("GPUS", topology.gpus),
    ):
        text = text.replace(f"@{name}@", str(number))
    return text


def _srun(config: Config, facts: JobSpec, inside: tuple[str, ...]) -> str:
    topology = facts.topology
    options = [f"--ntasks={topology.world_size}", f"--ntasks-per-node={topology.tasks}"]
    if config.cpus_per_task is not None:
        options.append(f"--cpus-per-task={config.cpus_per_task}")
    options += ["--export=ALL", "--kill-on-bad-exit=1", *config.srun_args]
    whom, signal = _warning(config)
    task = _fill(TASK + (TASK_GPUS if topology.gpus else ""), topology)
    task = (task + COMMAND).replace("@SIGNALS@", _signals(config))
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
        *([FORWARD.replace("@SIGNAL@", signal)] if tells_training else []),
        WAIT,
    ]
    return "\n".join(lines)


def _container(config: Config, facts: JobSpec) -> tuple[str, ...]:
    """The words that run a command in the image."""
    if config.container is None:
        return ()
    binds = ",".join(dict.fromkeys((facts.folder, *facts.binds)))
    return ("apptainer", "exec", "--nv", "--bind", binds, config.container)


def check_script(text: str) -> None:
    """Look for credentials in a script, and have bash read it without running it.

    Raises:
        ValueError: There are some, or it is no script, which can only be for the lines of "setup".
    """
    for number, line in enumerate(text.splitlines(), 1):
        if holds_credentials("job.sh", line.encode()):
            raise ValueError(
                f"line {number} of the script would have a credential in it, and the script is "
                "kept with the run (`pyclassify slurm render` shows it); have the job read it from "
                'a variable, which "exports" takes with null'
            )
    bash = shutil.which("bash") or "/bin/bash"
    said = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True)
    if said.returncode:
        first = said.stderr.strip().splitlines()[0].partition(": ")[2]
        raise ValueError(f"setup in the backend config is no bash ({first}); try it by `bash -n`")
