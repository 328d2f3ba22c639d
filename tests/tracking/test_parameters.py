"""The parameters of a run, and the name of its recipe."""

import pytest
import yaml

from pyclassify.tracking.parameters import RECIPE_TAG, flatten_parameters, name_recipe
from tests.support.trainings import SHAPES

CONFIG = {
    "seed_everything": 0,
    "model": {
        "class_path": "pyclassify.module.Classifier",
        "init_args": {
            "learning_rate": 1e-3,
            "model": {"class_path": "pyclassify.model.AlexNet", "init_args": {"dropout": 0.5}},
        },
    },
    "data": {
        "class_path": "x.Data",
        "init_args": {"mean": [0.5, 0.5, 0.5], "horizontal_flip": True},
    },
    "trainer": {
        "devices": "2",
        "precision": None,
        "max_steps": -1,
        "fast_dev_run": True,
        "logger": {"class_path": "pyclassify.tracking.logger.RunLogger"},
    },
}
DEFAULTS = {"trainer": {"devices": "2", "max_steps": -1, "fast_dev_run": False}}


def test_flatten_parameters_makes_one_parameter_a_value():
    assert flatten_parameters(CONFIG, DEFAULTS) == {
        "seed_everything": "0",
        "model/class": "pyclassify.module.Classifier",
        "model/learning_rate": "0.001",
        "model/model": "pyclassify.model.AlexNet",
        "model/model/dropout": "0.5",
        "data/class": "x.Data",
        "data/mean": "[0.5, 0.5, 0.5]",
        "data/horizontal_flip": "true",
        "trainer/devices": "2",
        "trainer/fast_dev_run": "true",
    }


def test_flatten_parameters_names_a_function_like_a_class():
    function = {"model": {"class_path": "C", "init_args": {"model": "torchvision.models.resnet18"}}}

    assert flatten_parameters(function, {})["model/model"] == "torchvision.models.resnet18"


def test_flatten_parameters_names_callbacks_by_their_classes():
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"patience": 3}}
    other = {**stop, "init_args": {"patience": 5}}

    assert flatten_parameters({"trainer": {"callbacks": [stop, other]}}, {}) == {
        "trainer/callbacks/EarlyStopping": stop["class_path"],
        "trainer/callbacks/EarlyStopping/patience": "3",
        "trainer/callbacks/EarlyStopping:2": stop["class_path"],
        "trainer/callbacks/EarlyStopping:2/patience": "5",
    }


def test_flatten_parameters_cuts_a_long_value_and_says_so():
    (value,) = flatten_parameters({"data": {"weights": [0.1] * 2000}}, {}).values()

    assert len(value) == 6000
    assert value.startswith("[0.1, 0.1,")
    assert value.endswith("... (10,000 characters; see config.yaml)")


@pytest.mark.parametrize(
    ("key", "name"), [("größe!", "gr__e_"), ("/data/a", "_data_a"), ("../b", "__b"), (3, "3")]
)
def test_flatten_parameters_replaces_refused_characters(key, name):
    assert flatten_parameters({"data": {"sizes": {key: 1}}}, {}) == {f"data/sizes/{name}": "1"}


def test_flatten_parameters_keeps_a_list_of_mappings_as_one_value():
    groups = [{"lr": 0.1}, {"lr": 0.2}]

    assert flatten_parameters({"model": {"groups": groups}}, {}) == {
        "model/groups": '[{"lr": 0.1}, {"lr": 0.2}]'
    }


def test_run_has_the_trainer_parameters_that_were_set(cli):
    (run,) = cli(f"fit {SHAPES} --trainer.gradient_clip_val=0.5").runs
    params = {k: v for k, v in run.data.params.items() if k.startswith(("trainer", "checkpoint"))}

    assert params == {
        "trainer/accelerator": "auto",
        "trainer/devices": "1",
        "trainer/gradient_clip_val": "0.5",
        "trainer/log_every_n_steps": "1",
        "trainer/max_epochs": "1",
        "trainer/num_nodes": "1",
    }


RECIPE_CONFIG = {
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
DATA = {"splits": {"train": {"digest": "5eed"}}}


def changed(path, value):
    config = yaml.safe_load(yaml.safe_dump(RECIPE_CONFIG))
    *parents, last = path.split(".")
    inner = config
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return config


def test_runs_that_differ_only_by_seed_have_one_recipe(cli):
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
        ("model.init_args.flip_tta", True),
        ("model.init_args.channels_last", True),
    ],
)
def test_recipe_is_independent_of_seed_and_execution(path, value):
    assert name_recipe(changed(path, value), DATA) == name_recipe(RECIPE_CONFIG, DATA)


def test_recipe_is_independent_of_new_options_at_their_initial_values():
    now = yaml.safe_load(yaml.safe_dump(RECIPE_CONFIG))
    now["model"]["init_args"] |= {
        "label_smoothing": 0.0,
        "decay_bias_and_norm": True,
        "compile": False,
    }
    now["data"]["init_args"] |= {
        "random_crop_padding": 0,
        "cutout": 0,
        "color_jitter": 0.0,
        "float_resize": True,
    }

    assert name_recipe(now, DATA) == name_recipe(RECIPE_CONFIG, DATA)
    for part, name, other in [
        ("model", "label_smoothing", 0.1),
        ("model", "decay_bias_and_norm", False),
        ("model", "compile", True),
        ("data", "random_crop_padding", 4),
        ("data", "cutout", 8),
        ("data", "color_jitter", 0.2),
        ("data", "float_resize", False),
    ]:
        assert name_recipe(changed(f"{part}.init_args.{name}", other), DATA) != name_recipe(
            RECIPE_CONFIG, DATA
        )


def test_recipe_depends_on_the_images():
    other = {"splits": {"train": {"digest": "c0ffee"}}}

    assert name_recipe(RECIPE_CONFIG, other) != name_recipe(RECIPE_CONFIG, DATA)
    # Of a data module that gives no digest, the folder is all there is to go by.
    assert name_recipe(changed("data.init_args.data_path", "/there")) != name_recipe(RECIPE_CONFIG)


@pytest.mark.parametrize(
    ("path", "value"),
    [("trainer.max_epochs", 4), ("model.init_args.lr", 0.2), ("data.class_path", "mine.Data")],
)
def test_recipe_depends_on_training_options(path, value):
    assert name_recipe(changed(path, value)) != name_recipe(RECIPE_CONFIG)


def test_recipe_depends_on_the_content_of_initial_weights():
    here, there = (changed("model.init_args.weights", f"/{name}/w.pth") for name in ("a", "b"))
    content, other = {"sha256": "7be5"}, {"sha256": "c0ffee"}

    assert name_recipe(here, DATA, content) == name_recipe(there, DATA, content)
    assert name_recipe(here, DATA, content) != name_recipe(here, DATA, other)
    assert name_recipe(here, DATA) != name_recipe(there, DATA)


def test_recipe_name_starts_with_network_and_data():
    assert name_recipe(RECIPE_CONFIG).startswith("resnet18-MNIST ")
    assert name_recipe(changed("model", {"class_path": "mine.Module"})).startswith("Module-MNIST ")
