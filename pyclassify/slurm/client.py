"""SLURM's commands (sbatch, squeue, sacct, scancel): run them and parse their output.

Every call to SLURM goes through this module. It retries a command while SLURM is busy, finds the
job of a submission whose output was lost, and withholds environment variables that would change the
output of the commands or the job.
"""

import getpass
import os
import re
import subprocess
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pyclassify.slurm.states import (
    Attempt,
    Job,
    JobAccounting,
    JobNotFoundError,
    SlurmError,
    SlurmUnavailableError,
    make_job,
)

TIMEOUT_SECONDS = 60.0  # for one command; those of SLURM time out after about 10 seconds
RETRY_DELAYS_SECONDS = (1.0, 2.0, 4.0)
_MAX_JOBS_PER_COMMAND = 1000
_SQUEUE_FORMAT = "%i|%T|%r|%N|%M"
_SQUEUE_COLUMNS = _SQUEUE_FORMAT.count("|") + 1
_SACCT_COLUMNS = ("JobID", "State", "ExitCode", "NodeList", "Elapsed")
_ACCOUNTING_COLUMNS = (
    *("JobID", "State", "ExitCode", "NodeList", "ElapsedRaw"),
    *("Submit", "Start", "AllocTRES", "MaxRSS"),
)
_GPUS = re.compile(r"gres/gpu(?P<type>:[^=,]+)?=(?P<count>\d+)")
_MEGABYTES = {"": 1e-6, "K": 1024e-6, "M": 1024**2 * 1e-6, "G": 1024**3 * 1e-6}
_INVALID_JOB_ID = re.compile(r"Invalid job id", re.IGNORECASE)
# Messages of a controller or database that is busy or down, which are not about the job.
_UNAVAILABLE = re.compile(
    r"Socket timed out|Unable to contact slurm controller|Zero Bytes were transmitted"
    r"|Connection (refused|reset|timed out)|Transport endpoint|temporarily un"
    r"|Problem talking to the database|SlurmDBD",
    re.IGNORECASE,
)
# The command did not reach the controller, so it had no effect.
_NOT_RECEIVED = re.compile(r"Unable to contact slurm controller", re.IGNORECASE)
# Variables that change the commands' output, and those of a job or launcher around this process.
_OUTPUT_PREFIXES = (
    "SACCT_",
    "SINFO_",
    "SQUEUE_",
    "SCANCEL_",
    "SLURM_TIME_FORMAT",
    "SLURM_JSON",
    "SLURM_YAML",
)
_JOB_PREFIXES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "PMI_", "PMIX_", "CUDA_VISIBLE_DEVICES")
_LAUNCHER_VARIABLES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "MLFLOW_RUN_ID"),
)
_CLUSTER_VARIABLES = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
# Defaults of a site or user -> the key of the configuration that overrides each.
_SBATCH_DEFAULTS = {f"SBATCH_{name.upper()}": name for name in ("account", "partition", "qos")}
_SBATCH_DEFAULTS |= {"SBATCH_RESERVATION": "reservation", "SBATCH_CONSTRAINT": "constraint"}


def submit_job(
    script: Path,
    variables: Mapping[str, str],
    config_keys: Sequence[str],
    options: Sequence[str] = (),
    earlier_jobs: Container[str] = (),
) -> str:
    """Submit a batch script by sbatch.

    Args:
        script: The script. Its folder is the job's working directory (`--chdir`), by which the job
            is found if the output of sbatch is lost.
        variables: Environment variables of the job, in addition to those of this process.
        config_keys: The keys of the backend config that have a value.
        options: Options of sbatch, which win over those in the script.
        earlier_jobs: The ids of the folder's earlier jobs.

    Returns:
        The job id, with the cluster's name after a semicolon where there are several.

    Raises:
        SlurmError: SLURM refuses the job, or does not respond.
    """
    result = _run_with_retries(
        ("sbatch", "--parsable", *options, str(script)),
        environment={**_make_job_environment(config_keys), **variables},
        find_lost_output=lambda: find_job_by_folder(script.parent, earlier_jobs),
    )
    for line in reversed(result.stdout.splitlines()):  # a site may print more before it
        if re.fullmatch(r"\d+(;\S+)?", line.strip()):
            return line.strip()
    raise SlurmError(f"sbatch printed no job id, but {result.stdout.strip()!r}")


def validate_script(script: Path, config_keys: Sequence[str]) -> str:
    """Validate a batch script by `sbatch --test-only`, which submits nothing.

    Returns:
        SLURM's estimate of when the job would start, in one line.

    Raises:
        SlurmError: SLURM would refuse the job, or does not respond.
    """
    command = ("sbatch", "--test-only", str(script))
    result = _run_with_retries(command, environment=_make_job_environment(config_keys))
    return _format_output(result.stderr)


