"""A run that was submitted: waiting for it, asking for it, cancelling it."""

import getpass
import logging
import sys
import time
from typing import Any

from mlflow.projects.submitted_run import SubmittedRun

from pyclassify.slurm import client, description
from pyclassify.slurm import status as reconcile
from pyclassify.slurm.answers import Job
from pyclassify.slurm.logs import tail_of
from pyclassify.slurm.states import SlurmSilent
from pyclassify.spool.records import FINAL

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
        tail, state, pause = tail_of(self._run().data.tags), "", _POLL
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
        return status if status in FINAL else self.reconcile(self.find())

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
        if run.info.status in FINAL:
            return what
        self._client.set_terminated(self._run_id, "KILLED")
        words = f"the job was cancelled by {getpass.getuser()}."
        if what == FORGOTTEN:
            words = f"{what}; the run was marked KILLED by {getpass.getuser()}."
        description.describe(self._client, run, description.name_job(self.job_id), words)
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
            if run.info.status in FINAL:
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
        return job.meaning.ended if job else self._run().info.status in FINAL

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
            ending = reconcile.find_ending(job)
            files = tail_of(run.data.tags).files()
            return reconcile.settle(self._client, self._run_id, ending, self.job_id, files)
        said = job.meaning.status
        if (status, said) == ("RUNNING", "SCHEDULED"):  # it has started since, or is requeued
            again = self.ask()
            if again is None or again.meaning.status != said:
                return status
        now = str(self._run().info.status)  # it may have ended meanwhile
        if now != status or now in (*FINAL, said):
            return now
        self._client.update_run(self._run_id, status=said)
        return said

    @property
    def tags(self) -> dict[str, str]:
        """The tags of the run."""
        return dict(self._run().data.tags)

    def _run(self) -> Any:
        return self._client.get_run(self._run_id)
