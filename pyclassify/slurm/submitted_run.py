"""A run that was submitted to SLURM: wait for its job, update its status, cancel it, read its logs.

`SlurmRun` is what `mlflow.projects.run(backend="slurm")` returns; `find_submitted_run` makes one of
a run that another process submitted. `JobLogs` are the files that SLURM makes from the patterns of
"output" and "error".
"""

import getpass
import glob
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow.projects.submitted_run import SubmittedRun

from pyclassify.slurm import client
from pyclassify.slurm.states import Job, JobNotFoundError, SlurmError, SlurmUnavailableError
from pyclassify.slurm.status import (
    ARTIFACT_FOLDER,
    JOB_ID_TAG,
    JOB_IDS_TAG,
    apply_outcome,
    derive_run_outcome,
    format_subject,
    update_description,
)
from pyclassify.spool.records import FINAL_STATUSES
from pyclassify.utils.launcher import SLURM_FOLDER_TAG

if TYPE_CHECKING:
    from mlflow.entities import Run

FORGOTTEN_MESSAGE = "SLURM has no record of it"
_MIN_POLL_SECONDS = 2.0  # each is a call of squeue
_MAX_POLL_SECONDS = 15.0
_logger = logging.getLogger("mlflow.projects.slurm")


class JobLogs:
    """The stdout and stderr of a job.

    Args:
        patterns: Absolute paths with sbatch's %j and others ("filename pattern" in sbatch(1)).
        job_id: The job's number.
        job_name: The job's name.

    Example:
        >>> JobLogs(["/runs/%x-%j-%N.out"], "7", "net").expected_paths()
        ['/runs/net-7-*.out']
    """

    def __init__(self, patterns: Sequence[str], job_id: str, job_name: str) -> None:
        self.patterns, self.job_id, self.job_name = patterns, job_id, job_name
        self._offsets: dict[Path, int] = {}

    def list_files(self) -> list[Path]:
        """List the logs that exist, stdout first."""
        paths = (_find_log(pattern, self.job_id, self.job_name) for pattern in self.patterns)
        return list(dict.fromkeys(path for path in paths if path))

    def expected_paths(self) -> list[str]:
        """List the expected paths of the logs, with a * for what only SLURM knows."""
        paths = (
            expand_pattern(pattern, self.job_id, self.job_name, unknown="*")
            for pattern in self.patterns
        )
        return list(dict.fromkeys(paths))

    def read_new(self, is_last: bool = False) -> Iterator[str]:
        """Read the lines that were added to the logs since the last call.

        Args:
            is_last: Whether the job has ended. Before, a line that is not finished waits for its
                rest, except a progress bar: a line with carriage returns.
        """
        for path in self.list_files():
            with path.open("rb") as file:
                offset = self._offsets.get(path, 0)
                # A requeued job may have truncated its log.
                start = file.seek(offset if offset <= file.seek(0, os.SEEK_END) else 0)
                content = file.read()
            end = content.rfind(b"\n") + 1
            if not is_last and b"\r" not in content[end:]:
                content = content[:end]
            self._offsets[path] = start + len(content)
            if content:
                yield content.decode(errors="replace")