def list_gres(clusters: str = "") -> list[list[str]]:
    """List the generic resources of all partitions.

    Args:
        clusters: The clusters, with commas; empty for the one of this host.

    Returns:
        For each kind of node the partition, with a star where it is the default one, and the node's
        resources in SLURM's form.

    Raises:
        SlurmError: sinfo fails.
    """
    command = ("sinfo", "-h", "-a", *(["-M", clusters] if clusters else []), "-o", "%P|%G")
    result = _run_command(command, _make_query_environment())
    return _parse_rows(result.stdout, columns=2)


def has_job_submit_plugins() -> bool:
    """Whether the site has plugins that may change what a job requests, such as its partition.

    Raises:
        SlurmError: scontrol fails.
    """
    result = _run_command(("scontrol", "show", "config"), _make_query_environment())
    match = re.search(r"^JobSubmitPlugins\s*=\s*(\S+)", result.stdout, re.MULTILINE)
    return match is not None and match[1] != "(null)"


def find_job(job_id: str) -> Job:
    """Ask squeue for a job, and sacct where the job has ended or squeue does not have it.

    Raises:
        JobNotFoundError: Neither has the job.
        SlurmUnavailableError: They do not respond.
    """
    try:
        job = _find_in_queue(job_id)
    except SlurmUnavailableError as error:
        job = _find_in_accounting_or_raise(error, job_id)
        if not job.meaning.ended:  # the state may have changed since
            raise
        return job
    except JobNotFoundError as error:
        return _find_in_accounting_or_raise(error, job_id)
    if not job.meaning.ended:
        return job
    try:
        accounted = _find_in_accounting(job_id)  # sacct has the exit code, with some delay
    except SlurmError:
        return job
    return accounted if accounted.meaning.ended else job


def find_job_by_folder(folder: Path, earlier_jobs: Container[str] = ()) -> str:
    """Find the newest job whose working directory is a run's folder.

    Args:
        folder: The run's folder.
        earlier_jobs: The ids of jobs to skip.

    Returns:
        The job id; empty where squeue has no such job.

    Raises:
        SlurmError: squeue fails.
    """
    command = ("squeue", "-h", "-t", "all", "-u", getpass.getuser(), "-o", "%i|%Z")
    result = _run_command(command, _make_query_environment())
    rows = [line.strip().split("|", 1) for line in result.stdout.splitlines() if "|" in line]
    # Elements of an array (7_1, 7_[2-9]) and components of a heterogeneous job (7+1) don't count.
    numbers = [number for number, path in rows if path == str(folder) and number.isdigit()]
    new_jobs = (number for number in numbers if number not in earlier_jobs)
    return max(new_jobs, key=int, default="")


def cancel_job(job_id: str) -> None:
    """Cancel a job by scancel; a job that has ended is left alone.

    Raises:
        SlurmError: SLURM refuses the command, or does not respond.
    """
    number, _, cluster = job_id.partition(";")
    command = ["scancel", *([f"--clusters={cluster}"] if cluster else []), number]
    try:
        result = _run_with_retries(command)
    except SlurmError as error:
        if _INVALID_JOB_ID.search(str(error)):
            return
        raise
    if "denied" in result.stderr:  # scancel's exit code is 0 all the same
        raise SlurmError(_format_output(result.stderr))


def list_accounting(earliest_submission: Mapping[str, float]) -> dict[str, JobAccounting]:
    """Ask sacct for many jobs at once, and squeue for those that sacct does not have yet.

    Args:
        earliest_submission: The earliest time at which each job can have been submitted, in seconds
            of Unix time, by the job's id (as sbatch printed it, perhaps with the cluster's name). A
            cluster may reuse the ids of old jobs.

    Returns:
        The jobs that SLURM has, by their ids.

    Raises:
        SlurmError: SLURM does not respond, or the site has no accounting.
    """
    accounting: dict[str, JobAccounting] = {}
    clusters: dict[str, dict[str, str]] = {}
    for job_id in earliest_submission:
        number, _, cluster = job_id.partition(";")
        clusters.setdefault(cluster, {})[number] = job_id
    for cluster, numbers in clusters.items():
        for row in _list_accounting_rows(list(numbers), cluster):
            number, _, step = row[0].partition(".")
            job_id = numbers.get(number, "")
            if job_id and _parse_seconds(row[5]) >= earliest_submission[job_id]:
                _add_accounting_row(accounting, job_id, step, row)
        missing = [number for number, job_id in numbers.items() if job_id not in accounting]
        for number, state, reason, nodes, elapsed in _list_queue_rows(missing, cluster):
            if number in numbers:
                job_id = numbers[number]
                job = make_job(job_id, state, reason, nodes, elapsed)
                accounting[job_id] = JobAccounting(job)
    return accounting


