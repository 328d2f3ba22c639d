"""Networks as plain values, and those that a checkpoint may not name."""

from functools import partial

import pytest
import torch
import torchvision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from pyclassify.cli.network import NetworkSpec
from pyclassify.module import Classifier
from pyclassify.training.network import ConfiguredNetwork
from tests.support import networks
from tests.support.phrases import mentions

PATH = "tests.support.networks"
DEEP = {"class_path": f"{PATH}.Deep", "init_args": {"depth": 2, "norm_layer": "torch.nn.LayerNorm"}}


@pytest.fixture
def checkpoint(tmp_path):
    """Save a classifier as a Trainer does: `checkpoint(classifier)`; the file."""

    def checkpoint(classifier):
        trainer = networks.trainer()
        trainer.strategy.connect(classifier)
        trainer.save_checkpoint(tmp_path / "saved.ckpt")
        return tmp_path / "saved.ckpt"

    return checkpoint


@pytest.mark.parametrize(
    "factory",
    [
        networks.Linear,
        networks.make_linear,
        networks.make_small,
        partial(networks.Linear, side=4),
        torchvision.models.squeezenet1_1,
        NetworkSpec("torchvision.models.squeezenet1_1", ["weights=DEFAULT"]),
        NetworkSpec(f"{PATH}.Linear", ["side=2"]),
        NetworkSpec(DEEP),
        NetworkSpec(f"{PATH}.create_model", ["model_name=linear", "side=2"]),
    ],
)
def test_classifier_of_any_network_is_loaded_from_its_checkpoint(factory, checkpoint):
    classifier = Classifier(factory, num_classes=3, label_smoothing=0.1)

    loaded = Classifier.load_from_checkpoint(checkpoint(classifier))

    assert loaded.label_smoothing == 0.1
    torch.testing.assert_close(loaded.state_dict(), classifier.state_dict(), atol=0, rtol=0)
    again = Classifier.load_from_checkpoint(checkpoint(loaded))
    torch.testing.assert_close(again.state_dict(), classifier.state_dict(), atol=0, rtol=0)


def test_given_arguments_replace_those_of_the_checkpoint(checkpoint):
    path = checkpoint(Classifier(networks.network, num_classes=3, learning_rate=0.5))

    loaded = Classifier.load_from_checkpoint(path, learning_rate=0.25, map_location="cpu")

    assert (loaded.learning_rate, loaded.num_classes) == (0.25, 3)


def test_network_without_a_path_has_to_be_given(checkpoint):
    def factory(num_classes):
        return networks.network(num_classes)

    path = checkpoint(Classifier(factory, num_classes=3))

    with pytest.raises(MisconfigurationException, match=r"saved\.ckpt .*network.* model="):
        Classifier.load_from_checkpoint(path)

    assert Classifier.load_from_checkpoint(path, model=factory).num_classes == 3


@pytest.mark.parametrize(
    "config",
    [
        {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": "a/b", "model": "c"}},
        {"class_path": "subprocess.Popen", "init_args": {"args": "true"}},
        "builtins.exec",
        {**DEEP, "init_args": {"depth": 1, "norm_layer": {"class_path": "subprocess.Popen"}}},
    ],
    ids=str,
)
def test_function_that_is_not_known_to_make_a_network_is_not_called(config):
    with pytest.raises(MisconfigurationException, match=r"not called; give the network by model="):
        ConfiguredNetwork(config)(num_classes=2)


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        ("no_such_package.Net", ["no_such_package.Net", "ModuleNotFoundError", "model="]),
        (f"{PATH}.make_nothing", ["make_nothing", "dict", "no network"]),
        ({"class_path": f"{PATH}.Linear", "init_args": {"depth": 2}}, ["Linear", "'depth'"]),
    ],
)
def test_network_that_can_not_be_made_is_an_error_that_names_it(config, facts):
    with pytest.raises(MisconfigurationException) as raised:
        ConfiguredNetwork(config)(num_classes=2)

    assert mentions(str(raised.value), *facts)


def test_trusted_function_may_have_no_annotation():
    network = ConfiguredNetwork(f"{PATH}.make_linear", is_trusted=True)(num_classes=2)

    assert isinstance(network, nn.Module)
