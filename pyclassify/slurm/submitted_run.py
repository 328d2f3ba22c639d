"""A run that was submitted: waiting for it, asking for it, cancelling it."""

import getpass
import glob
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mlflow.projects.submitted_run import SubmittedRun

from pyclassify.slurm import client
from pyclassify.slurm.states import Job, SlurmError, SlurmSilent
from pyclassify.slurm.status import describe, find_ending, name_job, settle
from pyclassify.spool.records import FINAL_STATUSES

_POLL = 2.0  # seconds; each is a call of squeue
_POLL_MOST = 15.0
FORGOTTEN = "SLURM has forgotten it"
_logger = logging.getLogger("mlflow.projects.slurm")


class SlurmRun(SubmittedRun):
    """A job of SLURM's and its run.

    Args:
        run_id: The run.
        job_id: The job.
        shows: Whether `wait` writes the job's state and logs.
    """

    def __init__(self, run_id: str, job_id: str, shows: bool = False) -> None:
        from mlflow import MlflowClient

        super().__init__()
        self.job_id = job_id
        self._run_id, self._shows, self._client = run_id, shows, MlflowClient()

    @property
    def run_id(self) -> str:
        return self._run_id

    def wait(self) -> bool:
        """Wait until the job has ended, and see to the run's status.

        Returns:
            Whether the run is FINISHED.
        """
        tail, state, pause = self.tail(), "", _POLL
        while True:
            job = self.ask()
            if self._shows:
                if job and job.state != state:
                    _logger.info("job %s: %s %s", self.job_id, job.state, job.reason)
                for text in tail.new():
                    sys.stdout.write(text)
                sys.stdout.flush()
            if self.is_over(job):
                break
            pause = _POLL if job and job.state != state else min(pause * 1.1, _POLL_MOST)
            state = job.state if job else state
            time.sleep(pause)
        return self.reconcile(job) == "FINISHED"

    def get_status(self) -> str:
        """The run's status: what the training or the job said, or else what SLURM says."""
        status = str(self._run().info.status)
        return status if status in FINAL_STATUSES else self.reconcile(self.find())

    def cancel(self) -> str:
        """Cancel the job and mark the run KILLED; waits for neither.

        A job that has ended already gives the run the status that it ended with.

        Returns:
            What became of the job, in words.
        """
        job, what = self._look()
        if not (job and job.meaning.ended):
            client.cancel(self.job_id)
            job, _ = self._look()  # it may have ended by itself meanwhile
            job = job if job and job.state != "CANCELLED" else None
        if job and job.meaning.ended:
            self.reconcile(job)
            return f"had ended: {job.state}"
        run = self._run()
        if run.info.status in FINAL_STATUSES:
            return what
        self._client.set_terminated(self._run_id, "KILLED")
        words = f"the job was cancelled by {getpass.getuser()}."
        if what == FORGOTTEN:
            words = f"{what}; the run was marked KILLED by {getpass.getuser()}."
        describe(self._client, run, name_job(self.job_id), words)
        return what

    def _look(self) -> tuple[Job | None, str]:
        """The job if SLURM says how it goes, and what becomes of it by a cancel."""
        try:
            job = self.find()
            return job, "cancelled" if job else FORGOTTEN
        except client.JobUnknown:
            return None, FORGOTTEN
        except SlurmSilent as silence:
            _logger.warning("SLURM does not say how job %s goes (%s)", self.job_id, silence)
            return None, "cancelled"

    def find(self) -> Job | None:
        """What SLURM says of the job; nothing where it has forgotten one whose run has ended.

        Raises:
            JobUnknown: It knows no such job, and nobody has said how it ended.
            SlurmSilent: It does not answer.
        """
        try:
            return client.find(self.job_id)
        except client.JobUnknown as unknown:
            run = self._run()
            if run.info.status in FINAL_STATUSES:
                return None
            raise client.JobUnknown(
                f"{unknown}; the run stays {run.info.status}: see the log in "
                f"{run.data.tags.get('slurm_folder')}, or close it by `pyclassify slurm cancel`"
            ) from None

    def ask(self) -> Job | None:
        """What `find` says; nothing also where SLURM does not answer."""
        try:
            return self.find()
        except SlurmSilent as silence:
            _logger.warning("SLURM does not answer (%s); asking again", silence)
            return None

    def is_over(self, job: Job | None) -> bool:
        """Whether nothing more is to come, by what SLURM says, or else by the run's status."""
        return job.meaning.ended if job else self._run().info.status in FINAL_STATUSES

    def reconcile(self, job: Job | None) -> str:
        """Make the run's status true.

        Args:
            job: What SLURM says; nothing where it does not answer.

        Returns:
            The run's status.
        """
        run = self._run()
        status = str(run.info.status)
        if job is None:
            return status
        if job.meaning.ended:
            ending = find_ending(job)
            files = tail_of(run.data.tags, self.job_id).files()
            return settle(self._client, self._run_id, ending, self.job_id, files)
        said = job.meaning.status
        if (status, said) == ("RUNNING", "SCHEDULED"):  # it has started since, or is requeued
            again = self.ask()
            if again is None or again.meaning.status != said:
                return status
        now = str(self._run().info.status)  # it may have ended meanwhile
        if now != status or now in (*FINAL_STATUSES, said):
            return now
        self._client.update_run(self._run_id, status=said)
        return said

    def tail(self) -> "Tail":
        """The job's logs."""
        return tail_of(self._run().data.tags, self.job_id)

    def _run(self) -> Any:
        return self._client.get_run(self._run_id)


