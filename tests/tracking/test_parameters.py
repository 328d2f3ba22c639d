"""The parameters that people compare runs by: their names and their spelling."""

import pytest

from pyclassify.tracking.parameters import flatten_parameters
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
    "data": {"class_path": "x.Data", "init_args": {"mean": [0.5, 0.5, 0.5], "flip": True}},
    "trainer": {
        "devices": "2",
        "precision": None,
        "max_steps": -1,
        "fast_dev_run": True,
        "logger": {"class_path": "pyclassify.tracking.logger.RunLogger"},
    },
}
DEFAULTS = {"trainer": {"devices": "2", "max_steps": -1, "fast_dev_run": False}}


def test_configuration_is_spelled_as_one_parameter_a_value():
    assert flatten_parameters(CONFIG, DEFAULTS) == {
        "seed_everything": "0",
        "model/class": "pyclassify.module.Classifier",
        "model/learning_rate": "0.001",
        "model/model": "pyclassify.model.AlexNet",
        "model/model/dropout": "0.5",
        "data/class": "x.Data",
        "data/mean": "[0.5, 0.5, 0.5]",
        "data/flip": "true",
        "trainer/devices": "2",
        "trainer/fast_dev_run": "true",
    }


def test_network_has_one_name_whether_it_is_a_function_or_a_class_with_arguments():
    function = {"model": {"class_path": "C", "init_args": {"model": "torchvision.models.resnet18"}}}

    assert flatten_parameters(function, {})["model/model"] == "torchvision.models.resnet18"


def test_callbacks_are_named_by_what_they_are():
    stop = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"patience": 3}}
    other = {**stop, "init_args": {"patience": 5}}

    assert flatten_parameters({"trainer": {"callbacks": [stop, other]}}, {}) == {
        "trainer/callbacks/EarlyStopping": stop["class_path"],
        "trainer/callbacks/EarlyStopping/patience": "3",
        "trainer/callbacks/EarlyStopping:2": stop["class_path"],
        "trainer/callbacks/EarlyStopping:2/patience": "5",
    }


def test_value_that_is_too_long_for_mlflow_says_what_it_lost():
    (value,) = flatten_parameters({"data": {"weights": [0.1] * 2000}}, {}).values()

    assert len(value) == 6000
    assert value.startswith("[0.1, 0.1,")
    assert value.endswith("... (10,000 characters, whole in config.yaml)")


@pytest.mark.parametrize(
    ("key", "name"), [("größe!", "gr__e_"), ("/data/a", "_data_a"), ("../b", "__b"), (3, "3")]
)
def test_name_has_nothing_that_mlflow_refuses(key, name):
    assert flatten_parameters({"data": {"sizes": {key: 1}}}, {}) == {f"data/sizes/{name}": "1"}


def test_list_of_plain_mappings_is_one_value():
    groups = [{"lr": 0.1}, {"lr": 0.2}]

    assert flatten_parameters({"model": {"groups": groups}}, {}) == {
        "model/groups": '[{"lr": 0.1}, {"lr": 0.2}]'
    }


def test_run_tells_of_the_trainer_what_it_took_and_what_was_set(cli):
    (run,) = cli(f"fit {SHAPES} --trainer.gradient_clip_val=0.5").runs
    told = {k: v for k, v in run.data.params.items() if k.startswith(("trainer", "checkpoint"))}

    assert told == {
        "trainer/accelerator": "auto",
        "trainer/devices": "1",
        "trainer/gradient_clip_val": "0.5",
        "trainer/log_every_n_steps": "1",
        "trainer/max_epochs": "1",
        "trainer/num_nodes": "1",
    }
