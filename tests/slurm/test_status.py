"""The status of a run by what SLURM reports of its job, and how it is written to the run."""

import pytest

from pyclassify.slurm.states import STATES, Job
from pyclassify.slurm.status import (
    INTERRUPTED,
    Outcome,
    apply_outcome,
    derive_outcome,
    derive_script_outcome,
)
from tests.support.slurm_jobs import get_description
from tests.support.stores import experiment_id

LIMIT, MEMORY, FELL, MADE_ROOM, LATE = (
    STATES[name].reason
    for name in ("TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED", "DEADLINE")
)


@pytest.fixture
def run_id(store):
    return store.create_run(experiment_id(store)).info.run_id


@pytest.mark.parametrize(
    ("code", "report", "status", "reason"),
    [
        (0, "", "FINISHED", ""),
        (3, "RUNNING None\nRUNNING\nRUNNING\nFAILED", "FAILED", "the job ended with exit code 3"),
        (3, "RUNNING None\nPENDING", "FAILED", "the job ended with exit code 3"),  # it lags behind
        (3, "", "FAILED", "the job ended with exit code 3"),  # the controller is down
        (137, "RUNNING None\nRUNNING\nRUNNING\nOUT_OF_MEMORY", "FAILED", MEMORY),
        (143, "RUNNING None\nRUNNING", "FAILED", "the job was ended by signal 15"),
        (143, "COMPLETING TimeLimit\nTIMEOUT\nRUNNING\nCANCELLED", "FAILED", LIMIT),
        (143, "COMPLETING TimeLimit\n", "FAILED", LIMIT),  # without accounting
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
        (143, "REQUEUED\nPREEMPTED", "SCHEDULED", ""),  # it was preempted
        (75, "RUNNING None\nRUNNING", "KILLED", INTERRUPTED.reason),
        (75, "COMPLETING TimeLimit\nTIMEOUT\nRUNNING", "FAILED", LIMIT),
        (75, "RUNNING None\nRUNNING\nRUNNING\nOUT_OF_MEMORY", "FAILED", MEMORY),
    ],
)
def test_derive_script_outcome_trusts_slurm_before_the_exit_code(code, report, status, reason):
    outcome = derive_script_outcome(code, report)
    assert (outcome.status, outcome.reason) == (status, reason)


@pytest.mark.parametrize("by", ["by 4000000000", "by someone"])
def test_derive_outcome_of_an_unknown_user_keeps_slurms_id(by):
    outcome = derive_outcome(Job("7", "CANCELLED", by))

    assert (outcome.status, outcome.reason) == ("KILLED", f"the job was cancelled {by}")


@pytest.mark.parametrize(
    ("before", "outcome", "after"),
    [
        ("RUNNING", "FINISHED", "FINISHED"),
        ("RUNNING", "KILLED", "KILLED"),
        ("FAILED", "FINISHED", "FAILED"),
        ("KILLED", "FAILED", "KILLED"),
        ("FINISHED", "FINISHED", "FINISHED"),
        ("FINISHED", "FAILED", "FAILED"),  # which MLflow sets whenever Python exits
    ],
)
def test_apply_outcome_keeps_a_status_unless_the_job_failed(before, outcome, after, store, run_id):
    if before != "RUNNING":
        store.set_terminated(run_id, before)

    assert apply_outcome(store, run_id, Outcome(outcome, "why"), "7", []) == after
    assert store.get_run(run_id).info.status == after


def test_apply_outcome_of_a_lost_job_leaves_no_model_pending(store, run_id):
    experiment = experiment_id(store)
    models = [store.create_logged_model(experiment, "m", run_id).model_id for _ in range(2)]
    other = store.create_logged_model(experiment, "m", "0" * 32).model_id
    store.finalize_logged_model(models[0], "READY")

    apply_outcome(store, run_id, Outcome("FAILED", "why"), "7", [])
    statuses = [store.get_logged_model(model).status for model in (*models, other)]
    assert statuses == ["READY", "FAILED", "PENDING"]


def test_apply_outcome_appends_the_reason_once_to_the_description(store, run_id, tmp_path):
    store.set_tag(run_id, "mlflow.note.content", "Mine.")
    (tmp_path / "err").write_text("long\n" * 9999 + "see https://me:pass@host/\nthe last line\n")

    for _ in range(2):
        apply_outcome(store, run_id, Outcome("FAILED", "why"), "7", [tmp_path / "err"])

    description = store.get_run(run_id).data.tags["mlflow.note.content"]
    assert description.startswith(
        "Mine.\n\nSLURM job 7: why.\n\nThe last lines of stderr:\n\n```\nlong\n"
    )
    assert description.endswith("\nsee https://***@host/\nthe last line\n```")
    assert description.count("why") == 1
    assert len(description) < 5000
    assert [each.path for each in store.list_artifacts(run_id, "slurm")] == ["slurm/err"]


@pytest.mark.parametrize(
    ("report", "status", "reason"),
    [
        ("COMPLETING NodeDown\nRUNNING", "FAILED", FELL),
        ("COMPLETING DeadLine\n", "FAILED", LATE),
        ("COMPLETING Preempted\n", "KILLED", MADE_ROOM),
        ("PREEMPTED None\n", "KILLED", MADE_ROOM),
        ("NODE_FAIL NodeDown\n", "FAILED", FELL),
        ("FAILED NonZeroExitCode\n", "FAILED", "the job was ended by signal 15"),
    ],
)
def test_derive_script_outcome_uses_squeues_reason_while_sacct_is_late(report, status, reason):
    assert derive_script_outcome(143, report) == Outcome(status, reason, "FAILED" not in report)


@pytest.mark.parametrize(
    ("report", "state", "status", "reason"),
    [
        ("COMPLETING None\nRUNNING", "NODE_FAIL", "FAILED", FELL),
        ("COMPLETING None\n", "PREEMPTED", "KILLED", MADE_ROOM),
        ("RUNNING None\nRUNNING", "DEADLINE", "FAILED", LATE),
        ("RUNNING None\nRUNNING", "FAILED", "FAILED", "the job was ended by signal 15"),
    ],
)
def test_apply_outcome_overrules_a_scripts_guess(report, state, status, reason, store, run_id):
    outcome = derive_outcome(Job("7", state))
    apply_outcome(store, run_id, derive_script_outcome(143, report), "7", [])

    for _ in range(2):
        assert apply_outcome(store, run_id, outcome, "7", []) == status

    run = store.get_run(run_id)
    assert (run.info.status, get_description(run)) == (status, f"SLURM job 7: {reason}.")


def test_apply_outcome_leaves_a_certain_outcome(store, run_id):
    apply_outcome(store, run_id, derive_script_outcome(143, "COMPLETING TimeLimit\n"), "7", [])

    outcome = derive_outcome(Job("7", "CANCELLED"))
    assert apply_outcome(store, run_id, outcome, "7", []) == "FAILED"


def test_apply_outcome_finished_removes_an_earlier_reason(store, run_id):
    apply_outcome(store, run_id, Outcome("KILLED", "why"), "7;west", [])
    store.set_terminated(run_id, "FINISHED")

    apply_outcome(store, run_id, Outcome("FINISHED"), "7", [])

    assert get_description(store.get_run(run_id)) == ""
