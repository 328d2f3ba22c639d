"""The only door to SLURM: its programs sbatch, squeue, sacct and scancel, and what they say."""

import getpass
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

from pyclassify.slurm.answers import Job, make_job, rows_among, rows_of
from pyclassify.slurm.programs import (
    environment_of_job,
    environment_of_query,
    format_message,
    run_patiently,
    run_program,
)
from pyclassify.slurm.states import SlurmError, SlurmSilent

_AT_ONCE = 1000  # jobs of a command line
_QUEUE = "%i|%T|%r|%N|%M"
_GONE = re.compile(r"Invalid job id", re.IGNORECASE)


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
