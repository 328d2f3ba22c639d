"""Files of weights that do not fit, and parts that a network does not have."""

import pickle
import re

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torchvision.models import resnet18, resnet34

from pyclassify import finetuning
from tests.support import tuned
from tests.support.command_lines import SHAPES


@pytest.mark.parametrize(
    ("network", "content", "words"),
    [
        (
            tuned.Net,
            tuned.spread(resnet18),
            "10 of 11 tensors are missing or of another shape (features.1.weight is not in the "
            "file, 4x3x3x3 in the network, features.1.bias is not in the file, 4 in the network, "
            "features.2.weight is not in the file, 4 in the network and 7 more); give a file of "
            "Net's, or name its network by --model.model",
        ),
        (
            resnet34,
            tuned.spread(resnet18),
            "80 of 218 tensors are missing or of",
        ),
        (
            tuned.Net,
            {**tuned.state(), "body.weight": torch.ones(8, 100)},
            "1 of 11 tensors are missing or of another shape (body.weight 8x100 in the file, 8x144 "
            "in the network); give",
        ),
        (
            tuned.Net,
            {**tuned.state(), "head.weight": torch.ones(7, 9)},
            "1 of 11 tensors are missing or of another shape (head.weight 7x9 in the file, 4x8 in",
        ),
        (
            lambda num_classes: nn.Linear(8, num_classes),
            {"weight": torch.ones(5, 8), "bias": torch.ones(5)},
            "2 of 2 tensors are missing or of another shape (weight 5x8 in the file, 4x8 in",
        ),
    ],
    ids=["other", "smaller", "other inputs", "other inputs of the last", "nothing but the last"],
)
def test_weights_of_another_network_are_refused(network, content, words, tmp_path):
    file = tuned.write(tmp_path / "w.pth", content)

    with pytest.raises(
        MisconfigurationException, match=re.escape(f"are another network's: {words}")
    ):
        finetuning.load(network(num_classes=4), 4, file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "can't be read (No such file or directory); give a .pth or .pt file of torch.save"),
        (
            b"",
            "is no file of tensors and plain values alone; give a .pth or .pt file of torch.save",
        ),
        (b"<html>404</html>", "is no file of tensors and plain values alone"),
        (b"PK\x03\x04 cut", "is no file of tensors and plain values alone"),
        (pickle.dumps(tuned.Net(2)), "is no file of tensors and plain values alone"),
    ],
    ids=["missing", "empty", "a page", "cut", "a whole network"],
)
def test_file_that_is_none_of_weights_is_refused(content, words, tmp_path):
    path = tmp_path / "w.pth"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(MisconfigurationException, match=re.escape(f"weights {path} {words}")):
        finetuning.read(str(path))


@pytest.mark.parametrize("content", [{}, [torch.ones(2)], {"epoch": 3}, torch.ones(2)])
def test_file_without_named_tensors_is_refused(content, tmp_path):
    told = r"weights .+w\.pth holds no tensors by their names; give a \.pth or \.pt file"

    with pytest.raises(MisconfigurationException, match=told):
        finetuning.read(tuned.write(tmp_path / "w.pth", content))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            "feature",
            "freeze names 'feature', which Net does not have; give one of features, body, head, a "
            "part of one by its full name, or a list of several",
        ),
        ("features,body", "freeze names 'features,body', which Net does not have; give one of"),
        ("", "freeze names '', which Net does not have; give one of features, body, head"),
        (["features", "features.9"], "freeze names 'features.9', which Net does not have"),
        (
            ["features", "body", "head"],
            "freeze leaves nothing of Net to learn; leave out its last layer (head.bias)",
        ),
    ],
)
def test_parts_that_can_not_be_frozen_are_refused(parts, words):
    with pytest.raises(MisconfigurationException, match=re.escape(words)):
        tuned.classifier(freeze=parts)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (
            "--weights=gone.pth",
            "weights gone.pth can't be read (No such file or directory); give a",
        ),
        ("--freeze=[0,layer1]", "freeze names '0', which Net does not have; give one of features"),
    ],
)
def test_mistakes_are_told_in_one_line(option, words, cli):
    said = cli(f"fit {SHAPES} --model.model=tests.support.tuned.Net", option)

    assert said.code == 1
    assert f"pyclassify: error: {words}" in said.err
