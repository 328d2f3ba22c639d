"""The exported program: the network with its preprocessing, in one file without a Python class."""

import io
import json
import pickle
import zipfile

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torchvision.models import resnet18

from pyclassify.data.transforms import Preprocess
from pyclassify.model import AlexNet, AlexNetBN
from pyclassify.module import Classifier
from pyclassify.serving.export import (
    export_program,
    load_program,
    read_checkpoint,
    read_state_dict,
)
from pyclassify.training.checkpoints import find_data_state
from tests.support import networks
from tests.support.spooled import limit_file_size

PREPROCESS = Preprocess(10, 8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def images(batch, height=12, width=12):
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)


def load(path):
    return torch.export.load(path).module()


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(model=networks.network, num_classes=4).eval()


@pytest.fixture(scope="module")
def program(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    export_program(classifier, PREPROCESS, "abcd", path)
    return load(path)


@torch.inference_mode()
def test_program_gives_the_modules_probabilities_for_any_batch(program, classifier):
    for batch in range(1, 258):
        expected = classifier(PREPROCESS(images(batch))).softmax(dim=1)

        torch.testing.assert_close(program(images(batch)), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(1, 1), (20, 24), (10, 10), (50, 200), (131, 77)])
@pytest.mark.parametrize("batch", [1, 3])
def test_program_gives_the_modules_probabilities_for_any_size(size, batch, program, classifier):
    expected = classifier(PREPROCESS(images(batch, *size))).softmax(dim=1)

    torch.testing.assert_close(program(images(batch, *size)), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("network", "num_classes", "size"),
    [(AlexNet, 10, 64), (AlexNetBN, 10, 32), (resnet18, 100, 32)],
    ids=["alex", "alex-bn", "res"],
)
def test_program_of_any_network_gives_its_evaluation_outputs(network, num_classes, size, tmp_path):
    torch.manual_seed(0)
    classifier, preprocess = Classifier(network, num_classes), Preprocess(size, size)

    export_program(classifier.train(), preprocess, (), tmp_path / "model.pt2")

    program = load(tmp_path / "model.pt2")
    for batch in (1, 5):
        expected = classifier.eval()(preprocess(images(batch))).softmax(dim=1)
        torch.testing.assert_close(program(images(batch)), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_network_in_16_bits_is_exported_in_16_bits(tmp_path):
    classifier = Classifier(model=networks.network, num_classes=4).to(torch.bfloat16).eval()

    export_program(classifier, PREPROCESS, (), tmp_path / "model.pt2")

    probabilities = load(tmp_path / "model.pt2")(images(5))
    expected = classifier(PREPROCESS(images(5)).bfloat16()).float().softmax(dim=1)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)


def test_export_does_not_change_the_network(tmp_path):
    classifier = Classifier(model=networks.network, num_classes=4).train()

    export_program(classifier, PREPROCESS, (), tmp_path / "model.pt2")

    assert classifier.training
    assert all(each.requires_grad for each in classifier.parameters())


def test_file_holds_no_pickle_but_that_of_a_tensor(classifier, tmp_path):
    export_program(classifier, PREPROCESS, (), tmp_path / "model.pt2")

    archive = zipfile.ZipFile(tmp_path / "model.pt2")
    contents = {each.filename: archive.read(each) for each in archive.infolist()}
    (example,) = (contents.pop(name) for name in [*contents] if "sample_inputs" in name)
    (images,), _ = torch.load(io.BytesIO(example), weights_only=True)
    assert images.dtype == torch.uint8
    configurations = [json.loads(contents[name]) for name in contents if "config.json" in name]
    assert len(configurations) == 2
    for configuration in configurations:
        assert not any(each["use_pickle"] for each in configuration["config"].values())
    assert [each for each in contents.values() if each.startswith((b"\x80", b"PK"))] == []


