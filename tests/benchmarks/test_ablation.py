"""The ablation and the learning curves work, on few images and on runs of known times."""

import json

import pytest
import yaml
from mlflow.entities import Metric

from benchmarks import ablation, accuracy, curves
from tests.support.forking_python import replace_python
from tests.support.images import grow
from tests.support.phrases import mentions

CHANGED = {
    "the recipe": set(),
    "no label smoothing": {"model.init_args.label_smoothing"},
    "no random crop": {"data.init_args.random_crop_padding"},
    "no horizontal flip": {"data.init_args.horizontal_flip"},
    "no weight decay": {"optimizer.init_args.weight_decay"},
    "a constant rate": {"lr_scheduler"},
    "no EMA of the weights": {"trainer.callbacks"},
    "trainable stem": {"trainer.callbacks", "model.init_args.freeze"},
    "63 pixels": {f"data.init_args.{name}" for name in ("resize", "crop", "random_crop_padding")},
}


def flatten(config, name=""):
    """A configuration's values by their dotted names; a schedule is one value."""
    if not isinstance(config, dict) or name == "lr_scheduler":
        return {name: config}
    return {
        key: value
        for part, each in config.items()
        for key, value in flatten(each, f"{name}.{part}".lstrip(".")).items()
    }


@pytest.mark.parametrize("recipe", ablation.RECIPES)
def test_each_line_leaves_one_thing_of_the_recipe_out(recipe, cli):
    config = f"--config={accuracy.ROOT / 'configs' / recipe}"
    again = {*ablation.COMMON} - {"the recipe"} if recipe == ablation.RECIPES[1] else set()
    found = {
        name: flatten(yaml.safe_load(cli("fit --print_config", config, *options).out))
        for name, options in ablation.without(recipe).items()
        if name not in again  # the first recipe has shown them
    }

    whole = found["the recipe"]
    for name, written in found.items():
        changed = {key for key in {*whole, *written} if whole.get(key) != written.get(key)}
        assert changed == CHANGED[name], name


def test_recipe_is_trained_without_one_thing(tmp_path, monkeypatch):
    replace_python(monkeypatch)
    grow(tmp_path / "photos", "train/cat", "train/dog", count=8)
    few = [
        "--images=8",
        "--epochs=1",
        "--only",
        "no random crop",
        f"--json={tmp_path / 'all.json'}",
    ]
    options = ["--batch_size=4", "--data.num_workers=0"]

    ablation.main(["alexnet-bn-cifar10.yaml", f"{tmp_path}/photos", *few, "--", *options])

    found = json.loads((tmp_path / "all.json").read_text())["found"]
    assert [*found] == ["no random crop"]
    assert len(found["no random crop"]) == 1
    assert 0 <= found["no random crop"][0] <= 1


def test_line_that_no_table_has_is_refused(capsys):
    with pytest.raises(SystemExit):
        ablation.main(["alexnet-bn-cifar10.yaml", "photos", "--only", "luck"])
    assert mentions(capsys.readouterr().err, "--only", "luck", "'the recipe', ")


@pytest.fixture
def learnt(store):
    """A run of 3 epochs of a minute each: 0.6, 0.8 and 0.79."""
    run = store.create_run("0", start_time=1_000_000, run_name="quick").info.run_id
    values = [
        Metric(name, value, 1_000_000 + 60_000 * epoch, 10 * epoch)
        for epoch, accuracy in enumerate((0.6, 0.8, 0.79), 1)
        for name, value in (("val_accuracy", accuracy), ("epoch", epoch - 1))
    ]
    store.log_batch(run, metrics=values)
    return run


def test_time_to_accuracy_is_that_of_the_first_epoch_that_reaches_it(learnt, tmp_path, capsys):
    picture = tmp_path / "curves.png"

    curves.main([learnt, "--accuracy", "0.75", "0.925", f"--picture={picture}"])

    assert capsys.readouterr().out.splitlines()[-3:] == [
        "| run | epochs | best | 75% | 92.5% |",
        "| --- | --- | --- | --- | --- |",
        "| quick | 3 | 0.8000 | 120 s (epoch 2) | not reached |",
    ]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_run_without_validation_is_refused(learnt, store, capsys):
    other = store.create_run("0").info.run_id

    with pytest.raises(SystemExit):
        curves.main([other])
    assert mentions(capsys.readouterr().err, other, "val_accuracy")


@pytest.mark.parametrize("names", [["a", "b"], []])
def test_each_run_needs_a_name_of_its_own(learnt, names, capsys):
    runs = [learnt] if names else [learnt, learnt]

    with pytest.raises(SystemExit):
        curves.main([*runs, *(["--names", *names] if names else [])])
    assert "--names" in capsys.readouterr().err
