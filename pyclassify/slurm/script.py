"""Render the batch script of a job: a pure function of the configuration and the job's facts.

job.sh.j2 is the script's template.
"""

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.slurm import gpus
from pyclassify.slurm.config import Config
from pyclassify.slurm.reporter import NOTHING_STARTED_EXIT_CODE
from pyclassify.slurm.topology import Topology
from pyclassify.utils.launcher import REQUEUE_EXIT_CODE
from pyclassify.utils.masking import holds_credentials

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATE = Path(__file__).with_name("job.sh.j2")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


@dataclass(frozen=True)
class JobSpec:
    """What a script needs to know beside the configuration.

    Args:
        run_id: The run's id.
        experiment_id: Its experiment's id.
        tracking_uri: The tracking URI for the job; None where it has a password, and so comes with
            the environment.
        name: The job's name.
        folder: The run's folder, as the nodes see it.
        topology: Nodes, processes and GPUs.
        command: The entry point's command, for bash.
        activation: Lines of bash that activate the environment.
        version: This package's version.
        binds: Files and folders that a container needs beside the run's folder.

    Example:
        >>> place = "a-job", "/work/run-id", Topology(nodes=1, tasks=1, gpus=0)
        >>> job = JobSpec("run-id", "1", "file:///runs", *place, "true", (), "0.1.0")
        >>> render_job_script(Config(), job).splitlines()[0]
        '#!/bin/bash'
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


def render_job_script(config: Config, job: JobSpec) -> str:
    """Render the batch script of a job."""
    recipient, signal = _warning_signal(config)
    # What is for the training alone, and ends none of the shells around it.
    signals = dict.fromkeys(name for name in ("TERM", "USR1", signal) if name)
    return _load_template().render(
        config=config,
        job=job,
        gpu_options=gpus.list_gpu_options(config, job.topology),
        other_options=gpus.list_other_options(config, job.topology),
        stopped=REQUEUE_EXIT_CODE,
        nothing_started=NOTHING_STARTED_EXIT_CODE,
        apptainer=_container_command(config, job),
        srun_options=_srun_options(config, job.topology),
        signals=" ".join(signals),
        forwarded_signal=signal if "B" in recipient and not config.requeue else "",
    )


@cache
def _load_template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        # The template is bash too: statements and comments are its comments, and what is filled in
        # is its expansions. Jinja's own "{#" is bash's length of an array.
        block_start_string="#{%",
        comment_start_string="#{#",
        variable_start_string="${{",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "drop_unset_options": lambda text: text.replace("#SBATCH \n", ""),
        "option": _format_option,
        "quote": shlex.quote,
        "quote_option": _quote_option,
    }
    return environment.from_string(_TEMPLATE.read_text())


def _quote_option(argument: str) -> str:
    option, equals, value = argument.partition("=")
    return _format_option(value if equals else True, option)


def _format_option(value: Any, option: str) -> str:
    """An option for sbatch, which reads quotes as a shell does, but expands nothing."""
    if value is None or value is False:
        return ""
    if value is True:
        return option
    text = _CONTROL.sub(" ", str(value))  # a line's end would be the directive's
    if not _PLAIN.fullmatch(text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{option}={text}"


def _warning_signal(config: Config) -> tuple[str, str]:
    """To whom SLURM sends a signal before the time limit (R, B), and which; empty for none."""
    if config.requeue:
        return "B", "USR1"
    recipient, _, signal = (config.signal or "").partition("@")[0].rpartition(":")
    return recipient, signal


def _srun_options(config: Config, topology: Topology) -> str:
    options = [f"--ntasks={topology.world_size}", f"--ntasks-per-node={topology.tasks}"]
    if config.cpus_per_task is not None:
        options.append(f"--cpus-per-task={config.cpus_per_task}")
    return shlex.join([*options, "--export=ALL", "--kill-on-bad-exit=1", *config.srun_args])


def _container_command(config: Config, job: JobSpec) -> str:
    """What stands before a command to run it in the image; empty without one."""
    if config.container is None:
        return ""
    binds = ",".join(dict.fromkeys((job.folder, *job.binds)))
    command = ("apptainer", "exec", "--nv", "--bind", binds, config.container)
    return f"{shlex.join(command)} "


def check_script(text: str) -> None:
    """Look for credentials in a script, and have bash parse it without running it.

    Raises:
        ValueError: There are some, or bash can't parse it, which can only be for "setup".
    """
    for number, line in enumerate(text.splitlines(), 1):
        if holds_credentials("job.sh", line.encode()):
            raise ValueError(
                f"line {number} of the script would have a credential in it, and the script is "
                "kept with the run (`pyclassify slurm render` shows it); have the job read it from "
                'a variable, which "exports" takes with null'
            )
    bash = shutil.which("bash") or "/bin/bash"
    parsed = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True)
    if parsed.returncode:
        first = parsed.stderr.strip().splitlines()[0].partition(": ")[2]
        raise ValueError(f"setup in the backend config is no bash ({first}); try it by `bash -n`")
