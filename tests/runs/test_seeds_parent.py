"""The parent run of seeds, with runs under it that end in all ways, in this process."""

import math

import pytest

from pyclassify.runs.seeds import ParentRun, find_logger_settings, list_child_runs
from pyclassify.tracking import run
from tests.support.stores import experiment_id


@pytest.fixture
def client(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return store


def start(client, monkeypatch, params=(), **made):
    """Be the process of a run that `mlflow run` made; the parent and its id."""
    run_id = client.create_run(experiment_id(client), **made).info.run_id
    for name, value in dict(params).items():
        client.log_param(run_id, name, value)
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    run.adopt_run()
    return ParentRun(range(3), {}), run_id


def end_child(client, parent, place, status="FINISHED", code=0, name=None, **metrics):
    child = parent.start_seed(place)["MLFLOW_RUN_ID"]
    for key, value in metrics.items():
        client.log_metric(child, key, value)
    if name:
        client.update_run(child, name=name)
    if status:
        client.set_terminated(child, status)
    parent.end_seed(code)
    return client.get_run(child).info


def test_mean_is_logged_after_each_seed_at_step_0(client, monkeypatch):
    parent, run_id = start(client, monkeypatch)
    for place, accuracy in enumerate((0.5, 0.25, 0.75)):
        end_child(client, parent, place, test_accuracy=accuracy)

    points = client.get_metric_history(run_id, "test_accuracy_mean")
    assert {point.value for point in points} == {0.5, 0.375}  # the third leaves it at 0.5
    assert {point.step for point in points} == {0}
    assert client.get_run(run_id).data.metrics["test_accuracy_mean"] == 0.5


def test_metric_that_is_not_finite_has_a_mean_alone(client, monkeypatch):
    parent, run_id = start(client, monkeypatch)
    for place, loss in enumerate((1.0, 2.0, float("nan"))):
        end_child(client, parent, place, test_loss=loss)

    metrics = client.get_run(run_id).data.metrics
    for name in ("test_loss_mean", "test_loss_std", "test_loss_low", "test_loss_high"):
        assert math.isnan(metrics[name])


def test_seeds_that_were_not_tested_are_told_by_validation(client, monkeypatch):
    parent, run_id = start(client, monkeypatch)
    end_child(client, parent, 0, best_val_accuracy=0.5, val_loss=1.0, train_loss=1.0)

    metrics = client.get_run(run_id).data.metrics
    assert metrics.keys() == {"best_val_accuracy_mean", "val_loss_mean", "seeds_finished"}
    assert "best_val_accuracy 0.5000 (1 seed)" in parent.format_report()


@pytest.mark.parametrize(("code", "status"), [(0, "FINISHED"), (1, "FAILED"), (-9, "KILLED")])
def test_run_of_a_process_that_could_not_say_so_is_ended(code, status, client, monkeypatch):
    parent, _ = start(client, monkeypatch)

    assert end_child(client, parent, 0, status=None, code=code).status == status


def test_failure_before_the_first_loss_failed_at_start(client, monkeypatch):
    parent, _ = start(client, monkeypatch)
    end_child(client, parent, 0, "FAILED", 1, parameters=10)
    assert parent.failed_at_start()

    end_child(client, parent, 1, "FAILED", 1, train_loss=2.0)
    assert not parent.failed_at_start()


def test_stopped_seed_is_no_failure(client, monkeypatch):
    parent, _ = start(client, monkeypatch)
    end_child(client, parent, 0, "KILLED", 1)

    assert not parent.failed_at_start()


def test_parent_that_goes_on_leaves_finished_seeds_and_goes_on_with_the_others(client, monkeypatch):
    parent, run_id = start(client, monkeypatch)
    end_child(client, parent, 0, test_accuracy=0.5)
    stopped = end_child(client, parent, 1, "KILLED", 1).run_id
    run.end_run("KILLED")
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    run.adopt_run()

    parent = ParentRun(range(3), {})

    assert parent.list_unfinished() == [1, 2]
    assert parent.start_seed(1)["MLFLOW_RUN_ID"] == stopped
    client.set_terminated(stopped, "FINISHED")
    parent.end_seed(0)
    end_child(client, parent, 2, test_accuracy=0.25)
    found = client.get_run(run_id)
    assert len(list_child_runs(client, found)) == found.data.metrics["seeds_finished"] == 3
    assert found.data.metrics["test_accuracy_mean"] == 0.375
    assert "KILLED" not in found.data.tags["mlflow.note.content"]


def test_what_a_person_wrote_stays(client, monkeypatch):
    tags = {"mlflow.note.content": "my idea"}
    parent, run_id = start(client, monkeypatch, {"seeds": "03"}, run_name="mine", tags=tags)
    end_child(client, parent, 0, name="AlexNet-CIFAR10-seed0", test_accuracy=0.5)

    found = client.get_run(run_id)
    assert found.info.run_name == "mine"
    assert found.data.tags["mlflow.note.content"] == "my idea"
    assert found.data.params["seeds"] == "03"


def test_parent_is_named_after_its_first_child(client, monkeypatch):
    parent, run_id = start(client, monkeypatch)
    end_child(client, parent, 0, name="AlexNet-CIFAR10-seed0")
    run.end_run("FINISHED")

    assert client.get_run(run_id).info.run_name == "AlexNet-CIFAR10-3seeds"


def test_runs_are_of_one_experiment_and_one_person(client, monkeypatch):
    tags = {"mlflow.user": "me", "mlflow.source.name": "project", "other": "x"}
    parent, run_id = start(client, monkeypatch, tags=tags)
    end_child(client, parent, 0)

    (child,) = list_child_runs(client, client.get_run(run_id))
    assert child.info.experiment_id == client.get_run(run_id).info.experiment_id
    assert {**tags, "mlflow.parentRunId": run_id}.items() - child.data.tags.items() == {
        ("other", "x")
    }


def test_parent_that_can_not_be_written_to_costs_a_warning(client, monkeypatch):
    parent, run_id = start(client, monkeypatch)
    client.delete_run(run_id)

    with pytest.warns(UserWarning, match=f"parent run {run_id}"):
        assert end_child(client, parent, 0).status == "FINISHED"
    client.restore_run(run_id)


def test_settings_of_the_logger_are_found_alone_and_among_others():
    ours = {"class_path": "pyclassify.tracking.logger.RunLogger", "init_args": {"run_name": "a"}}
    others = {"class_path": "TensorBoardLogger", "init_args": {"name": "b"}}

    assert find_logger_settings({"trainer.logger": [others, ours]}) == {"run_name": "a"}
    assert find_logger_settings(
        {"trainer.logger": "RunLogger", "trainer.logger.run_name": "c"}
    ) == {"run_name": "c"}
    assert find_logger_settings({}) == {}
