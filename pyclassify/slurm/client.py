"""The only door to SLURM's programs: sbatch, squeue, sacct, scancel.

Argument lists, never a shell; output without headers and with separators; patience with a
controller that is busy.
"""

import getpass
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyclassify.slurm.states import STATES, State

TIMEOUT = 60.0  # seconds for one call; SLURM's own programs give up after some ten
PAUSES = (1.0, 2.0, 4.0)  # seconds before each next try

# What a controller or database says that is busy or away, not what it says of the job.
_BUSY = re.compile(
    r"Socket timed out|Unable to contact slurm controller|Zero Bytes were transmitted"
    r"|Connection (refused|reset|timed out)|Transport endpoint|temporarily un"
    r"|Problem talking to the database|SlurmDBD",
    re.IGNORECASE,
)
_GONE = re.compile(r"Invalid job id", re.IGNORECASE)

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


class SlurmError(OSError):
    """SLURM refuses something; its own words."""


class SlurmSilent(SlurmError):
    """SLURM does not answer, so that nothing is known."""


class JobUnknown(SlurmError):
    """A job that neither squeue nor sacct knows."""


@dataclass(frozen=True)
class Job:
    """What SLURM says of a job.

    Args:
        job_id: Its number.
        state: A key of `STATES`.
        reason: Why it waits or has ended, in SLURM's words; may be empty.
        nodes: Its nodes, as SLURM shortens them; empty before it starts.
        elapsed: Days, hours, minutes and seconds that it ran, as in `1-02:03:04`.
        exit_code: Its exit code and signal, `1:0`; empty while it runs.
    """

    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""
    elapsed: str = ""
    exit_code: str = ""

    @property
    def meaning(self) -> State:
        """What the state means for the run."""
        return STATES[self.state]


def submit(script: Path, variables: Mapping[str, str], given: Sequence[str]) -> str:
    """Submit a script.

    Args:
        script: Its path; the folder is the job's own, by which it is found again where SLURM's
            answer was lost.
        variables: Variables of the job beside those of this process.
        given: The keys of the configuration that have a value.

    Returns:
        The job's id, with the cluster's name after a semicolon where there are several.

    Raises:
        SlurmError: SLURM refuses it, or does not answer; its own words.
    """
    said = _patiently(
        ("sbatch", "--parsable", str(script)),
        environment={**_environment_of_job(given), **variables},
        look=lambda: _find_by_folder(script.parent),
    )
    return said.stdout.strip().splitlines()[-1]


def try_out(script: Path, given: Sequence[str]) -> str:
    """Ask whether and when a script's job would start, without submitting it.

    Returns:
        SLURM's answer, one line.

    Raises:
        SlurmError: It would be refused; SLURM's own words.
    """
    words = ("sbatch", "--test-only", str(script))
    said = _patiently(words, environment=_environment_of_job(given))
    return _in_words(said.stderr)


def find(job_id: str) -> Job:
    """Ask the queue for a job, and accounting where that has forgotten it or has the job's end.

    Raises:
        JobUnknown: Neither knows it.
        SlurmSilent: They do not answer.
    """
    try:
        job = ask_queue(job_id)
    except SlurmSilent as silence:
        job = _ask_accounting_or(silence, job_id)
        if not job.meaning.ended:  # it may have gone on since
            raise
        return job
    except JobUnknown as unknown:
        return _ask_accounting_or(unknown, job_id)
    if not job.meaning.ended:
        return job
    try:
        booked = ask_accounting(job_id)  # which has the exit code, a moment later
    except SlurmError:
        return job
    return booked if booked.meaning.ended else job


def _ask_accounting_or(error: SlurmError, job_id: str) -> Job:
    try:
        return ask_accounting(job_id)
    except JobUnknown as unknown:
        raise type(error)(f"{error}; {unknown}") from None
    except SlurmSilent:
        raise error from None


