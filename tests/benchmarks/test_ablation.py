"""The ablation, on few images, and the time to accuracy, on runs with known times."""

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
    "constant learning rate": {"lr_scheduler"},
    "no EMA of the weights": {"trainer.callbacks"},
    "trainable stem": {"trainer.callbacks", "model.init_args.freeze"},
    "63 pixels": {f"data.init_args.{name}" for name in ("resize", "crop", "random_crop_padding")},
}


def flatten(config, name=""):
    """Flatten a configuration to dotted names; a schedule is one value."""
    if not isinstance(config, dict) or name == "lr_scheduler":
        return {name: config}
    return {
        key: value
        for inner_name, inner in config.items()
        for key, value in flatten(inner, f"{name}.{inner_name}".lstrip(".")).items()
    }


@pytest.mark.parametrize("recipe", ablation.RECIPES)
def test_each_row_removes_one_ingredient_of_the_recipe(recipe, cli):
    config = f"--config={accuracy.ROOT / 'configs' / recipe}"
    # The first recipe tests the rows that both have.
    common = {*ablation.COMMON} - {"the recipe"} if recipe == ablation.RECIPES[1] else set()
    configs = {
        name: flatten(yaml.safe_load(cli("fit --print_config", config, *options).out))
        for name, options in ablation.list_ablations(recipe).items()
        if name not in common
    }

    original = configs["the recipe"]
    for name, ablated in configs.items():
        keys = {*original, *ablated}
        changed = {key for key in keys if original.get(key) != ablated.get(key)}
        assert changed == CHANGED[name], name


def test_recipe_is_trained_without_one_ingredient(tmp_path, monkeypatch):
    replace_python(monkeypatch)
    grow(tmp_path / "photos", "train/cat", "train/dog", count=8)
    row = "no horizontal flip"
    few = ["--images=8", "--epochs=1", "--only", row, f"--json={tmp_path / 'all.json'}"]
    options = ["--batch_size=4", "--data.num_workers=0"]

    ablation.main(["alexnet-bn-cifar10.yaml", f"{tmp_path}/photos", *few, "--", *options])

    accuracies = json.loads((tmp_path / "all.json").read_text())["val_accuracy"]
    assert [*accuracies] == [row]
    assert len(accuracies[row]) == 1
    assert 0 <= accuracies[row][0] <= 1


def test_unknown_row_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as ended:
        ablation.main(["alexnet-bn-cifar10.yaml", "photos", "--only", "luck"])

    assert ended.value.code == 2
    # the form of these messages
    start = "python -m benchmarks.ablation: error: invalid --only: luck (expected some of "
    assert capsys.readouterr().err.startswith(start + "'the recipe', ")


@pytest.fixture
def trained(store):
    """A run of 3 epochs of a minute each: 0.6, 0.8 and 0.79."""
    run = store.create_run("0", start_time=1_000_000, run_name="quick").info.run_id
    values = [
        Metric(name, value, 1_000_000 + 60_000 * epoch, 10 * epoch)
        for epoch, accuracy in enumerate((0.6, 0.8, 0.79), 1)
        for name, value in (("val_accuracy", accuracy), ("epoch", epoch - 1))
    ]
    store.log_batch(run, metrics=values)
    return run


def test_time_to_accuracy_is_that_of_the_first_epoch_that_reaches_it(trained, tmp_path, capsys):
    figure = tmp_path / "curves.png"

    curves.main([trained, "--accuracy", "0.75", "0.925", f"--figure={figure}"])

    assert capsys.readouterr().out.splitlines()[-3:] == [
        "| run | epochs | best | 75% | 92.5% |",
        "| --- | --- | --- | --- | --- |",
        "| quick | 3 | 0.8000 | 120 s (epoch 2) | not reached |",
    ]
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_run_without_validation_is_an_error(trained, store, capsys):
    other = store.create_run("0").info.run_id

    with pytest.raises(SystemExit) as ended:
        curves.main([other])
    assert ended.value.code == 1
    assert mentions(capsys.readouterr().err, other, "val_accuracy")


@pytest.mark.parametrize("names", [["a", "b"], []])
def test_each_run_needs_a_different_name(trained, names, capsys):
    runs = [trained] if names else [trained, trained]

    with pytest.raises(SystemExit):
        curves.main([*runs, *(["--names", *names] if names else [])])
    assert "--names" in capsys.readouterr().err
