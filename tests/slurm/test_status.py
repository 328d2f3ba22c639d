"""A run's status by what SLURM says of its job while the script ends."""

import pytest

from pyclassify.slurm.states import STATES, Job
from pyclassify.slurm.status import (
    STOPPED,
    Outcome,
    apply_outcome,
    derive_outcome,
    derive_script_outcome,
)
from tests.support.stores import experiment_id

LIMIT, MEMORY, FELL = (STATES[name].reason for name in ("TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL"))


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
        (143, "COMPLETING None\nNODE_FAIL", "FAILED", FELL),
        (143, "COMPLETING BeginTime\nREQUEUED", "SCHEDULED", ""),
        (143, "PENDING BeginTime\nPENDING", "SCHEDULED", ""),
        (143, "REQUEUED\nPREEMPTED", "SCHEDULED", ""),  # it made room for another
        (75, "RUNNING None\nRUNNING", "KILLED", STOPPED.reason),
        (75, "COMPLETING TimeLimit\nTIMEOUT\nRUNNING", "FAILED", LIMIT),
        (75, "RUNNING None\nRUNNING\nRUNNING\nOUT_OF_MEMORY", "FAILED", MEMORY),
    ],
)
def test_end_of_the_script_is_what_slurm_says(code, said, status, words):
    outcome = derive_script_outcome(code, said)
    assert (outcome.status, outcome.reason) == (status, words)


@pytest.mark.parametrize("by", ["by 4000000000", "by someone"])
def test_canceler_without_an_account_here_is_named_as_slurm_does(by):
    outcome = derive_outcome(Job("7", "CANCELLED", by))

    assert (outcome.status, outcome.reason) == ("KILLED", f"the job was cancelled {by}")


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
def test_status_of_the_training_stays_unless_its_job_failed(before, ending, after, store):
    run_id = store.create_run(experiment_id(store)).info.run_id
    if before != "RUNNING":
        store.set_terminated(run_id, before)

    assert apply_outcome(store, run_id, Outcome(ending, "why"), "7", []) == after
    assert store.get_run(run_id).info.status == after


def test_reason_is_told_once_after_what_the_description_says(store, tmp_path):
    run_id = store.create_run(experiment_id(store)).info.run_id
    store.set_tag(run_id, "mlflow.note.content", "Mine.")
    (tmp_path / "err").write_text("long\n" * 9999 + "see https://me:pass@host/\nthe last line\n")

    for _ in range(2):
        apply_outcome(store, run_id, Outcome("FAILED", "why"), "7", [tmp_path / "err"])

    note = store.get_run(run_id).data.tags["mlflow.note.content"]
    assert note.startswith("Mine.\n\nSLURM job 7: why.\n\nThe last lines of stderr:\n\n```\nlong\n")
    assert note.endswith("\nsee https://***@host/\nthe last line\n```")
    assert note.count("why") == 1
    assert len(note) < 5000
    assert [each.path for each in store.list_artifacts(run_id, "slurm")] == ["slurm/err"]
