"""Which runs are of one recipe."""

import pytest
import yaml

from pyclassify.tracking.parameters import RECIPE_TAG, name_recipe
from tests.support.trainings import SHAPES

CONFIG = {
    "seed_everything": 0,
    "trainer": {
        "accelerator": "auto",
        "devices": 1,
        "max_epochs": 3,
        "logger": {"class_path": "a.Logger"},
    },
    "model": {"class_path": "a.Classifier", "init_args": {"model": "b.resnet18", "lr": 0.1}},
    "data": {"class_path": "a.MNISTDataModule", "init_args": {"data_path": "/here"}},
}

DATA = {"sets": {"train": {"digest": "5eed"}}}


def changed(path, value):
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    *parents, last = path.split(".")
    inner = config
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return config


def test_runs_that_differ_by_seed_alone_are_of_one_recipe(cli):
    for more in ("", "--seed 1", "--learning_rate 0.5"):
        runs = cli(f"fit {SHAPES} {more}").runs

    other, *same = [run.data.tags[RECIPE_TAG] for run in runs]
    assert same[0] == same[1] != other
    assert other.startswith("Linear-Synthetic ")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed_everything", 1),
        ("trainer.accelerator", "gpu"),
        ("trainer.logger", False),
        ("data.init_args.data_path", "/there"),
        ("data.init_args.num_workers", 4),
        ("trainer.profiler", "simple"),
        ("trainer.devices", "1"),  # as `mlflow run` hands it over
        ("trainer.precision", "32-true"),
        ("model.init_args.flip_test", True),
        ("model.init_args.channels_last", True),
    ],
)
def test_place_and_seed_make_no_other_recipe(path, value):
    assert name_recipe(changed(path, value), DATA) == name_recipe(CONFIG, DATA)


def test_settings_that_a_run_from_before_them_had_not_make_no_other_recipe_unless_changed():
    now = yaml.safe_load(yaml.safe_dump(CONFIG))
    now["model"]["init_args"] |= {"label_smoothing": 0.0, "decay_biases": True, "compile": False}
    now["data"]["init_args"] |= {"pad": 0, "erase": 0, "color": 0.0, "exact": True}

    assert name_recipe(now, DATA) == name_recipe(CONFIG, DATA)
    for part, name, other in [
        ("model", "label_smoothing", 0.1),
        ("model", "decay_biases", False),
        ("model", "compile", True),
        ("data", "pad", 4),
        ("data", "erase", 8),
        ("data", "color", 0.2),
        ("data", "exact", False),
    ]:
        assert name_recipe(changed(f"{part}.init_args.{name}", other), DATA) != name_recipe(
            CONFIG, DATA
        )


def test_other_images_make_another_recipe():
    other = {"sets": {"train": {"digest": "c0ffee"}}}

    assert name_recipe(CONFIG, other) != name_recipe(CONFIG, DATA)
    # Of a data module that gives no digest, the folder is all there is to go by.
    assert name_recipe(changed("data.init_args.data_path", "/there")) != name_recipe(CONFIG)


@pytest.mark.parametrize(
    ("path", "value"),
    [("trainer.max_epochs", 4), ("model.init_args.lr", 0.2), ("data.class_path", "mine.Data")],
)
def test_what_is_trained_makes_another_recipe(path, value):
    assert name_recipe(changed(path, value)) != name_recipe(CONFIG)


def test_weights_to_start_from_are_told_by_their_content():
    here, there = (changed("model.init_args.weights", f"/{name}/w.pth") for name in ("a", "b"))
    content, other = {"sha256": "7be5"}, {"sha256": "c0ffee"}

    assert name_recipe(here, DATA, content) == name_recipe(there, DATA, content)
    assert name_recipe(here, DATA, content) != name_recipe(here, DATA, other)
    assert name_recipe(here, DATA) != name_recipe(there, DATA)


def test_recipe_is_named_by_network_and_data():
    assert name_recipe(CONFIG).startswith("resnet18-MNIST ")
    assert name_recipe(changed("model", {"class_path": "mine.Module"})).startswith("Module-MNIST ")
