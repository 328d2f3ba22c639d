"""AlexNet with batch normalization: for small images, and much smaller."""

import pytest
import torch
from torch import nn

from pyclassify.model import AlexNet, AlexNetBN


def convolutions(network):
    return [each for each in network.modules() if isinstance(each, nn.Conv2d)]


def test_has_the_depth_of_alexnet_with_each_convolution_normalized():
    network = AlexNetBN(10)
    stem, *others = convolutions(network)

    assert stem is network.stem
    assert len(others) == 5
    assert all(each.kernel_size == (3, 3) and each.bias is None for each in others)
    norms = [each.num_features for each in network.modules() if isinstance(each, nn.BatchNorm2d)]
    assert norms == [each.out_channels for each in others]


def test_convolutions_are_as_wide_as_alexnets():
    with torch.device("meta"):
        widths = [
            [each.out_channels for each in convolutions(kind())] for kind in (AlexNet, AlexNetBN)
        ]

    assert widths[0] == widths[1][1:]


def test_convolutions_are_initialized_to_pass_their_channels_on():
    _, first, *_ = convolutions(AlexNetBN())
    images = torch.rand(2, 24, 7, 7)

    torch.testing.assert_close(first(images)[:, :24], images)


def test_scales_of_the_norms_do_not_learn():
    network = AlexNetBN()
    network(torch.rand(2, 3, 32, 32)).sum().backward()

    still = {name for name, each in network.named_parameters() if each.grad is None}
    norms = {
        f"{name}.weight"
        for name, each in network.named_modules()
        if isinstance(each, nn.BatchNorm2d)
    }
    assert still == norms


@pytest.mark.parametrize("size", [(9, 9), (32, 32), (33, 70)])
def test_logits_for_images_of_any_size_from_9(size):
    network = AlexNetBN(7).eval()

    assert network(torch.randn(2, 3, *size)).shape == (2, 7)


@pytest.mark.parametrize("size", [(8, 9), (9, 8)])
def test_names_the_smallest_size_when_an_image_is_smaller(size):
    # the form of this message
    message = (
        rf"^invalid image size for AlexNetBN: {size[0]}x{size[1]} pixels \(expected 9x9 or more\)"
    )

    with pytest.raises(ValueError, match=message):
        AlexNetBN()(torch.empty(1, 3, *size))


def test_logits_of_an_image_do_not_depend_on_the_batch():
    torch.manual_seed(0)
    network, images = AlexNetBN().eval(), torch.randn(4, 3, 32, 32)

    torch.testing.assert_close(network(images)[:1], network(images[:1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_classes", [0, -1])
def test_num_classes_out_of_range_raises(num_classes):
    with pytest.raises(ValueError, match=rf"num_classes: {num_classes} .*1 or more"):
        AlexNetBN(num_classes=num_classes)