def _find_in_queue(job_id: str) -> Job:
    """Ask squeue, which has pending and running jobs, and ended ones for some minutes."""
    command = ("squeue", "-h", "-t", "all", *_select_jobs(job_id), "-o", _SQUEUE_FORMAT)
    try:
        result = _run_with_retries(command)
    except SlurmError as error:
        if _INVALID_JOB_ID.search(str(error)):
            raise JobNotFoundError(f"squeue has no job {job_id}") from None
        raise
    for _, state, reason, nodes, elapsed in _parse_job_rows(result.stdout, job_id, _SQUEUE_COLUMNS):
        return make_job(job_id, state, "" if reason == "None" else reason, nodes, elapsed)
    raise JobNotFoundError(f"squeue has no job {job_id}")


def _find_in_accounting(job_id: str) -> Job:
    """Ask sacct, which has jobs for as long as the site stores accounting."""
    columns = ",".join(_SACCT_COLUMNS)
    command = ("sacct", "-X", "-n", "-P", *_select_jobs(job_id), "-o", columns)
    try:
        result = _run_with_retries(command)
    except SlurmUnavailableError:
        raise
    except SlurmError as error:
        raise JobNotFoundError(f"sacct failed ({error})") from None
    rows = _parse_job_rows(result.stdout, job_id, len(_SACCT_COLUMNS))
    for _, state, exit_code, nodes, elapsed in rows:
        return make_job(job_id, state, "", nodes, elapsed, exit_code)
    raise JobNotFoundError(f"sacct has no job {job_id}")


def _find_in_accounting_or_raise(error: SlurmError, job_id: str) -> Job:
    try:
        return _find_in_accounting(job_id)
    except JobNotFoundError as not_found:
        raise type(error)(f"{error}; {not_found}") from None
    except SlurmUnavailableError:
        raise error from None


def _list_accounting_rows(numbers: Sequence[str], cluster: str) -> list[list[str]]:
    """sacct's rows of many jobs, their attempts and steps; times in seconds."""
    environment = {**_make_query_environment(), "SLURM_TIME_FORMAT": "%s"}
    columns = ",".join(_ACCOUNTING_COLUMNS)
    rows = []
    for selection in _select_many_jobs(numbers, cluster):
        command = ("sacct", "--duplicates", "-n", "-P", *selection, "-o", columns)
        result = _run_with_retries(command, environment)
        rows += _parse_rows(result.stdout, len(_ACCOUNTING_COLUMNS))
    return rows


def _list_queue_rows(numbers: Sequence[str], cluster: str) -> list[list[str]]:
    """squeue's rows of many jobs: number, state, reason, nodes and elapsed time."""
    rows = []
    for selection in _select_many_jobs(numbers, cluster):
        try:
            result = _run_with_retries(
                ("squeue", "-h", "-t", "all", *selection, "-o", _SQUEUE_FORMAT)
            )
        except SlurmError as error:
            if not _INVALID_JOB_ID.search(str(error)):  # an error only for a single job
                raise
        else:
            rows += _parse_rows(result.stdout, _SQUEUE_COLUMNS)
    return rows


def _add_accounting_row(
    accounting: dict[str, JobAccounting], job_id: str, step: str, row: list[str]
) -> None:
    _, state, exit_code, nodes, elapsed, submit, start, allocated, memory = row
    if step:
        if job_id in accounting:
            max_rss_mb = max(accounting[job_id].max_rss_mb, _parse_megabytes(memory))
            accounting[job_id].max_rss_mb = max_rss_mb
        return
    job = accounting.setdefault(job_id, JobAccounting(Job(job_id, "PENDING")))
    started = _parse_seconds(start) if start.isdigit() else None
    attempt = Attempt(_parse_seconds(submit), started, int(elapsed), _count_gpus(allocated))
    job.attempts = sorted([*job.attempts, attempt], key=lambda attempt: attempt.submitted)
    if attempt is job.attempts[-1]:
        job.job = make_job(job_id, state, "", nodes, elapsed, exit_code)


def _count_gpus(allocated: str) -> int:
    """Count the GPUs of sacct's AllocTRES; a site may account for them by type alone."""
    counts = [(match["type"], int(match["count"])) for match in _GPUS.finditer(allocated)]
    total = [count for kind, count in counts if kind is None]
    return total[0] if total else sum(count for _, count in counts)