class SlurmRun(SubmittedRun):
    """A run and its SLURM job.

    Args:
        run_id: The run.
        job_id: The job, as sbatch gave it.
        verbose: Whether `wait` prints the job's state and logs.

    Example:
        >>> run = mlflow.projects.run(".", backend="slurm", synchronous=False)
        >>> run.wait(), run.get_status()
        (True, 'FINISHED')
    """

    def __init__(self, run_id: str, job_id: str, verbose: bool = False) -> None:
        from mlflow import MlflowClient

        super().__init__()
        self.job_id = job_id
        self._run_id, self._verbose, self._client = run_id, verbose, MlflowClient()
        self._advised: set[str] = set()  # reasons that a warning was logged for

    @property
    def run_id(self) -> str:
        return self._run_id

    def wait(self) -> bool:
        """Wait until the job has ended, and update the run's status.

        Returns:
            Whether the run is FINISHED.
        """
        logs, state, pause = self.make_logs(), "", _MIN_POLL_SECONDS
        while True:
            job = self.poll_job()
            has_ended = self.has_ended(job)
            if self._verbose:
                if job and job.state != state:
                    _logger.info("job %s: %s %s", self.job_id, job.state, job.reason)
                for text in logs.read_new(is_last=has_ended):
                    sys.stdout.write(text)
                sys.stdout.flush()
            if has_ended:
                break
            has_changed = job is not None and job.state != state
            pause = _MIN_POLL_SECONDS if has_changed else min(pause * 1.1, _MAX_POLL_SECONDS)
            state = job.state if job else state
            time.sleep(pause)
        return self.update_status(job) == "FINISHED"

    def get_status(self) -> str:
        """Get the run's status, as the training or the job set it, or else as SLURM reports it."""
        status = str(self._get_run().info.status)
        return status if status in FINAL_STATUSES else self.update_status(self.find_job())

    def cancel(self) -> str:
        """Cancel the job and set the run KILLED, without waiting for the job's end.

        If the job has already ended, the run gets the status that the job ended with.

        Returns:
            What happened to the job.
        """
        job, effect = self._find_job_to_cancel()
        if not (job and job.meaning.ended):
            client.cancel_job(self.job_id)
            job, _ = self._find_job_to_cancel()  # it may have ended in the meantime
            job = job if job and job.state != "CANCELLED" else None
        if job and job.meaning.ended:
            self.update_status(job)
            return f"already ended ({job.state})"
        run = self._get_run()
        if run.info.status in FINAL_STATUSES:
            return effect
        self._client.set_terminated(self._run_id, "KILLED")
        message = f"the job was cancelled by {getpass.getuser()}."
        if effect == FORGOTTEN_MESSAGE:
            message = f"{effect}; the run was set KILLED by {getpass.getuser()}."
        update_description(self._client, run, format_subject(self.job_id), message)
        return effect

    def find_job(self) -> Job | None:
        """Ask SLURM for the job.

        Returns:
            The job; None where SLURM does not have it any more and the run has ended.

        Raises:
            JobNotFoundError: SLURM does not have the job, and the run has not ended.
            SlurmUnavailableError: SLURM does not respond.
        """
        try:
            return client.find_job(self.job_id)
        except JobNotFoundError as error:
            run = self._get_run()
            if run.info.status in FINAL_STATUSES:
                return None
            raise JobNotFoundError(
                f"{error}; the run stays {run.info.status}. Read its log in "
                f"{run.data.tags.get(SLURM_FOLDER_TAG)}, or set the run KILLED by "
                f"`pyclassify slurm cancel {self._run_id}`"
            ) from None

    def poll_job(self) -> Job | None:
        """Ask SLURM for the job as `find_job` does; None also where SLURM does not respond."""
        try:
            job = self.find_job()
        except SlurmUnavailableError as error:
            _logger.warning("SLURM does not respond (%s); retrying", error)
            return None
        if job is not None and job.advice and job.reason not in self._advised:
            self._advised.add(job.reason)
            _logger.warning("%s", self._format_advice(job))
        return job

    def describe_job(self, job: Job) -> str:
        """Describe a job's state, reason, elapsed time and nodes in one line."""
        reason = derive_run_outcome(self._get_run(), job).reason or job.reason
        facts = [job.state, reason, job.advice, job.elapsed, job.nodes and f"on {job.nodes}"]
        return ", ".join(fact for fact in facts if fact)

    def has_ended(self, job: Job | None) -> bool:
        """Whether the job has ended by SLURM's state, or else by the status of the run.

        Args:
            job: The job as SLURM reports it; None where SLURM does not respond.
        """
        return job.meaning.ended if job else self._get_run().info.status in FINAL_STATUSES

    def update_status(self, job: Job | None) -> str:
        """Set the run's status to that of its job.

        Args:
            job: The job as SLURM reports it; None where SLURM does not respond.

        Returns:
            The status of the run.
        """
        run = self._get_run()
        status = str(run.info.status)
        if job is None:
            return status
        if job.meaning.ended:
            logs = make_job_logs(run.data.tags, self.job_id).list_files()
            outcome = derive_run_outcome(run, job)
            return apply_outcome(self._client, self._run_id, outcome, self.job_id, logs)
        job_status = job.meaning.status
        if (status, job_status) == ("RUNNING", "SCHEDULED"):  # started since, or requeued
            job = self.poll_job()
            if job is None or job.meaning.status != job_status:
                return status
        current = str(self._get_run().info.status)  # it may have ended in the meantime
        if current != status or current in (*FINAL_STATUSES, job_status):
            return current
        self._client.update_run(self._run_id, status=job_status)
        return job_status

    def make_logs(self) -> JobLogs:
        """Make the reader of the job's logs."""
        return make_job_logs(self._get_run().data.tags, self.job_id)

    def _find_job_to_cancel(self) -> tuple[Job | None, str]:
        """Find the job, if SLURM responds and has it, and what a cancel does to it."""
        try:
            job = self.find_job()
            return job, "cancelled" if job else FORGOTTEN_MESSAGE
        except JobNotFoundError:
            return None, FORGOTTEN_MESSAGE
        except SlurmUnavailableError as error:
            _logger.warning("SLURM does not report the state of job %s (%s)", self.job_id, error)
            return None, "cancelled"

    def _format_advice(self, job: Job) -> str:
        return (
            f"job {self.job_id} is pending because of {job.reason}: {job.advice}; to change that, "
            f"cancel it by `pyclassify slurm cancel {self._run_id}` and submit a new run"
        )

    def _get_run(self) -> "Run":
        return self._client.get_run(self._run_id)


