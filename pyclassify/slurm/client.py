"""The only door to SLURM: its programs sbatch, squeue, sacct and scancel, and what they say."""

import getpass
import os
import re
import subprocess
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pyclassify.slurm.states import Job, SlurmError, SlurmSilent, make_job, rows_among, rows_of

_AT_ONCE = 1000  # jobs of a command line
_QUEUE = "%i|%T|%r|%N|%M"
_GONE = re.compile(r"Invalid job id", re.IGNORECASE)
COLUMNS = "JobID,State,ExitCode,NodeList,ElapsedRaw,Submit,Start,AllocTRES,MaxRSS"
_GPUS = re.compile(r"gres/gpu=(\d+)")
_UNITS = {"": 1e-6, "K": 1024e-6, "M": 1024**2 * 1e-6, "G": 1024**3 * 1e-6}
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


class JobUnknown(SlurmError):
    """A job that neither squeue nor sacct knows."""


def submit(
    script: Path,
    variables: Mapping[str, str],
    given: Sequence[str],
    options: Sequence[str] = (),
    known: Container[str] = (),
) -> str:
    """Submit a script.

    Args:
        script: Its path; the folder is the job's own, by which it is found again where SLURM's
            answer was lost.
        variables: Variables of the job beside those of this process.
        given: The keys of the configuration that have a value.
        options: Options of sbatch that win over those in the script.
        known: The numbers of the folder's earlier jobs.

    Returns:
        The job's id, with the cluster's name after a semicolon where there are several.

    Raises:
        SlurmError: SLURM refuses it, or does not answer; its own words.
    """
    said = run_patiently(
        ("sbatch", "--parsable", *options, str(script)),
        environment={**environment_of_job(given), **variables},
        look=lambda: find_by_folder(script.parent, known),
    )
    for line in reversed(said.stdout.splitlines()):  # a site may say more before it
        if re.fullmatch(r"\d+(;\S+)?", line.strip()):
            return line.strip()
    raise SlurmError(f"sbatch gave no job's id but {said.stdout.strip()!r}")


def try_out(script: Path, given: Sequence[str]) -> str:
    """Ask whether and when a script's job would start, without submitting it.

    Returns:
        SLURM's answer, one line.

    Raises:
        SlurmError: It would be refused; SLURM's own words.
    """
    words = ("sbatch", "--test-only", str(script))
    said = run_patiently(words, environment=environment_of_job(given))
    return format_message(said.stderr)


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
    words = ("squeue", "-h", "-t", "all", *_target(job_id), "-o", _QUEUE)
    try:
        said = run_patiently(words)
    except SlurmError as error:
        if _GONE.search(str(error)):
            raise JobUnknown(f"squeue has no job {job_id}") from None
        raise
    for _, state, reason, nodes, elapsed in rows_of(said.stdout, job_id, 5):
        return make_job(job_id, state, "" if reason == "None" else reason, nodes, elapsed)
    raise JobUnknown(f"squeue has no job {job_id}")


def ask_accounting(job_id: str) -> Job:
    """What accounting says of a job, for as long as its site keeps that."""
    columns = "JobID,State,ExitCode,NodeList,Elapsed"
    words = ("sacct", "-X", "-n", "-P", *_target(job_id), "-o", columns)
    try:
        said = run_patiently(words)
    except SlurmSilent:
        raise
    except SlurmError as error:
        raise JobUnknown(f"sacct can't say ({error})") from None
    for _, state, exit_code, nodes, elapsed in rows_of(said.stdout, job_id, 5):
        return make_job(job_id, state, "", nodes, elapsed, exit_code)
    raise JobUnknown(f"sacct has no job {job_id}")


def account(numbers: Sequence[str], cluster: str, columns: str) -> list[list[str]]:
    """What accounting says of many jobs, their attempts and steps; times in seconds.

    Args:
        numbers: The jobs' numbers.
        cluster: The cluster's name; the one here without it.
        columns: Those of sacct's.

    Raises:
        SlurmError: It does not answer, or this site keeps no accounts.
    """
    environment = {**environment_of_query(), "SLURM_TIME_FORMAT": "%s"}
    found = []
    for target in _targets(numbers, cluster):
        words = ("sacct", "--duplicates", "-n", "-P", *target, "-o", columns)
        said = run_patiently(words, environment)
        found += rows_among(said.stdout, 1 + columns.count(","))
    return found


def queue(numbers: Sequence[str], cluster: str) -> list[list[str]]:
    """What the controller says of many jobs: number, state, reason, nodes and elapsed time."""
    found = []
    for target in _targets(numbers, cluster):
        try:
            said = run_patiently(("squeue", "-h", "-t", "all", *target, "-o", _QUEUE))
        except SlurmError as error:
            if not _GONE.search(str(error)):  # which it says of a single job
                raise
        else:
            found += rows_among(said.stdout, 5)
    return found