def locate(pattern: str, job_id: str, job_name: str) -> Path | None:
    """Find the file that SLURM made of a pattern, if there is one yet.

    Args:
        pattern: An absolute path with sbatch's %j and others ("filename pattern" in sbatch(1)).
        job_id: The job's number.
        job_name: Its name.
    """
    parts = [glob.escape(part) for part in fill(pattern, job_id, job_name).split("\0")]
    found = sorted(glob.glob("*".join(parts)))
    return Path(found[-1]) if found else None


def fill(pattern: str, job_id: str, job_name: str, unknown: str = "\0") -> str:
    """Fill in a pattern as far as it is known before the job starts.

    Args:
        pattern: A file name with sbatch's %j and others.
        job_id: The job's number.
        job_name: Its name.
        unknown: What stands for the others, such as %N, the first node.
    """
    known = {"j": job_id, "A": job_id, "x": job_name, "%": "%"}

    def expand(found: re.Match[str]) -> str:
        width, letter = found[1], found[2]
        text = known.get(letter, unknown)
        return text.zfill(int(width)) if width and letter in "jA" else text

    return re.sub(r"%(\d*)([A-Za-z%])", expand, pattern)


class Tail:
    """What is new in some logs, each time that it is asked.

    Args:
        patterns: Those of the logs.
        job_id: The job's number.
        job_name: Its name.
    """

    def __init__(self, patterns: list[str], job_id: str, job_name: str) -> None:
        self.patterns, self.job_id, self.job_name = patterns, job_id, job_name
        self._read: dict[Path, int] = {}

    def files(self) -> list[Path]:
        """The logs that there are, stdout first."""
        found = (locate(each, self.job_id, self.job_name) for each in self.patterns)
        return list(dict.fromkeys(path for path in found if path))

    def expected(self) -> list[str]:
        """Where the logs would be, with a * for what only SLURM knows."""
        names = (fill(each, self.job_id, self.job_name, "*") for each in self.patterns)
        return list(dict.fromkeys(names))

    def new(self) -> Iterator[str]:
        """The text that was written since the last call."""
        for path in self.files():
            with path.open("rb") as file:
                read = self._read.get(path, 0)
                # A job that is requeued may start its log anew.
                file.seek(read if read <= file.seek(0, os.SEEK_END) else 0)
                text = file.read()
                self._read[path] = file.tell()
            if text:
                yield text.decode(errors="replace")


def tail_of(tags: Mapping[str, str], job_id: str) -> Tail:
    """The logs of a run's job, by the run's tags."""
    patterns = [tags[name] for name in ("slurm_output", "slurm_error") if name in tags]
    return Tail(patterns, job_id.partition(";")[0], tags.get("slurm_job_name", ""))


def kept_logs(run_id: str) -> Iterator[str]:
    """The logs among a run's artifacts, for where its folder was cleared."""
    from mlflow import MlflowClient

    client = MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        for each in client.list_artifacts(run_id, "slurm"):
            if Path(each.path).name not in ("job.sh", "backend_config.json"):
                path = client.download_artifacts(run_id, each.path, folder)
                yield Path(path).read_text(errors="replace")


def absolute(folder: Path, name: str) -> str:
    """A log's pattern where SLURM would take it to be, in the job's folder."""
    return os.path.join(str(folder).replace("%", "%%"), name)


def find_job_id(run: Any) -> str:
    """The id of a run's job, by the run's folder where the submission was killed; or nothing."""
    tags = run.data.tags
    if job_id := tags.get("slurm_job_id"):
        return str(job_id)
    # The run's jobs before a resume have the folder too.
    return client.find_by_folder(Path(tags["slurm_folder"]), list_job_numbers(tags))


def list_job_numbers(tags: Mapping[str, str]) -> list[str]:
    """The numbers of a run's jobs that have started."""
    return tags.get("slurm_job_ids", "").split(",")


def of_run(run_id: str) -> SlurmRun:
    """The job of a run that was submitted, perhaps by another process.

    Args:
        run_id: The run's id, or the first eight or more digits of it.

    Raises:
        ValueError: There is no such run, or it is none of this backend.
        OSError: There are no runs here, or it has no job.
    """
    from pyclassify.tracking import search

    run = search.find_run(search.open_store(), run_id)
    run_id, tags = run.info.run_id, run.data.tags
    if "slurm_folder" not in tags:
        raise ValueError(
            f"the run {run_id} is none of the backend slurm; `mlflow run --backend slurm` makes one"
        )
    ended = run.info.status in FINAL_STATUSES  # else its submission may have been killed
    job_id = tags.get("slurm_job_id", "") if ended else find_job_id(run)
    if not job_id:
        raise SlurmError(f"the run {run_id} has no job: SLURM did not take it, see its description")
    return SlurmRun(run_id, job_id)
