"""AlexNet: the same network as torchvision's, for any image that it can take."""

import pytest
import torch
from torch import nn
from torchvision.models import alexnet

from pyclassify.model import AlexNet
from tests.support.phrases import mentions


@pytest.fixture(scope="module")
def shapes_only():
    """The network without its 57 million numbers: outputs have shapes and no values."""
    with torch.device("meta"):
        return AlexNet(num_classes=10)


def test_alexnet_has_the_layers_of_torchvisions(shapes_only):
    assert shapes_only.num_classes == 10
    assert isinstance(shapes_only.features, nn.Sequential)
    assert isinstance(shapes_only.avgpool, nn.AdaptiveAvgPool2d)
    assert shapes_only.avgpool.output_size == (6, 6)
    assert shapes_only.classifier[-1].out_features == 10


def test_ten_classes_make_57_044_810_parameters(shapes_only):
    assert sum(each.numel() for each in shapes_only.parameters()) == 57_044_810


@pytest.mark.parametrize(("giver", "taker"), [(AlexNet, alexnet), (alexnet, AlexNet)])
def test_state_dict_and_logits_are_interchangeable_with_torchvision(giver, taker):
    giver, taker = giver(num_classes=10).eval(), taker(num_classes=10).eval()
    images = torch.randn(2, 3, 64, 64)

    taker.load_state_dict(giver.state_dict(), assign=True)

    assert torch.equal(taker(images), giver(images))


@pytest.mark.parametrize("size", [(63, 63), (64, 64), (70, 300), (224, 224)])
def test_logits_for_images_of_any_size_from_63(shapes_only, size):
    assert shapes_only(torch.empty(2, 3, *size, device="meta")).shape == (2, 10)


@pytest.mark.parametrize("size", [(62, 63), (63, 62), (32, 32)])
def test_names_the_smallest_size_when_an_image_is_smaller(shapes_only, size):
    with pytest.raises(ValueError, match="63x63") as refused:
        shapes_only(torch.empty(1, 3, *size, device="meta"))

    assert mentions(str(refused.value), f"{size[0]}x{size[1]}")


def test_63_is_the_smallest_size_that_the_layers_accept(shapes_only):
    with pytest.raises(RuntimeError, match="too small"):
        shapes_only.features(torch.empty(1, 3, 62, 62, device="meta"))


def test_dropout_has_the_given_probability():
    with torch.device("meta"):
        network = AlexNet(dropout=0.2)

    assert [each.p for each in network.classifier if isinstance(each, nn.Dropout)] == [0.2, 0.2]


@pytest.mark.parametrize("num_classes", [0, -1])
def test_num_classes_out_of_range_raises(num_classes):
    with pytest.raises(
        ValueError, match=rf"^invalid num_classes: {num_classes} \(expected 1 or more\)$"
    ):
        AlexNet(num_classes=num_classes)
