"""Files of weights that do not fit, and parts that a network does not have."""

import pickle

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torchvision.models import resnet18, resnet34

from pyclassify.training import finetuning
from tests.support import tuned
from tests.support.phrases import mentions
from tests.support.trainings import SHAPES


@pytest.mark.parametrize(
    ("network", "content", "facts"),
    [
        (
            tuned.Net,
            tuned.spread(resnet18),
            [
                # the form of this message
                "are another network's: 10 of 11 tensors are missing or of another shape "
                "(features.1.weight is not in the file, 4x3x3x3 in the network, features.1.bias is "
                "not in the file, 4 in the network, features.2.weight is not in the file, 4 in the "
                "network and 7 more); give a file of Net's, or name its network by --model.model"
            ],
        ),
        (
            resnet34,
            tuned.spread(resnet18),
            ["80 of 218"],
        ),
        (
            tuned.Net,
            {**tuned.state(), "body.weight": torch.ones(8, 100)},
            ["1 of 11", "body.weight 8x100", "8x144"],
        ),
        (
            tuned.Net,
            {**tuned.state(), "head.weight": torch.ones(7, 9)},
            ["1 of 11", "head.weight 7x9", "4x8"],
        ),
        (
            lambda num_classes: nn.Linear(8, num_classes),
            {"weight": torch.ones(5, 8), "bias": torch.ones(5)},
            ["2 of 2", "weight 5x8", "4x8"],
        ),
    ],
    ids=["other", "smaller", "other inputs", "other inputs of the last", "nothing but the last"],
)
def test_weights_of_another_network_are_refused(network, content, facts, tmp_path):
    file = tuned.write(tmp_path / "w.pth", content)

    with pytest.raises(MisconfigurationException, match="another network") as refused:
        finetuning.load_weights(network(num_classes=4), 4, file)

    assert mentions(str(refused.value), *facts)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        (None, ["No such file or directory", ".pth", ".pt", "torch.save"]),
        (
            b"",
            # the form of this message
            ["is no file of tensors and plain values alone; give a .pth or .pt file of torch.save"],
        ),
        (b"<html>404</html>", ["tensors", "torch.save"]),
        (b"PK\x03\x04 cut", ["tensors", "torch.save"]),
        (pickle.dumps(tuned.Net(2)), ["tensors", "torch.save"]),
    ],
    ids=["missing", "empty", "a page", "cut", "a whole network"],
)
def test_file_that_is_none_of_weights_is_refused(content, facts, tmp_path):
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(MisconfigurationException) as refused:
        finetuning._read_tensors(str(path))

    assert mentions(str(refused.value), f"weights {path} ", *facts)


@pytest.mark.parametrize("content", [{}, [torch.ones(2)], {"epoch": 3}, torch.ones(2)])
def test_file_without_named_tensors_is_refused(content, tmp_path):
    told = r"weights .+w\.pth .*tensors.*names.*\.pth.*\.pt"

    with pytest.raises(MisconfigurationException, match=told):
        finetuning._read_tensors(tuned.write(tmp_path / "w.pth", content))


@pytest.mark.parametrize(
    ("parts", "facts"),
    [
        (
            "feature",
            [
                # the form of this message
                "freeze names 'feature', which Net does not have; give one of features, body, "
                "head, a part of one by its full name, or a list of several"
            ],
        ),
        ("features,body", ["'features,body'", "Net", "features, body, head"]),
        ("", ["''", "Net", "features, body, head"]),
        (["features", "features.9"], ["'features.9'", "Net"]),
        (["features", "body", "head"], ["Net", "last layer", "head.bias"]),
    ],
)
def test_parts_that_can_not_be_frozen_are_refused(parts, facts):
    with pytest.raises(MisconfigurationException, match=r"^freeze ") as refused:
        tuned.classifier(freeze=parts)

    assert mentions(str(refused.value), *facts)


@pytest.mark.parametrize(
    ("option", "facts"),
    [
        ("--weights=gone.pth", ["weights gone.pth", "No such file or directory"]),
        ("--freeze=[0,layer1]", ["freeze", "'0'", "Net", "features"]),
    ],
)
def test_mistakes_are_told_in_one_line(option, facts, cli):
    said = cli(f"fit {SHAPES} --model.model=tests.support.tuned.Net", option)

    assert said.code == 1
    (line,) = (each for each in said.err.splitlines() if each.startswith("pyclassify: error: "))
    assert mentions(line, *facts)
