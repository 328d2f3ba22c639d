"""Render the batch script of a job from its template, job.sh.j2.

The script depends only on the configuration and on the facts in `JobSpec`.
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
from pyclassify.utils.options import UsageError

if TYPE_CHECKING:
    from jinja2 import Template

_TEMPLATE = Path(__file__).with_name("job.sh.j2")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)


@dataclass(frozen=True)
class JobSpec:
    """The facts of a job that its script contains, in addition to the configuration.

    Args:
        run_id: The run's ID.
        experiment_id: Its experiment's id.
        tracking_uri: The tracking URI for the job; None where it contains a password, and the job
            inherits it with the environment.
        name: The job's name.
        folder: The run's folder, as the nodes see it.
        topology: Nodes, processes and GPUs.
        command: The entry point's command, for bash.
        activation: Lines of bash that activate the environment.
        version: This package's version.
        binds: Files and folders that a container needs in addition to the folder of the run.

    Example:
        >>> topology = Topology(nodes=1, tasks=1, gpus=0)
        >>> facts = "run-id", "1", "file:///runs", "a-job", "/scratch/run-id", topology
        >>> job = JobSpec(*facts, command="true", activation=(), version="0.1.0")
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
    # Signals for the training, which must not end the shells around it.
    signals = dict.fromkeys(name for name in ("TERM", "USR1", signal) if name)
    return _load_template().render(
        config=config,
        job=job,
        gpu_options=gpus.list_gpu_options(config, job.topology),
        other_options=gpus.list_other_options(config, job.topology),
        requeue_exit_code=REQUEUE_EXIT_CODE,
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
        # The template is bash too: Jinja's statements and comments are bash's comments, and Jinja's
        # expressions are bash's expansions. Jinja's default "{#" is the length of an array.
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
    """Format an option for sbatch, which reads quotes as a shell does, but expands nothing."""
    if value is None or value is False:
        return ""
    if value is True:
        return option
    text = _CONTROL.sub(" ", str(value))  # a line break would end the directive
    if not _PLAIN.fullmatch(text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{option}={text}"


def _warning_signal(config: Config) -> tuple[str, str]:
    """The recipient (R, B) and the signal before the time limit; empty where none is sent."""
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
    """The prefix of a command that runs it in the container; empty without one."""
    if config.container is None:
        return ""
    binds = ",".join(dict.fromkeys((job.folder, *job.binds)))
    command = ("apptainer", "exec", "--nv", "--bind", binds, config.container)
    return f"{shlex.join(command)} "


def check_script(text: str) -> None:
    """Check a script for credentials, and have bash parse it without running it.

    Raises:
        ValueError: The script contains a credential.
        UsageError: bash can't parse the script; only "setup" can cause that.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if holds_credentials("job.sh", line.encode()):
            raise ValueError(
                f"line {number} of the script contains a credential, but the script is stored with "
                "the run (`pyclassify slurm render` shows it); read it from an environment "
                'variable in the job, and name that variable in "exports" with null'
            )
    bash = shutil.which("bash") or "/bin/bash"
    parsed = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True)
    if parsed.returncode:
        first = parsed.stderr.strip().splitlines()[0].partition(": ")[2]
        raise UsageError(
            f"setup in the backend config is not valid bash ({first}); check it by `bash -n`"
        )
