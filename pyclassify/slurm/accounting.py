"""What accounting says of many jobs at once: how each ended, and what it took.

From sacct(1): a row for each attempt of a job (`--duplicates`), and one for each of its steps.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from pyclassify.slurm import client
from pyclassify.slurm.answers import Job, make_job

COLUMNS = "JobID,State,ExitCode,NodeList,ElapsedRaw,Submit,Start,AllocTRES,MaxRSS"

_GPUS = re.compile(r"gres/gpu=(\d+)")
_UNITS = {"": 1e-6, "K": 1024e-6, "M": 1024**2 * 1e-6, "G": 1024**3 * 1e-6}


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
        for row in client.account(list(numbers), cluster, COLUMNS):
            number, _, step = row[0].partition(".")
            job_id = numbers.get(number, "")
            if job_id and _seconds(row[5]) >= since[job_id]:
                _add(known, job_id, step, row)
        unknown = [number for number, job_id in numbers.items() if job_id not in known]
        for number, state, reason, nodes, elapsed in client.queue(unknown, cluster):
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
