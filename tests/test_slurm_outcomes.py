"""What becomes of a run, whatever becomes of its job: each line through a real cluster."""

import re
import shutil
import threading

import foreign_project
import mlflow
import pytest
from mlflow.exceptions import ExecutionException
from submissions import Submissions

# What happens, the run's status by itself, that after `pyclassify slurm status`, and its words.
OUTCOMES = [
    ("success", "FINISHED", "FINISHED", r""),
    ("exit 1", "FAILED", "FAILED", r"exit code 1\.\n.*no such file"),
    ("out of memory", "FAILED", "FAILED", 'took more memory than it has; give more by "mem"'),
    ("time limit", "FAILED", "FAILED", 'came to its time limit; give more by "time"'),
    ("scancel by someone else", "KILLED", "KILLED", "the job was cancelled"),
    ("node down", "RUNNING", "FAILED", "a node of the job failed; submit it again"),
    ("node down, requeued", "FINISHED", "FINISHED", ""),
    ("cancelled while pending", "SCHEDULED", "KILLED", "the job was cancelled by root"),
    ("refused by sbatch", "FAILED", "FAILED", "invalid partition specified: nowhere"),
    ("controller down at submission", "FAILED", "FAILED", "Unable to contact slurm controller"),
    ("controller down while waiting", "FINISHED", "FINISHED", ""),
    ("exit 3 with the controller down", "FAILED", "FAILED", "exit code 3"),
]


@pytest.fixture(scope="module")
def outcomes(cluster, empty_store, tmp_path_factory):
    """All at once as far as they can be, for their jobs wait for the same clocks."""
    folder = tmp_path_factory.mktemp("outcomes")
    shutil.copy(empty_store, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        submissions = Submissions(cluster, foreign_project.write(folder / "project"))
        yield {
            **jobs_that_run_at_once(cluster, submissions, folder),
            "refused by sbatch": refused(submissions, partition="nowhere"),
            **controller_down(cluster, submissions, folder),
        }


def jobs_that_run_at_once(cluster, submissions, folder):
    submissions.submit("time limit", "sleep")
    submissions.submit("scancel by someone else", "sleep")
    submissions.submit("node down", "sleep", nodelist="n2")
    again = {"path": f"{folder}/again"}
    submissions.submit("node down, requeued", "until", again, nodelist="n2", requeue=True)
    submissions.submit("success")
    submissions.submit("exit 1", "fail")
    submissions.submit("out of memory", "eat")
    submissions.submit("cancelled while pending", sbatch_args=["--begin=now+1hour"])
    cluster.run("scancel", submissions.job("cancelled while pending"))

    submissions.wait_until_running("time limit", "scancel by someone else")
    limit = submissions.job("time limit")
    cluster.run("scontrol", "update", f"jobid={limit}", "endtime=now")
    cluster.run("scancel", submissions.job("scancel by someone else"))
    submissions.wait_until_running("node down", "node down, requeued")
    with cluster.crashed("n2"):
        submissions.wait_until_ended("node down")
        (folder / "again").touch()
    submissions.wait_until_ended(*submissions.runs, seconds=200)
    return {name: submissions.outcome(name) for name in submissions.runs}


def refused(submissions, **config):
    with pytest.raises(ExecutionException) as refusal:
        submissions.submit("refused", **config)
    run = mlflow.MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("tested").experiment_id], max_results=1
    )[0]
    outcome = submissions.described(run.info.run_id)
    assert outcome.words == f"SLURM submission: {refusal.value}"
    return outcome


def controller_down(cluster, submissions, folder):
    goes_on, code_3 = "controller down while waiting", "exit 3 with the controller down"
    submissions.submit(goes_on, "until", {"path": f"{folder}/on"})
    submissions.submit(code_3, "until", {"path": f"{folder}/three", "code": 3})
    waiting_files = [folder / "on.waits", folder / "three.waits"]
    submissions.wait(lambda: all(each.exists() for each in waiting_files), "both wait", 60)
    waiting = threading.Thread(target=submissions.runs[goes_on].wait)
    waiting.start()
    with cluster.controller_down():
        (folder / "three").touch()
        at_submission = refused(submissions)
        submissions.wait(lambda: submissions.status(code_3) == "FAILED", code_3, 60)
    (folder / "on").touch()
    waiting.join(60)
    assert not waiting.is_alive()
    submissions.wait_until_ended(goes_on, code_3)
    return {
        "controller down at submission": at_submission,
        **{name: submissions.outcome(name) for name in (goes_on, code_3)},
    }


@pytest.mark.parametrize(("what", "at_once", "status", "words"), OUTCOMES)
def test_a_run_says_what_became_of_its_job(what, at_once, status, words, outcomes):
    outcome = outcomes[what]

    assert (outcome.at_once, outcome.status) == (at_once, status), outcome.words
    if not words:
        assert outcome.words == ""
    assert re.search(words, outcome.words, re.DOTALL)
