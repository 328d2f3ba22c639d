"""The ablation and the learning curves work, on few images and on runs of known times."""

import json

import mlflow
import pytest
from folders import grow
from mlflow.entities import Metric

from benchmarks import ablation, accuracy, curves


@pytest.mark.parametrize("recipe", ablation.WITHOUT)
def test_each_line_leaves_one_thing_of_the_recipe_out(recipe, cli):
    config = f"--config={accuracy.ROOT / 'configs' / recipe}"
    written = [
        cli("fit --print_config", config, *options).out
        for options in ablation.WITHOUT[recipe].values()
    ]

    assert len(set(written)) == len(written)


def test_recipe_is_trained_without_one_thing(tmp_path):
    grow(tmp_path / "photos", "train/cat", "train/dog", count=8)
    (tmp_path / "photos/test").symlink_to(tmp_path / "photos/train")
    few = ["--images=8", "--epochs=1", "--only", "no shifts", f"--json={tmp_path / 'all.json'}"]
    options = ["--precision=32-true", "--batch_size=4"]

    ablation.main(["alexnet-bn-cifar10.yaml", str(tmp_path / "photos"), *few, "--", *options])

    found = json.loads((tmp_path / "all.json").read_text())["found"]
    assert [*found] == ["no shifts"]
    assert len(found["no shifts"]) == 1
    assert 0 <= found["no shifts"][0] <= 1


@pytest.fixture
def learnt(tmp_path, monkeypatch):
    """A run of 3 epochs of a minute each: 0.6, 0.8 and 0.79."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    client = mlflow.MlflowClient()
    run = client.create_run("0", start_time=1_000_000, run_name="quick").info.run_id
    values = [
        Metric("val_accuracy", value, 1_000_000 + 60_000 * epoch, 10 * epoch)
        for epoch, value in enumerate((0.6, 0.8, 0.79), 1)
    ]
    client.log_batch(run, metrics=values)
    return run


def test_time_to_accuracy_is_that_of_the_first_epoch_that_reaches_it(learnt, tmp_path, capsys):
    picture = tmp_path / "curves.png"

    curves.main([learnt, "--accuracy", "0.75", "0.9", f"--picture={picture}"])

    assert capsys.readouterr().out.splitlines()[-1] == (
        "| quick | 3 | 0.8000 | 120 s (epoch 2) | not reached |"
    )
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_run_without_validation_is_refused(learnt):
    other = mlflow.MlflowClient().create_run("0").info.run_id

    with pytest.raises(SystemExit, match=f"run {other} has no val_accuracy; give runs of a"):
        curves.main([other])


def test_each_run_needs_a_name_where_names_are_given(learnt, capsys):
    with pytest.raises(SystemExit):
        curves.main([learnt, "--names", "a", "b"])
    assert "--names has 2 for 1 runs; give one for each" in capsys.readouterr().err