def cancel(job_id: str) -> None:
    """Cancel a job; one that has ended stays as it is.

    Raises:
        SlurmError: SLURM refuses it, or does not answer.
    """
    number, _, cluster = job_id.partition(";")
    words = ["scancel", *([f"--clusters={cluster}"] if cluster else []), number]
    try:
        said = run_patiently(words)
    except SlurmError as error:
        if _GONE.search(str(error)):
            return
        raise
    if "denied" in said.stderr:  # scancel's exit code is 0 all the same
        raise SlurmError(format_message(said.stderr))


def _target(job_id: str) -> list[str]:
    number, _, cluster = job_id.partition(";")
    return ["-j", number, *(["-M", cluster] if cluster else [])]


def _targets(numbers: Sequence[str], cluster: str) -> Iterator[list[str]]:
    for first in range(0, len(numbers), _AT_ONCE):
        yield _target(f"{','.join(numbers[first : first + _AT_ONCE])};{cluster}".rstrip(";"))


def find_by_folder(folder: Path, known: Container[str] = ()) -> str:
    """The id of the newest job of a run's folder; nothing where SLURM knows none.

    Args:
        folder: The run's folder.
        known: The numbers of jobs that it is not.
    """
    words = ("squeue", "-h", "-t", "all", "-u", getpass.getuser(), "-o", "%i|%Z")
    said = run_program(words, environment_of_query())
    rows = [line.strip().split("|", 1) for line in said.stdout.splitlines() if "|" in line]
    found = [row[0] for row in rows if row[1] == str(folder) and row[0] not in known]
    return max(found, key=int, default="")


@dataclass(frozen=True)
class Attempt:
    """One start of a job, or its waiting for one.

    Args:
        submitted: When it was submitted or requeued, in seconds of Unix time.
        started: When it started; nothing where it did not.
        seconds: How long it ran.
        gpus: How many GPUs it had.
    """

    submitted: float
    started: float | None
    seconds: int
    gpus: int


@dataclass
class Account:
    """A job, whatever the number of its attempts.

    Args:
        job: Its state now, or its last.
        attempts: All of them, in order.
        max_rss_mb: The most resident memory of one of its processes, in MB; 0 where none was told.
    """

    job: Job
    attempts: list[Attempt] = field(default_factory=list)
    max_rss_mb: float = 0.0

    def metrics(self) -> dict[str, float]:
        """What it took, as metrics of its run; of waiting and running all attempts together."""
        started = [each for each in self.attempts if each.started is not None]
        told = {
            "attempts": len(started),
            "elapsed_seconds": sum(each.seconds for each in started),
            "gpu_hours": round(sum(each.seconds * each.gpus for each in started) / 3600, 4),
            "queue_seconds": sum((each.started or 0) - each.submitted for each in started),
        }
        if self.max_rss_mb:
            told["max_rss_mb"] = round(self.max_rss_mb, 1)
        return told


def ask(job_ids: Iterable[str], since: dict[str, float]) -> dict[str, Account]:
    """Ask accounting for many jobs, and the queue for those that it does not know yet.

    Args:
        job_ids: As sbatch gave them, perhaps with the cluster's name.
        since: For each, when it was submitted at the earliest, in seconds of Unix time: a cluster
            may give a number a second time.

    Returns:
        The jobs that SLURM knows, by their ids.

    Raises:
        SlurmError: It does not answer, or keeps no accounts.
    """
    known: dict[str, Account] = {}
    clusters: dict[str, dict[str, str]] = {}
    for job_id in job_ids:
        number, _, cluster = job_id.partition(";")
        clusters.setdefault(cluster, {})[number] = job_id
    for cluster, numbers in clusters.items():
        for row in account(list(numbers), cluster, COLUMNS):
            number, _, step = row[0].partition(".")
            job_id = numbers.get(number, "")
            if job_id and _seconds(row[5]) >= since[job_id]:
                _add(known, job_id, step, row)
        unknown = [number for number, job_id in numbers.items() if job_id not in known]
        for number, state, reason, nodes, elapsed in queue(unknown, cluster):
            if number in numbers:
                job_id = numbers[number]
                known[job_id] = Account(make_job(job_id, state, reason, nodes, elapsed))
    return known


def _add(known: dict[str, Account], job_id: str, step: str, row: list[str]) -> None:
    _, state, exit_code, nodes, elapsed, submit, start, allocated, memory = row
    if step:
        if job_id in known:
            known[job_id].max_rss_mb = max(known[job_id].max_rss_mb, _megabytes(memory))
        return
    account = known.setdefault(job_id, Account(Job(job_id, "PENDING")))
    gpus = _GPUS.search(allocated)
    began = _seconds(start) if start.isdigit() else None
    attempt = Attempt(_seconds(submit), began, int(elapsed), int(gpus[1]) if gpus else 0)
    account.attempts = sorted([*account.attempts, attempt], key=lambda each: each.submitted)
    if attempt is account.attempts[-1]:
        account.job = make_job(job_id, state, "", nodes, elapsed, exit_code)


def _seconds(time: str) -> float:
    return float(time) if time.isdigit() else 0.0


def _megabytes(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)([KMG]?)", text)
    return float(found[1]) * _UNITS[found[2]] if found else 0.0


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