def ask_queue(job_id: str) -> Job:
    """What the controller says of a job: while it waits and runs, and some minutes after."""
    words = ("squeue", "-h", "-t", "all", *_target(job_id), "-o", "%i|%T|%r|%N|%M")
    try:
        said = _patiently(words)
    except SlurmError as error:
        if _GONE.search(str(error)):
            raise JobUnknown(f"squeue has no job {job_id}") from None
        raise
    for _, state, reason, nodes, elapsed in _rows(said.stdout, job_id, 5):
        return _job(job_id, state, "" if reason == "None" else reason, nodes, elapsed)
    raise JobUnknown(f"squeue has no job {job_id}")


def ask_accounting(job_id: str) -> Job:
    """What accounting says of a job, for as long as its site keeps that."""
    columns = "JobID,State,ExitCode,NodeList,Elapsed"
    words = ("sacct", "-X", "-n", "-P", *_target(job_id), "-o", columns)
    try:
        said = _patiently(words)
    except SlurmSilent:
        raise
    except SlurmError as error:
        raise JobUnknown(f"sacct can't say ({error})") from None
    for _, state, exit_code, nodes, elapsed in _rows(said.stdout, job_id, 5):
        return _job(job_id, state, "", nodes, elapsed, exit_code)
    raise JobUnknown(f"sacct has no job {job_id}")


def cancel(job_id: str) -> None:
    """Cancel a job; one that has ended stays as it is.

    Raises:
        SlurmError: SLURM refuses it, or does not answer.
    """
    number, _, cluster = job_id.partition(";")
    words = ["scancel", *([f"--clusters={cluster}"] if cluster else []), number]
    try:
        said = _patiently(words)
    except SlurmError as error:
        if _GONE.search(str(error)):
            return
        raise
    if "denied" in said.stderr:  # scancel's exit code is 0 all the same
        raise SlurmError(_in_words(said.stderr))


def _job(
    job_id: str, state: str, reason: str, nodes: str, elapsed: str, exit_code: str = ""
) -> Job:
    name, _, by = state.partition(" ")
    name = name.rstrip("+")
    if name not in STATES:
        raise SlurmError(f"SLURM calls job {job_id} {state!r}, which is no state known here")
    nodes = "" if nodes in ("None assigned", "(null)") else nodes
    return Job(job_id, name, reason or by, nodes, elapsed, exit_code)


def _rows(text: str, job_id: str, columns: int) -> list[list[str]]:
    """The rows of a job, among what a site's own wrappers may say before and after."""
    rows = [line.strip().split("|") for line in text.splitlines()]
    number = job_id.partition(";")[0]
    return [row[:columns] for row in rows if row[0] == number and len(row) >= columns]


def _target(job_id: str) -> list[str]:
    number, _, cluster = job_id.partition(";")
    return ["-j", number, *(["-M", cluster] if cluster else [])]


def _find_by_folder(folder: Path) -> str:
    said = _run(("squeue", "-h", "-u", getpass.getuser(), "-o", "%i|%Z"), _environment())
    rows = [line.strip().split("|", 1) for line in said.stdout.splitlines() if "|" in line]
    return next((row[0] for row in rows if row[1] == str(folder)), "")


def _patiently(
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
    for pause in PAUSES:
        try:
            return _run(words, environment or _environment())
        except SlurmSilent as silence:
            time.sleep(pause)
            if look and "timed out" in str(silence):
                with suppress(SlurmError):
                    if answer := look():
                        return subprocess.CompletedProcess(words, 0, answer, "")
    return _run(words, environment or _environment())


def _run(words: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
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
    text = _in_words(said.stderr) or f"{words[0]} failed with exit code {said.returncode}"
    raise SlurmSilent(text) if _BUSY.search(text) else SlurmError(text)


def _in_words(text: str) -> str:
    """One line of what a program says, without its name before each."""
    lines = (re.sub(r"^s\w+: (?:error: )?", "", line.strip()) for line in text.splitlines())
    return "; ".join(line for line in lines if line)


def _environment(without: Sequence[str] = ()) -> dict[str, str]:
    left_out = (*_FORMATS, *without)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    return {**kept, "LC_ALL": "C"}


def _environment_of_job(given: Sequence[str]) -> dict[str, str]:
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
