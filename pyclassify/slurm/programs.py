"""Running SLURM's programs: argument lists, never a shell, and patience where SLURM is busy."""

import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from pyclassify.slurm.states import SlurmError, SlurmSilent

TIMEOUT = 60.0  # seconds for one call; SLURM's own programs give up after some ten
PAUSES = (1.0, 2.0, 4.0)  # seconds before each next try
# What a controller or database says that is busy or away, not what it says of the job.
_BUSY = re.compile(
    r"Socket timed out|Unable to contact slurm controller|Zero Bytes were transmitted"
    r"|Connection (refused|reset|timed out)|Transport endpoint|temporarily un"
    r"|Problem talking to the database|SlurmDBD",
    re.IGNORECASE,
)
# What was never heard can't have been done.
_NEVER_HEARD = re.compile(r"Unable to contact slurm controller", re.IGNORECASE)
# Variables that change what the programs print or ask, and those of a job that this may run in.
_FORMATS = ("SACCT_", "SQUEUE_", "SCANCEL_", "SLURM_TIME_FORMAT", "SLURM_JSON", "SLURM_YAML")
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "PMI_", "PMIX_", "CUDA_VISIBLE_DEVICES")
_OF_A_LAUNCHER = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "MLFLOW_RUN_ID"),
)
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
# A site's or a person's own defaults, for what the configuration leaves open.
_DEFAULTS = {f"SBATCH_{name.upper()}": name for name in ("account", "partition", "qos")}
_DEFAULTS |= {"SBATCH_RESERVATION": "reservation", "SBATCH_CONSTRAINT": "constraint"}


def run_patiently(
    words: Sequence[str],
    environment: Mapping[str, str] | None = None,
    look: Callable[[], str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program, again where SLURM is busy.

    Args:
        words: Its command line.
        environment: Its environment.
        look: Finds out what the lost answer was; nothing where there was none.
    """
    silence, lost = SlurmSilent(), False
    for pause in (0.0, *PAUSES):
        time.sleep(pause)
        with suppress(SlurmError):  # as long as that is not known, nothing is tried again
            if lost and look and (answer := look()):
                return subprocess.CompletedProcess(words, 0, answer, "")
            lost = False
        if lost and look:
            continue
        try:
            return run_program(words, environment or environment_of_query())
        except SlurmSilent as error:
            silence, lost = error, not _NEVER_HEARD.search(str(error))
    if lost and look:
        with suppress(SlurmError):
            if answer := look():
                return subprocess.CompletedProcess(words, 0, answer, "")
    raise silence


def run_program(
    words: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a program once.

    Raises:
        SlurmSilent: SLURM is busy or away.
        SlurmError: It refuses; its own words, in one line.
    """
    try:
        said = subprocess.run(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
        )
    except FileNotFoundError:
        raise SlurmError(
            f"there is no {words[0]} on PATH; this is for the login node of a SLURM cluster"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmSilent(f"{words[0]} timed out after {TIMEOUT:.0f} s") from None
    if said.returncode == 0:
        return said
    text = format_message(said.stderr) or f"{words[0]} failed with exit code {said.returncode}"
    raise SlurmSilent(text) if _BUSY.search(text) else SlurmError(text)


def format_message(text: str) -> str:
    """One line of what a program says, without its name before each."""
    lines = (re.sub(r"^s\w+: (?:error: )?", "", line.strip()) for line in text.splitlines())
    return "; ".join(line for line in lines if line)


def environment_of_query() -> dict[str, str]:
    """This process's environment without what changes the programs' output."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_FORMATS)}


def environment_of_job(given: Sequence[str]) -> dict[str, str]:
    """This process's environment without what would change the job.

    Options of sbatch in the environment win over those in the script, a job that this runs in
    has variables that the new one has too, and so has a launcher.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*_OF_A_JOB, *_FORMATS))}
    kept |= {name: os.environ[name] for name in _KEPT if name in os.environ}
    for name, key in _DEFAULTS.items():
        if name in os.environ and key not in given:
            kept[name] = os.environ[name]
    return {name: text for name, text in kept.items() if name not in _OF_A_LAUNCHER}
