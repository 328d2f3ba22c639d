"""The endpoint in an environment made of the model's own requirements."""

import os
import shutil
import sys
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import requests

from benchmarks.fuzz_requests import save_tiny_model
from benchmarks.parts.server import running
from pyclassify.serving.artifact import _make_example
from tests.support.required import program

pytestmark = pytest.mark.environment


@pytest.fixture
def environments(tmp_path):
    yield tmp_path / "envs"
    shutil.rmtree(tmp_path / "envs", ignore_errors=True)  # 0.4 GB


def test_model_is_served_in_an_environment_of_its_own_requirements(
    environments, tmp_path, monkeypatch
):
    program("uv", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(environments))
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    save_tiny_model(tmp_path / "model")
    expected = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(
        pd.DataFrame({"image": [_make_example()]})
    )

    with running(tmp_path / "model", "--env-manager", "uv") as (port, _):
        answer = requests.post(
            f"http://127.0.0.1:{port}/invocations", json={"inputs": [_make_example()]}
        ).json()

    assert answer["predictions"][0]["classes"] == expected[0]["classes"]
    assert answer["predictions"][0]["probabilities"] == pytest.approx(
        expected[0]["probabilities"], abs=1e-6
    )
    installed = {each.name for each in environments.glob("*/lib/python*/site-packages/*")}
    assert "onnxruntime" in installed
    assert not {"pyclassify", "lightning", "torch", "torchvision"} & installed
