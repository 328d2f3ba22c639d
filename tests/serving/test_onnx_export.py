"""The ONNX file of a model: the same predictions, the program's weights, and torch without it."""

import json
import sys

import mlflow
import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from pyclassify.data.transforms import Preprocess
from pyclassify.model import AlexNetBN
from pyclassify.serving.artifact import save_model
from pyclassify.serving.export import export_program
from pyclassify.serving.onnx_export import OnnxExportError, export_onnx
from tests.support import networks
from tests.support.images import encode, file_of
from tests.support.phrases import mentions

CLASSES = [f"class {label}" for label in range(10)]
DRAW = np.random.default_rng(0)


def trained(network):
    """A network whose batch normalization has statistics of its own."""
    torch.manual_seed(0)
    with torch.no_grad():
        network.train()(torch.randn(16, 3, 32, 32))
    return network.eval()


@pytest.fixture(scope="module", params=[AlexNetBN, resnet18])
def exported(request, tmp_path_factory):
    """A program and its ONNX file."""
    program = tmp_path_factory.mktemp("onnx") / "model.pt2"
    network = trained(request.param(num_classes=10))
    export_program(network, Preprocess(36, 32), CLASSES, program)
    return program, export_onnx(program)


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 3, 32, 32), (2, 3, 90, 51), (130, 3, 9, 9)])
def test_probabilities_are_those_of_the_program(exported, shape):
    program, path = exported
    images = DRAW.integers(0, 256, shape, dtype=np.uint8)

    (found,) = onnxruntime.InferenceSession(path).run(None, {"images": images})

    expected = torch.export.load(program).module()(torch.from_numpy(images)).detach()
    assert found == pytest.approx(expected.numpy(), abs=1e-5)
    assert found.dtype == np.float32


def test_weights_lie_once_in_the_program(exported):
    program, path = exported
    model = onnx.load(path, load_external_data=False)
    places = [
        {each.key: each.value for each in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    ]

    assert places
    assert {place["location"] for place in places} == {program.name}
    inside = path.stat().st_size / program.stat().st_size
    # A convolution that absorbs its batch normalization has weights of its own.
    assert inside < 1.1
    assert sum(int(place["length"]) for place in places) > 5000


def test_linear_network_of_many_weights_makes_a_small_file(tmp_path):
    program = tmp_path / "model.pt2"
    export_program(networks.network(2000), Preprocess(8, 8), (), program)

    path = export_onnx(program)

    assert program.stat().st_size > 1.5e6
    assert path.stat().st_size < 1e5


def test_file_has_the_names_of_the_classes(exported):
    metadata = onnxruntime.InferenceSession(exported[1]).get_modelmeta().custom_metadata_map

    assert json.loads(metadata["classes"]) == CLASSES


@pytest.mark.parametrize(
    ("network", "facts"),
    [
        # ONNX Runtime has no kernels of this type for CPUs.
        (lambda: networks.network(3).bfloat16(), ["ONNX Runtime can't serve"]),
        (lambda: nn.Sequential(networks.network(3), _Invalid()), ["differ by nan", "1e-05"]),
    ],
    ids=["bfloat16", "nan"],
)
def test_network_that_onnx_runtime_can_not_serve_is_an_error_and_no_file(network, facts, tmp_path):
    program = tmp_path / "model.pt2"
    export_program(network(), Preprocess(8, 8), (), program)

    with pytest.raises(OnnxExportError) as raised:
        export_onnx(program)

    assert mentions(str(raised.value), *facts)
    assert [each.name for each in tmp_path.iterdir()] == [program.name]


class _Invalid(nn.Module):
    def forward(self, logits):
        return logits * float("nan")


def requirements(folder):
    return {line.partition("==")[0] for line in (folder / "requirements.txt").read_text().split()}


def predict(folder):
    table = pd.DataFrame({"image": [encode(file_of(np.zeros((5, 5, 3), np.uint8)))]})
    return mlflow.pyfunc.load_model(str(folder)).predict(table)


def test_bfloat16_network_is_served_by_torch_with_a_warning(tmp_path):
    network = networks.network(3).bfloat16()
    with pytest.warns(UserWarning, match="served by torch: ONNX Runtime can't"):
        save_model(tmp_path / "model", network, Preprocess(8, 8))

    assert "torch" in requirements(tmp_path / "model")
    assert "onnxruntime" not in requirements(tmp_path / "model")
    assert len(predict(tmp_path / "model")[0]["classes"]) == 3


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_without_an_onnx_package_a_line_says_that_torch_serves_the_model(
    missing, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(sys.modules, missing, None)
    with caplog.at_level("INFO"):
        save_model(tmp_path / "model", networks.network(3), Preprocess(8, 8))

    (line,) = (each for each in caplog.messages if "torch" in each)
    assert mentions(line, missing, f"pip install {missing}")
    assert "torch" in requirements(tmp_path / "model")
    assert not list(tmp_path.rglob("*.onnx"))


def test_environment_with_torch_alone_serves_the_same(tmp_path, monkeypatch):
    save_model(tmp_path / "model", networks.network(3), Preprocess(8, 8))
    (expected,) = predict(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    (found,) = predict(tmp_path / "model")

    assert found["classes"] == expected["classes"]
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
