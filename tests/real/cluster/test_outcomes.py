"""The status and description of a run after each way that its job can end; a real cluster."""

import re
import threading

import mlflow
import pytest
from mlflow.exceptions import ExecutionException

from pyclassify.slurm import client
from tests.support import cluster, slurm_jobs
from tests.support.slurm_jobs import Submissions
from tests.support.waiting import scale, wait_until

WAITING, FAILING = "controller down while waiting", "exit 3 with the controller down"
NONE = r"\A\Z"
TOO_MUCH = 'memory.*"mem"'
if not cluster.LIMITS_MEMORY:  # SLURM reports it only in the job's stderr
    TOO_MUCH = r"signal 9\b.*exceeded memory limit"
# The event, the status that the job sets, that after `pyclassify slurm status`, the description.
OUTCOMES = [
    ("success", "FINISHED", "FINISHED", NONE),
    ("exit 1", "FAILED", "FAILED", r"exit code 1\b.*no such file"),
    ("out of memory", "FAILED", "FAILED", TOO_MUCH),
    ("time limit", "FAILED", "FAILED", 'time limit.*"time"'),
    ("scancel by someone else", "KILLED", "KILLED", "cancelled"),
    ("node down", "RUNNING", "FAILED", "node.*`pyclassify slurm resume`"),
    ("node down, requeued", "FINISHED", "FINISHED", NONE),
    ("cancelled while pending", "SCHEDULED", "KILLED", "cancelled by root"),
    ("refused by sbatch", "FAILED", "FAILED", "specified: nowhere"),
    ("controller down at submission", "FAILED", "FAILED", "Unable to contact"),
    (WAITING, "FINISHED", "FINISHED", NONE),
    (FAILING, "FAILED", "FAILED", "exit code 3"),
]


@pytest.fixture(scope="module")
def outcomes(cluster, empty_store, tmp_path_factory):
    """All at once as far as they can be, for their jobs wait for the same clocks."""
    folder = tmp_path_factory.mktemp("outcomes")
    with pytest.MonkeyPatch.context() as patch:
        slurm_jobs.enter_submission_folder(patch, cluster, empty_store, folder)
        patch.setattr(client, "RETRY_DELAYS_SECONDS", (0.5,))  # see tests/slurm/test_client.py
        submissions = Submissions(cluster, slurm_jobs.write_foreign_project(folder / "project"))
        yield (
            submissions,
            {
                **at_once(cluster, submissions),
                "refused by sbatch": refused(submissions, partition="nowhere"),
                **with_the_controller_down(cluster, submissions),
            },
        )
    mlflow.set_tracking_uri(None)


def at_once(cluster, submissions):
    # Jobs that wait for 30 seconds come first: for the check of time limits, and for KillWait.
    submissions.submit("time limit", "obey", {"file": submissions.file("time limit")})
    submissions.start("scancel by someone else")
    submissions.wait_until_started("time limit", "scancel by someone else")
    cluster.run("scontrol", "update", f"jobid={submissions.job('time limit')}", "endtime=now")
    cluster.run("scancel", submissions.job("scancel by someone else"))
    submissions.start("node down", nodelist="n2")
    submissions.start("node down, requeued", nodelist="n2", requeue=True)
    submissions.start(WAITING)
    submissions.start(FAILING, code=3)
    submissions.submit("success")
    submissions.submit("exit 1", "fail")
    submissions.submit("out of memory", "eat")
    submissions.submit("cancelled while pending", sbatch_args=["--begin=now+1hour"])
    cluster.run("scancel", submissions.job("cancelled while pending"))

    submissions.wait_until_started("node down", "node down, requeued")
    with cluster.crashed("n2"):
        submissions.wait_until_ended("node down")
        submissions.release("node down, requeued")
    ended = submissions.runs.keys() - {WAITING, FAILING}
    submissions.wait_until_ended(*ended)
    return {name: submissions.outcome(name) for name in ended}


def refused(submissions, **config):
    with pytest.raises(ExecutionException) as error:
        submissions.submit("refused", **config)
    run = mlflow.MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("tested").experiment_id], max_results=1
    )[0]
    outcome = submissions.described(run.info.run_id)
    assert outcome.words == f"SLURM submission: {error.value}"
    return outcome


def with_the_controller_down(cluster, submissions):
    submissions.wait_until_started(WAITING, FAILING)
    waiter = threading.Thread(target=submissions.runs[WAITING].wait)
    waiter.start()
    with cluster.controller_down():
        submissions.release(FAILING)
        at_submission = refused(submissions)
        wait_until(lambda: submissions.status(FAILING) == "FAILED", FAILING)
    submissions.release(WAITING)
    waiter.join(scale(60))
    assert not waiter.is_alive()
    ended = {name: submissions.outcome(name) for name in (WAITING, FAILING)}
    with cluster.crashed("n1"):  # otherwise the end of the job retries the controller for a minute
        pass
    return {"controller down at submission": at_submission, **ended}


@pytest.mark.parametrize(("what", "at_once", "status", "words"), OUTCOMES)
def test_run_has_the_status_and_reason_of_its_job(what, at_once, status, words, outcomes):
    outcome = outcomes[1][what]

    assert (outcome.at_once, outcome.status) == (at_once, status), outcome.words
    assert re.search(words, outcome.words, re.DOTALL)


def test_accounting_has_a_job_that_came_to_its_time_limit_as_such(outcomes, cluster):
    assert cluster.accounting(outcomes[0].job("time limit"), "state") == "TIMEOUT"


@pytest.mark.slow  # 30 seconds until the controller checks, and 30 more until it kills
def test_task_that_ignores_its_stop_at_the_time_limit_is_killed(slurm, tmp_path):
    submissions = Submissions(slurm, slurm_jobs.write_foreign_project(tmp_path / "project"))
    submissions.start("deaf")
    submissions.wait_until_started("deaf")
    slurm.run("scontrol", "update", f"jobid={submissions.job('deaf')}", "endtime=now")
    submissions.wait_until_ended("deaf")

    outcome = submissions.outcome("deaf")

    assert (outcome.at_once, outcome.status) == ("FAILED", "FAILED")
    assert re.search('time limit.*"time"', outcome.words)
    assert slurm.accounting(submissions.job("deaf"), "state") == "TIMEOUT"
