"""The option `--seeds`, and the parent run with child runs that end in all ways."""

import math
import subprocess
import sys

import pytest

from pyclassify.runs.parent_run import ParentRun, list_child_runs
from pyclassify.runs.seeds import drop_options, list_seeds, read_seed_count
from pyclassify.tracking import run
from tests.support.phrases import mentions
from tests.support.processes import ROOT
from tests.support.stores import experiment_id
from tests.support.trainings import refusal


@pytest.mark.parametrize("asked", [["--seeds", "5"], ["--seeds=5"], ["--seeds=2", "--seeds", "5"]])
def test_read_seed_count_removes_the_option(asked):
    assert read_seed_count(["train", *asked, "--seed", "3"]) == (5, ["train", "--seed", "3"])
    assert read_seed_count([*asked, "train"]) == (5, ["train"])


@pytest.mark.parametrize("asked", [[], ["--seeds", "1"]])
def test_read_seed_count_without_seeds_is_one(asked):
    assert read_seed_count(["validate" if not asked else "fit", *asked])[0] == 1


@pytest.mark.parametrize("option", ["--help", "--print_config", "--model.help"])
def test_read_seed_count_with_help_is_one(option):
    assert read_seed_count(["train", "--seeds", "5", option]) == (1, ["train", option])


@pytest.mark.parametrize("value", ["0", "-1", "abc", "2.5", "5.0", "1e1", "00"])
def test_invalid_number_of_seeds_fails(value, cli):
    for line in (f"train --seeds {value}", f"fit --seeds={value}"):
        done = cli(line)
        assert done.code == 2
        assert mentions(done.err, "pyclassify: error: ", "seeds", f" {value}", "--seeds 5")
        assert done.err.count("\n") == 1
        assert done.runs == []


def test_read_seed_count_without_number_raises():
    with pytest.raises(ValueError, match=r"^invalid seeds: no value .*--seeds 5"):
        read_seed_count(["train", "--seeds", "--seed", "3"])