def find_submitted_run(run_id: str) -> SlurmRun:
    """Find a submitted run, also one that another process submitted.

    Args:
        run_id: The run's ID, or its first eight or more digits.

    Raises:
        ValueError: The run does not exist, or was not submitted to SLURM.
        OSError: The tracking store does not exist, or the run has no job.
    """
    from pyclassify.tracking import search

    run = search.find_run(search.open_store(), run_id)
    run_id, tags = run.info.run_id, run.data.tags
    if SLURM_FOLDER_TAG not in tags:
        raise ValueError(
            f"the run {run_id} was not submitted to SLURM; submit a run by "
            "`mlflow run --backend slurm`"
        )
    job_id = find_job_id(run)
    if not job_id:
        raise SlurmError(
            f"the run {run_id} has no job: SLURM refused it; see the description of the run"
        )
    return SlurmRun(run_id, job_id)


def find_job_id(run: "Run", search_ended: bool = False) -> str:
    """Find the id of a run's job, by the run's tag or else by the run's folder.

    Args:
        run: The run.
        search_ended: Whether to search by the folder also where the run has ended. A resume does,
            so as not to submit a second job.

    Returns:
        The id; empty where the run has no job.

    Raises:
        SlurmError: squeue fails.
    """
    tags = run.data.tags
    if job_id := tags.get(JOB_ID_TAG):
        return str(job_id)
    # Without the tag, either the submission failed, and has ended the run as FAILED; or it was
    # killed between sbatch and the tag: then the run has not ended, and may have a job.
    if run.info.status in FINAL_STATUSES and not search_ended:
        return ""
    # The run's jobs before a resume have the folder too.
    return client.find_job_by_folder(Path(tags[SLURM_FOLDER_TAG]), list_started_jobs(tags))


def list_started_jobs(tags: Mapping[str, str]) -> list[str]:
    """List the numbers of a run's jobs that have started, by the run's tags."""
    return tags.get(JOB_IDS_TAG, "").split(",")


def make_job_logs(tags: Mapping[str, str], job_id: str) -> JobLogs:
    """Make the reader of the logs of a run's job.

    Args:
        tags: The run's tags.
        job_id: The job, as sbatch gave it.
    """
    patterns = [tags[name] for name in ("slurm_output", "slurm_error") if name in tags]
    return JobLogs(patterns, job_id.partition(";")[0], tags.get("slurm_job_name", ""))


def read_logged_job_logs(run_id: str) -> Iterator[str]:
    """Read the job's logs from the run's artifacts, for a run whose folder was removed."""
    from mlflow import MlflowClient

    store = MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        for artifact in store.list_artifacts(run_id, ARTIFACT_FOLDER):
            if Path(artifact.path).name not in ("job.sh", "backend_config.json"):
                path = store.download_artifacts(run_id, artifact.path, folder)
                yield Path(path).read_text(errors="replace")


def make_absolute_pattern(folder: Path, pattern: str) -> str:
    """Make a log's pattern absolute, as SLURM does from the job's working directory."""
    return os.path.join(str(folder).replace("%", "%%"), pattern)


def expand_pattern(pattern: str, job_id: str, job_name: str, unknown: str) -> str:
    """Expand sbatch's filename pattern as far as it is known before the job starts.

    Args:
        pattern: A file name with sbatch's %j and others.
        job_id: The job's number.
        job_name: The job's name.
        unknown: The replacement for the others, such as %N, the first node.
    """
    known = {"j": job_id, "A": job_id, "x": job_name, "%": "%"}

    def expand(match: re.Match[str]) -> str:
        width, letter = match[1], match[2]
        text = known.get(letter, unknown)
        return text.zfill(int(width)) if width and letter in "jA" else text

    return re.sub(r"%(\d*)([A-Za-z%])", expand, pattern)


def _find_log(pattern: str, job_id: str, job_name: str) -> Path | None:
    """Find the file that SLURM has created from a pattern, if it exists yet."""
    parts = expand_pattern(pattern, job_id, job_name, unknown="\0").split("\0")
    paths = sorted(glob.glob("*".join(glob.escape(part) for part in parts)))
    return Path(paths[-1]) if paths else None
