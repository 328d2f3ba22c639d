"""A requeued job is one run, whatever ends its attempts; a real cluster."""

import re
from functools import partial
from pathlib import Path

import mlflow
import pytest

from tests.support import restarting_project, slurm_jobs
from tests.support.slurm_jobs import ENDED, Submissions
from tests.support.waiting import wait_until

LIMIT, PERSON, NODE = "its time limit", "scontrol requeue", "node down"
CANCELLED, NO_GAIN, ATTEMPTS = "scancel while it runs", "no progress", "limit on starts"
ROOM, PLAIN = "preemption after a grace period", "no requeue"
# What happens, the run's status, its words, and the step that each of its attempts began at.
OUTCOMES = [
    (LIMIT, "FINISHED", r"\A\Z", ["0", "1"]),
    (PERSON, "FINISHED", r"\A\Z", ["0", "0"]),
    (NODE, "FINISHED", r"\A\Z", ["0", "0"]),
    (ROOM, "FINISHED", r"\A\Z", ["0", "0"]),
    (CANCELLED, "KILLED", "cancelled by root", ["0", "1"]),
    (NO_GAIN, "FAILED", r"step 0\b.*`pyclassify slurm resume .*--time TIME", ["0", "0"]),
    (
        ATTEMPTS,
        "FAILED",
        r'2 times.*"requeue_attempts" is 2\b.*`pyclassify slurm',
        ["0", "1"],
    ),
    (PLAIN, "KILLED", "stop.*`pyclassify slurm resume", ["0"]),
]


class Restarting(Submissions):
    """Jobs of the project that resumes from its last step."""

    def begin(self, name, gain=1, **config):
        gate = self.file(name)
        self.submit(name, "main", {"gate": gate, "gain": gain}, requeue=True, **config)

    def wait_until_begun(self, *names, starts=1):
        for name in names:
            begun = partial(self.has_begun, name, starts)
            wait_until(begun, f"{name} has begun {starts} times")

    def has_begun(self, name, starts):
        return len(self.steps(name)) == starts

    def steps(self, name):
        """The step that each of its attempts began at."""
        logs = Path(mlflow.get_run(self.runs[name].run_id).data.tags["slurm_folder"]).glob("*.out")
        text = "".join(log.read_text() for log in logs)
        return re.findall(r"begins at (\d+)", text)

    def warn(self, *names):
        """As SLURM does before the time limit."""
        for name in names:
            self.cluster.run("scancel", "--signal=USR1", "--batch", self.job(name))

    def limit(self, name, minutes):
        self.cluster.run("scontrol", "update", f"jobid={self.job(name)}", f"timelimit={minutes}")

    def start_again(self, *names):
        """Wait until the jobs are requeued, and have them start as soon as they can.

        A start within the same second as the end would confuse the node.
        """
        for name in names:
            wait_until(partial(self.is_requeued, name), f"{name} is requeued")
            if self.cluster.state(self.job(name)) == "PENDING":
                self.cluster.run("scontrol", "update", f"jobid={self.job(name)}", "starttime=now+2")

    def is_requeued(self, name):
        """Whether the job is pending after a requeue, or has already started on a slow host."""
        state = self.cluster.state(self.job(name))
        return state in ("PENDING", *ENDED) or len(self.steps(name)) > 1


@pytest.fixture(scope="module")
def jobs(cluster, empty_store, tmp_path_factory):
    """All at once as far as they can be, for their jobs wait for the same clocks."""
    folder = tmp_path_factory.mktemp("requeue")
    with pytest.MonkeyPatch.context() as patch:
        slurm_jobs.enter_submission_folder(patch, cluster, empty_store, folder)
        jobs = Restarting(cluster, restarting_project.write(folder / "project"))
        try:
            run(jobs, cluster)
            yield jobs
        finally:
            cluster.run("scancel", "--user=root")
    mlflow.set_tracking_uri(None)


def run(jobs, cluster):
    jobs.begin(LIMIT, time=60, requeue_seconds=3300)
    jobs.begin(ROOM, partition="low", gpus=4)
    jobs.begin(NODE, nodelist="n2")
    jobs.begin(PERSON)
    jobs.begin(CANCELLED)
    jobs.begin(NO_GAIN, gain=0)
    jobs.begin(ATTEMPTS, requeue_attempts=2)
    jobs.submit(PLAIN, "main", {"gate": jobs.file(PLAIN), "gain": 1})

    jobs.wait_until_begun(LIMIT, ROOM, NODE)
    jobs.limit(
        LIMIT, minutes=54
    )  # SLURM checks the limit every 30 seconds, and then signals at once
    cluster.submit("true", "--nodelist=n1", "--gpus-per-node=4", "--mem=100M")
    with cluster.crashed("n2"):
        jobs.wait_until_begun(PERSON, CANCELLED, NO_GAIN, ATTEMPTS, PLAIN)
        jobs.warn(CANCELLED, NO_GAIN, ATTEMPTS)
        cluster.run("scancel", "--signal=USR1", jobs.job(PLAIN))
        cluster.run("scontrol", "requeue", jobs.job(PERSON))
        jobs.release(NODE, PERSON)
        jobs.start_again(PERSON, CANCELLED, NO_GAIN, ATTEMPTS)
    cluster.wait_for(jobs.job(LIMIT), "PENDING")
    jobs.limit(LIMIT, minutes=60)  # before it starts, or SLURM may warn it once more
    jobs.start_again(NODE, LIMIT, ROOM)
    jobs.release(LIMIT, ROOM)
    jobs.wait_until_begun(CANCELLED, NO_GAIN, ATTEMPTS, starts=2)
    cluster.run("scancel", jobs.job(CANCELLED))
    jobs.warn(NO_GAIN, ATTEMPTS)
    jobs.wait_until_ended(*jobs.runs)


@pytest.mark.parametrize(("what", "status", "words", "steps"), OUTCOMES)
def test_run_is_one_whatever_ends_its_attempts(what, status, words, steps, jobs):
    outcome = jobs.outcome(what)

    assert (outcome.at_once, outcome.status) == (status, status), outcome.words
    assert re.search(words, outcome.words)
    assert jobs.steps(what) == steps


@pytest.mark.parametrize("what", [LIMIT, NODE, ROOM, PLAIN])
def test_tags_have_the_jobs_and_the_number_of_restarts(what, jobs):
    tags = mlflow.get_run(jobs.runs[what].run_id).data.tags

    assert tags["slurm_job_ids"] == tags["slurm_job_id"] == jobs.job(what)
    assert int(tags["slurm_restarts"]) == len(jobs.steps(what)) - 1


@pytest.mark.parametrize(("what", "state"), [(PLAIN, "COMPLETED"), (NO_GAIN, "FAILED")])
def test_interrupted_job_is_completed_unless_its_run_failed(what, state, jobs):
    assert jobs.cluster.accounting(jobs.job(what), "state", "exitcode") == (
        f"{state}|{0 if state == 'COMPLETED' else 75}:0"
    )
