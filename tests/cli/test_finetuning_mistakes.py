"""Files of weights that do not fit, and parts that a network does not have."""

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
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
                "are of another network: 10 of 11 tensors are missing or have another shape "
                "(features.1.weight is not in the file, 4x3x3x3 in the network, features.1.bias is "
                "not in the file, 4 in the network, features.2.weight is not in the file, 4 in the "
                "network and 7 more); the file has conv1.weight, bn1.weight, bn1.bias and 119 "
                "more; give a file with weights of Net, or the file's network by --model.model"
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


def zipped(name):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(name, "")
    return content.getvalue()


def tarred():
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"))
    return content.getvalue()


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


# What a file holds, and what its error has to name besides the file.
OTHER_FILES = {
    "missing": (None, ["No such file or directory", "torch.save", ".safetensors"]),
    # the form of these messages
    "empty": (
        b"",
        ["weights w.pth is empty; give a state dict or a checkpoint of torch.save, or a .safeten"],
    ),
    "a page": (b"<!DOCTYPE html><html>404</html>", ["web page", "torch.save"]),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
    "compressed": (gzip.compress(saved(tuned.state())), ["gzip"]),
    "zip": (zipped("w.pth"), ["zip"]),
    "TorchScript": (zipped("w/constants.pkl"), ["TorchScript"]),
    "tar": (tarred(), ["tar archive"]),
    "JSON": (b'{"weight_map": {}}', ["JSON"]),
    "text": (b"weights", ["torch.save"]),
    "cut": (saved(tuned.state())[:2000], ["damaged"]),
    "cut safetensors": (safetensors.torch.save(tuned.state())[:1000], ["damaged"]),
    "a whole network": (saved(tuned.Net(2)), ["tests.support.tuned.Net", "model.state_dict()"]),
    "a pickled network": (pickle.dumps(tuned.Net(2)), ["tensors", "torch.save"]),
    "other keys": (saved({"epoch": 3}), ["no named tensors", "torch.save"]),
}


@pytest.mark.parametrize("kind", OTHER_FILES)
def test_file_of_another_kind_is_refused(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, facts = OTHER_FILES[kind]
    if content is not None:
        Path("w.pth").write_bytes(content)

    with pytest.raises(MisconfigurationException) as refused:
        finetuning.load_weights(tuned.Net(4), 4, "w.pth")

    assert mentions(str(refused.value), "weights w.pth ", *facts)
    assert "\n" not in str(refused.value)


def test_folder_in_place_of_weights_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="Is a directory"):
        finetuning.load_weights(tuned.Net(4), 4, str(tmp_path))


@pytest.mark.parametrize("content", [{}, [torch.ones(2)], {"epoch": 3}, torch.ones(2)])
def test_file_without_named_tensors_is_refused(content, tmp_path):
    file = tuned.write(tmp_path / "w.pth", content)

    with pytest.raises(MisconfigurationException, match=r"weights .+w\.pth .*no named tensors"):
        finetuning.load_weights(tuned.Net(4), 4, file)


@pytest.mark.parametrize(
    ("frozen", "facts"),
    [
        (
            "feature",
            [
                # the form of this message
                "invalid freeze: Net has no module or parameter 'feature' (expected one of "
                "features, body, head, the full name of a module inside one of them, or a list of "
                "several)"
            ],
        ),
        ("features,body", ["'features,body'", "Net", "features, body, head"]),
        ("", ["''", "Net", "features, body, head"]),
        (["features", "features.9"], ["'features.9'", "Net"]),
        (["features", "body", "head"], ["Net", "last layer", "head.bias"]),
    ],
)
def test_freeze_of_missing_or_all_modules_raises(frozen, facts):
    with pytest.raises(MisconfigurationException, match=r"\bfreeze\b") as refused:
        tuned.classifier(freeze=frozen)

    assert mentions(str(refused.value), *facts)


@pytest.mark.parametrize(
    ("option", "code", "facts"),
    [
        ("--weights=gone.pth", 1, ["weights gone.pth", "No such file or directory"]),
        ("--freeze=[0,layer1]", 2, ["freeze", "'0'", "Net", "features"]),
    ],
)
def test_fit_with_invalid_weights_or_parts_reports_them_in_one_line(option, code, facts, cli):
    done = cli(f"fit {SHAPES} --model.model=tests.support.tuned.Net", option)

    assert done.code == code
    (line,) = (each for each in done.err.splitlines() if each.startswith("pyclassify: error: "))
    assert mentions(line, *facts)