@pytest.mark.parametrize("command", ["validate", "test", "predict", "prepare"])
def test_seeds_of_a_command_without_training_exit_2(command, cli):
    done = cli(f"{command} --seeds 5")

    assert mentions(refusal(done, 2), "--seeds", "train", "fit", command)


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ([], 0),
        (["--seed", "7"], 7),
        (["--seed_everything=8"], 8),
        (["--seed", "7", "--seed_everything", "8"], 8),
        (["--config", "recipe.yaml"], 3),
        (["--seed=7", "--config", "recipe.yaml"], 7),
    ],
)
def test_list_seeds_starts_at_the_given_seed(words, first, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("seed_everything: 3")
    monkeypatch.chdir(tmp_path)

    assert [*list_seeds(["train", *words], 3)] == [first, first + 1, first + 2]


@pytest.mark.parametrize("seed", ["true", "false", "null", "-1", "1.5", str(2**32 - 2)])
def test_list_seeds_with_invalid_first_seed_raises(seed, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"seed_everything: {seed}")

    for options in (["--seed", seed], ["--config", str(file)]):
        with pytest.raises(
            ValueError, match=rf"^invalid seed: .*\b0 to {2**32 - 3}\b.* 3 .*--seed"
        ):
            list_seeds(["train", *options], 3)


def test_seeds_without_logger_fail(cli):
    done = cli("train --seeds 2 --trainer.logger false")

    assert mentions(refusal(done, 2), "trainer.logger is false", "2 seeds")
    assert done.runs == []


def test_drop_options_removes_their_values():
    argv = ["train", "--seed", "3", "--devices=2", "--seed_everything=4", "--seedling", "5"]

    rest = drop_options(argv, "--seed", "--seed_everything")
    assert rest == ["train", "--devices=2", "--seedling", "5"]


def test_help_of_train_names_seeds(cli):
    assert "--seeds N " in cli("train --help").out


def test_wrong_command_line_makes_no_run(cli):
    done = cli("trian --seeds 2")

    assert mentions(done.err, "'trian'", "'train'")
    assert done.runs == []


def test_import_of_runs_loads_no_torch():
    modules = ", ".join(
        f"pyclassify.runs.{name}" for name in ("compare", "parent_run", "rerun", "resume", "seeds")
    )
    code = f"import sys, pyclassify.cli.main, {modules}; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_read_seed_count_loads_neither_mlflow_nor_scipy():
    code = "import sys; from pyclassify.runs.seeds import read_seed_count; "
    code += "read_seed_count(['train', '--seeds', '5']); print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).split()

    assert "pyclassify.runs.seeds" in loaded
    assert not {"mlflow", "scipy", "torch"} & {*loaded}


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


def test_parent_logs_means_after_each_seed_at_step_0(client, monkeypatch):
    parent, run_id = start(client, monkeypatch)
    for place, accuracy in enumerate((0.5, 0.25, 0.75)):
        end_child(client, parent, place, test_accuracy=accuracy)

    points = client.get_metric_history(run_id, "test_accuracy_mean")
    assert {point.value for point in points} == {0.5, 0.375}  # the third leaves it at 0.5
    assert {point.step for point in points} == {0}
    assert client.get_run(run_id).data.metrics["test_accuracy_mean"] == 0.5


def test_parent_with_a_metric_that_is_not_finite_logs_its_mean_alone(client, monkeypatch):
    parent, run_id = start(client, monkeypatch)
    for place, loss in enumerate((1.0, 2.0, float("nan"))):
        end_child(client, parent, place, test_loss=loss)

    metrics = client.get_run(run_id).data.metrics
    for name in ("test_loss_mean", "test_loss_std", "test_loss_low", "test_loss_high"):
        assert math.isnan(metrics[name])


def test_parent_without_test_logs_validation(client, monkeypatch):
    parent, run_id = start(client, monkeypatch)
    end_child(client, parent, 0, best_val_accuracy=0.5, val_loss=1.0, train_loss=1.0)

    metrics = client.get_run(run_id).data.metrics
    assert metrics.keys() == {"best_val_accuracy_mean", "val_loss_mean", "seeds_finished"}
    assert "best_val_accuracy 0.5000 (1 seed)" in parent.format_report()


@pytest.mark.parametrize(("code", "status"), [(1, "FAILED"), (-9, "FAILED"), (-15, "KILLED")])
def test_end_seed_ends_the_run_of_a_lost_process(code, status, client, monkeypatch):
    parent, _ = start(client, monkeypatch)

    assert end_child(client, parent, 0, status=None, code=code).status == status


def test_failed_at_start_is_before_the_first_loss(client, monkeypatch):
    parent, _ = start(client, monkeypatch)
    end_child(client, parent, 0, "FAILED", 1, parameters=10)
    assert parent.failed_at_start()

    end_child(client, parent, 1, "FAILED", 1, train_loss=2.0)
    assert not parent.failed_at_start()


def test_failed_at_start_of_a_killed_seed_is_false(client, monkeypatch):
    parent, _ = start(client, monkeypatch)
    end_child(client, parent, 0, "KILLED", 1)

    assert not parent.failed_at_start()


def test_resumed_parent_skips_finished_seeds(client, monkeypatch):
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


def test_parent_keeps_name_and_description_of_the_user(client, monkeypatch):
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


def test_start_seed_inherits_experiment_and_user(client, monkeypatch):
    tags = {"mlflow.user": "me", "mlflow.source.name": "project", "other": "x"}
    parent, run_id = start(client, monkeypatch, tags=tags)
    end_child(client, parent, 0)

    (child,) = list_child_runs(client, client.get_run(run_id))
    assert child.info.experiment_id == client.get_run(run_id).info.experiment_id
    assert {**tags, "mlflow.parentRunId": run_id}.items() - child.data.tags.items() == {
        ("other", "x")
    }


def test_deleted_parent_warns(client, monkeypatch):
    parent, run_id = start(client, monkeypatch)
    client.delete_run(run_id)

    with pytest.warns(UserWarning, match=f"parent run {run_id}"):
        assert end_child(client, parent, 0).status == "FINISHED"
    client.restore_run(run_id)