def _select_jobs(job_id: str) -> list[str]:
    """The options of squeue and sacct that select a job, or several with commas."""
    number, _, cluster = job_id.partition(";")
    return ["-j", number, *(["-M", cluster] if cluster else [])]


def _select_many_jobs(numbers: Sequence[str], cluster: str) -> Iterator[list[str]]:
    for first in range(0, len(numbers), _MAX_JOBS_PER_COMMAND):
        joined = ",".join(numbers[first : first + _MAX_JOBS_PER_COMMAND])
        yield _select_jobs(f"{joined};{cluster}".rstrip(";"))


def _parse_job_rows(text: str, job_id: str, columns: int) -> list[list[str]]:
    number = job_id.partition(";")[0]
    return [row for row in _parse_rows(text, columns) if row[0] == number]


def _parse_rows(text: str, columns: int) -> list[list[str]]:
    """Parse the rows of an output, in which a site's wrappers may print other lines too."""
    rows = [line.strip().split("|") for line in text.splitlines()]
    return [row[:columns] for row in rows if len(row) >= columns]


def _parse_seconds(time: str) -> float:
    return float(time) if time.isdigit() else 0.0


def _parse_megabytes(text: str) -> float:
    match = re.fullmatch(r"([\d.]+)([KMG]?)", text)
    return float(match[1]) * _MEGABYTES[match[2]] if match else 0.0


def _run_with_retries(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    find_lost_output: Callable[[], str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command, and retry it after each delay while SLURM is busy.

    Args:
        command: The command line.
        environment: The command's environment.
        find_lost_output: For a command that must not take effect twice: finds the output of a run
            whose output was lost; empty where that run had no effect.

    Raises:
        SlurmUnavailableError: SLURM did not respond to any attempt.
        SlurmError: SLURM refuses the command.
    """
    last_error, is_lost = SlurmUnavailableError(), False
    for delay in (0.0, *RETRY_DELAYS_SECONDS):
        time.sleep(delay)
        with suppress(SlurmError):  # while the effect is unknown, the command is not repeated
            if is_lost and find_lost_output and (output := find_lost_output()):
                return subprocess.CompletedProcess(command, 0, output, "")
            is_lost = False
        if is_lost and find_lost_output:
            continue
        try:
            return _run_command(command, environment or _make_query_environment())
        except SlurmUnavailableError as error:
            last_error, is_lost = error, not _NOT_RECEIVED.search(str(error))
    if is_lost and find_lost_output:
        with suppress(SlurmError):
            if output := find_lost_output():
                return subprocess.CompletedProcess(command, 0, output, "")
    raise last_error


def _run_command(
    command: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command once.

    Raises:
        SlurmUnavailableError: SLURM is busy or down.
        SlurmError: SLURM refuses the command; the message is that of the command, in one line.
    """
    try:
        result = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_SECONDS,
        )
    except FileNotFoundError:
        raise SlurmError(
            f"{command[0]} is not on PATH; run this command on the login node of a SLURM cluster"
        ) from None
    except subprocess.TimeoutExpired:
        message = f"{command[0]} timed out after {TIMEOUT_SECONDS:.0f} s"
        raise SlurmUnavailableError(message) from None
    if result.returncode == 0:
        return result
    message = _format_output(result.stderr)
    message = message or f"{command[0]} failed with exit code {result.returncode}"
    raise SlurmUnavailableError(message) if _UNAVAILABLE.search(message) else SlurmError(message)


def _format_output(text: str) -> str:
    """Join the lines of a command's output, without the command's name before each."""
    lines = (re.sub(r"^s\w+: (?:error: )?", "", line.strip()) for line in text.splitlines())
    return "; ".join(line for line in lines if line)


def _make_query_environment() -> dict[str, str]:
    """This process's environment, without variables that change the commands' output."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_OUTPUT_PREFIXES)}


def _make_job_environment(config_keys: Sequence[str]) -> dict[str, str]:
    """This process's environment, without variables that would change the job.

    Options of sbatch in the environment win over those in the script, and a job or launcher around
    this process has variables that the new job sets itself.
    """
    dropped = (*_JOB_PREFIXES, *_OUTPUT_PREFIXES)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    environment |= {name: os.environ[name] for name in _CLUSTER_VARIABLES if name in os.environ}
    for name, key in _SBATCH_DEFAULTS.items():
        if name in os.environ and key not in config_keys:
            environment[name] = os.environ[name]
    return {name: text for name, text in environment.items() if name not in _LAUNCHER_VARIABLES}
