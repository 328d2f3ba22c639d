"""A run's status by what SLURM says of its job while the script ends."""

import shutil

import mlflow
import pytest

from pyclassify.slurm import reconcile
from pyclassify.slurm.reconcile import Ending

LIMIT = 'the job came to its time limit; give more by "time"'
BY_ROOT = "the job was cancelled by root"
MEMORY = 'the job took more memory than it has; give more by "mem"'


@pytest.mark.parametrize(
    ("code", "said", "status", "words"),
    [
        (0, "", "FINISHED", ""),
        (3, "RUNNING None\nRUNNING\nRUNNING\nFAILED", "FAILED", "the job ended with exit code 3"),
        (3, "RUNNING None\nPENDING", "FAILED", "the job ended with exit code 3"),  # it lags behind
        (3, "", "FAILED", "the job ended with exit code 3"),  # the controller is down
        (137, "RUNNING None\nRUNNING\nRUNNING\nOUT_OF_MEMORY", "FAILED", MEMORY),
        (143, "RUNNING None\nRUNNING", "FAILED", "the job was ended by signal 15"),
        (143, "COMPLETING TimeLimit\nTIMEOUT\nRUNNING\nCANCELLED", "FAILED", LIMIT),
        (143, "COMPLETING TimeLimit\n", "FAILED", LIMIT),  # there is no accounting
        (
            143,
            "COMPLETING None\nCANCELLED by 0\nRUNNING",
            "KILLED",
            "the job was cancelled by root",
        ),
        (143, "COMPLETING None\n", "KILLED", "the job was cancelled"),
        (
            143,
            "COMPLETING None\nNODE_FAIL",
            "FAILED",
            "a node of the job failed; `pyclassify slurm resume` goes on",
        ),
        (143, "COMPLETING BeginTime\nREQUEUED", "SCHEDULED", ""),
        (143, "PENDING BeginTime\nPENDING", "SCHEDULED", ""),
        (143, "REQUEUED\nPREEMPTED", "SCHEDULED", ""),  # it made room for another
    ],
)
def test_end_of_the_script_is_what_slurm_says(code, said, status, words):
    ending = reconcile.of_script(code, said)
    assert (ending.status, ending.words) == (status, words)


@pytest.fixture
def client(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path)
    return mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.mark.parametrize(
    ("before", "ending", "after"),
    [
        ("RUNNING", "FINISHED", "FINISHED"),
        ("RUNNING", "KILLED", "KILLED"),
        ("FAILED", "FINISHED", "FAILED"),
        ("KILLED", "FAILED", "KILLED"),
        ("FINISHED", "FINISHED", "FINISHED"),
        ("FINISHED", "FAILED", "FAILED"),  # which MLflow says whenever Python exits
    ],
)
def test_status_of_the_training_stays_unless_its_job_failed(before, ending, after, client):
    run_id = client.create_run(client.get_experiment_by_name("tested").experiment_id).info.run_id
    if before != "RUNNING":
        client.set_terminated(run_id, before)

    assert reconcile.settle(client, run_id, Ending(ending, "why"), "7", []) == after
    assert client.get_run(run_id).info.status == after


def test_reason_is_told_once_after_what_the_description_says(client, tmp_path):
    run_id = client.create_run(client.get_experiment_by_name("tested").experiment_id).info.run_id
    client.set_tag(run_id, "mlflow.note.content", "Mine.")
    (tmp_path / "err").write_text("long\n" * 9999 + "see https://me:pass@host/\nthe last line\n")

    for _ in range(2):
        reconcile.settle(client, run_id, Ending("FAILED", "why"), "7", [tmp_path / "err"])

    note = client.get_run(run_id).data.tags["mlflow.note.content"]
    assert note.startswith("Mine.\n\nSLURM job 7: why.\n\nThe last lines of stderr:\n\n```\nlong\n")
    assert note.endswith("\nsee https://***@host/\nthe last line\n```")
    assert note.count("why") == 1
    assert len(note) < 5000
    assert [each.path for each in client.list_artifacts(run_id, "slurm")] == ["slurm/err"]