@pytest.mark.parametrize(
    ("given", "expected"), [("abcd", ["a", "b", "c", "d"]), ((), ["0", "1", "2", "3"])]
)
def test_names_of_the_classes_are_in_the_file(given, expected, classifier, tmp_path):
    assert export_program(classifier, PREPROCESS, given, tmp_path / "model.pt2") == expected

    extra = {"classes.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra["classes.json"]) == expected


def test_export_on_a_full_disk_raises_and_leaves_no_file(classifier, tmp_path):
    path = tmp_path / "model.pt2"

    # PyTorch's own writer would abort the process.
    with limit_file_size(40_000), pytest.raises(OSError, match="File too large") as caught:
        export_program(classifier, Preprocess(), (), path)

    assert (caught.value.filename, [*tmp_path.iterdir()]) == (str(path), [])


def test_missing_class_names_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"class names: 2 \(expected 3"):
        export_program(networks.network(3), PREPROCESS, ["cat", "dog"], tmp_path / "model.pt2")


class WithSpareParts(nn.Sequential):
    """Has running statistics, and a layer that only training uses, as Inception does."""

    def __init__(self, num_classes):
        pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), pool, nn.Linear(4, num_classes))
        self.register_parameter("spare", nn.Parameter(torch.zeros(2, 2)))

    def forward(self, images):
        return super().forward(images) + (self.spare.sum() if self.training else 0)


def test_program_has_the_weights_of_the_network_bit_for_bit(tmp_path):
    classifier = Classifier(WithSpareParts, num_classes=4)
    for tensor in classifier.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) * 9)

    export_program(classifier, PREPROCESS, (), tmp_path / "model.pt2")

    weights = read_state_dict(tmp_path / "model.pt2")
    assert weights.keys() == classifier.state_dict().keys()
    for name, tensor in classifier.state_dict().items():
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name], tensor)


def test_network_in_channels_last_is_exported_without_a_warning(tmp_path, recwarn):
    classifier = Classifier(AlexNetBN, num_classes=4, channels_last=True).eval()
    preprocess = Preprocess(32, 32)

    export_program(classifier, preprocess, (), tmp_path / "model.pt2")

    assert [str(warning.message) for warning in recwarn] == []
    expected = classifier(preprocess(images(2))).softmax(dim=1)
    torch.testing.assert_close(load(tmp_path / "model.pt2")(images(2)), expected)


def test_checkpoint_of_a_program_has_weights_classes_and_preprocessing(classifier, tmp_path):
    export_program(classifier, PREPROCESS, "abcd", tmp_path / "model.pt2")

    checkpoint = read_checkpoint(tmp_path / "model.pt2")

    torch.testing.assert_close(
        checkpoint["state_dict"], {**classifier.state_dict()}, atol=0, rtol=0
    )
    settings = {"resize": 10, "crop": 8, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (state,) = find_data_state(checkpoint).values()
    assert state == {"classes": ["a", "b", "c", "d"], **settings}


def test_program_without_preprocessing_is_no_checkpoint(program, tmp_path):
    exported = torch.export.export(networks.network(3), (torch.zeros(2, 3, 8, 8),))
    torch.export.save(exported, tmp_path / "model.pt2", extra_files={"classes.json": "[]"})

    with pytest.raises(MisconfigurationException, match=r"model\.pt2 .* preprocessing"):
        read_checkpoint(tmp_path / "model.pt2")


class Harmful:
    def __reduce__(self):
        return print, ("code was run",)


@pytest.mark.parametrize("read", [load_program, read_state_dict, read_checkpoint])
def test_program_with_a_python_object_is_not_unpickled(read, classifier, tmp_path, capsys):
    export_program(classifier, PREPROCESS, (), tmp_path / "model.pt2")
    content = io.BytesIO()
    torch.save((Harmful(),), content)
    with (
        zipfile.ZipFile(tmp_path / "model.pt2") as archive,
        zipfile.ZipFile(tmp_path / "harmful.pt2", "w") as harmful,
    ):
        for name in archive.namelist():
            is_example = "sample_inputs" in name
            harmful.writestr(name, content.getvalue() if is_example else archive.read(name))

    with pytest.raises(pickle.UnpicklingError):
        read(tmp_path / "harmful.pt2")

    assert "code was run" not in capsys.readouterr().out
