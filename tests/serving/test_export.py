"""The exported program: the network with its preprocessing, in one file without a Python class."""

import json
import zipfile

import pytest
import torch
from torchvision.models import resnet18

from pyclassify.data.transforms import Preprocess
from pyclassify.model import AlexNet, AlexNetBN
from pyclassify.module import Classifier
from pyclassify.serving.export import export_program
from tests.support import networks

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
    path = tmp_path_factory.mktemp("program") / "program.pt2"
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

    export_program(classifier.train(), preprocess, (), tmp_path / "program.pt2")

    program = load(tmp_path / "program.pt2")
    for batch in (1, 5):
        expected = classifier.eval()(preprocess(images(batch))).softmax(dim=1)
        torch.testing.assert_close(program(images(batch)), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_network_in_16_bits_is_exported_in_16_bits(tmp_path):
    classifier = Classifier(model=networks.network, num_classes=4).to(torch.bfloat16).eval()

    export_program(classifier, PREPROCESS, (), tmp_path / "program.pt2")

    probabilities = load(tmp_path / "program.pt2")(images(5))
    expected = classifier(PREPROCESS(images(5)).bfloat16()).float().softmax(dim=1)
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)


def test_export_does_not_change_the_network(tmp_path):
    classifier = Classifier(model=networks.network, num_classes=4).train()

    export_program(classifier, PREPROCESS, (), tmp_path / "program.pt2")

    assert classifier.training
    assert all(each.requires_grad for each in classifier.parameters())


def test_file_holds_no_pickle(classifier, tmp_path):
    export_program(classifier, PREPROCESS, (), tmp_path / "program.pt2")

    archive = zipfile.ZipFile(tmp_path / "program.pt2")
    contents = {each.filename: archive.read(each) for each in archive.infolist()}
    configurations = [json.loads(contents[name]) for name in contents if "config.json" in name]
    assert len(configurations) == 2
    for configuration in configurations:
        assert not any(each["use_pickle"] for each in configuration["config"].values())
    assert [each for each in contents.values() if each.startswith((b"\x80", b"PK"))] == []


@pytest.mark.parametrize(
    ("given", "expected"), [("abcd", ["a", "b", "c", "d"]), ((), ["0", "1", "2", "3"])]
)
def test_names_of_the_classes_are_in_the_file(given, expected, classifier, tmp_path):
    assert export_program(classifier, PREPROCESS, given, tmp_path / "program.pt2") == expected

    extra = {"classes.json": ""}
    torch.export.load(tmp_path / "program.pt2", extra_files=extra)
    assert json.loads(extra["classes.json"]) == expected


def test_missing_class_names_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"class names: 2 \(expected 3"):
        export_program(networks.network(3), PREPROCESS, ["cat", "dog"], tmp_path / "program.pt2")
