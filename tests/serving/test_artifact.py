"""The served model as a folder: its files, its requirements, and predictions without a server."""

import json
import os
import re
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from mlflow.models import Model
from mlflow.pyfunc.scoring_server import invocations
from torchvision.models import resnet18

from benchmarks.fuzz_requests import CLASSES, save_tiny_model
from pyclassify.data.transforms import Preprocess
from pyclassify.module import Classifier
from pyclassify.serving.artifact import save_model
from tests.support import networks, processes, required
from tests.support.images import encode, file_of
from tests.support.waiting import wait_until

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
PICTURE = encode(file_of(PIXELS))
TABLE = pd.DataFrame({"image": [PICTURE, PICTURE]})
PROGRAM = "artifacts/model.pt2"

WITHOUT = """
import json, pickle, sys
for missing in ("pyclassify", "lightning", "torchvision", "torchmetrics"):
    sys.modules[missing] = None
import mlflow, pandas
def refuse(*args, **options):
    raise AssertionError("something is unpickled")
"""
AS_FUNCTION = f"""{WITHOUT}
pickle.load, pickle.loads = refuse, refuse
for missing in ("torch", "onnx", "onnxscript"):
    sys.modules[missing] = None
model = mlflow.pyfunc.load_model(sys.argv[1])
json.dump(model.predict(pandas.DataFrame({{"image": [sys.argv[2]]}})), sys.stdout)
"""
AS_NETWORK = f"""{WITHOUT}
import torch
load, pickle.load, pickle.loads = torch.load, refuse, refuse
torch.load = lambda file, **how: load(file, **how) if how["weights_only"] else refuse()
network = mlflow.pytorch.load_model(sys.argv[1])
json.dump(network(torch.zeros(3, 3, 9, 7, dtype=torch.uint8)).tolist(), sys.stdout)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artifact") / "model"
    save_tiny_model(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return mlflow.pyfunc.load_model(str(folder))


def test_model_needs_neither_pyclassify_nor_torch_nor_pickle(folder, model, tmp_path):
    done = processes.run("-c", AS_FUNCTION, folder, PICTURE, cwd=tmp_path, fresh=True)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == model.predict(TABLE[:1])


def test_model_is_a_network_of_pytorch_without_pyclassify_and_pickle(folder, tmp_path):
    env = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    done = processes.run("-c", AS_NETWORK, folder, cwd=tmp_path, fresh=True, env=env)

    assert done.returncode == 0, done.stderr
    program = torch.export.load(folder / PROGRAM).module()
    expected = program(torch.zeros(3, 3, 9, 7, dtype=torch.uint8))
    assert json.loads(done.stdout) == expected.tolist()


def test_flavors_share_one_copy_of_the_network(folder):
    flavors = yaml.safe_load((folder / "MLmodel").read_text())["flavors"]

    assert flavors["pytorch"]["model_data"] == str(Path(PROGRAM).parent)
    assert flavors["python_function"]["artifacts"]["program"]["path"] == PROGRAM
    assert [each.name for each in folder.rglob("*.pt2")] == [Path(PROGRAM).name]


def test_model_records_the_ids_that_it_is_given(tmp_path):
    given = {"run_id": "1f" * 16, "model_id": "m-1", "model_uuid": "m-1", "artifact_path": "there"}
    network, preprocess = networks.network(3), Preprocess(8, 8)

    save_model(tmp_path / "model", network, preprocess, origin=Model(**given))

    recorded = yaml.safe_load((tmp_path / "model" / "MLmodel").read_text())
    assert {name: recorded[name] for name in given} == given


def test_requirements_are_the_pins_for_any_machine(folder):
    needed = (folder / "requirements.txt").read_text().split()
    pinned = required.versions("requirements.txt")

    assert needed == [
        f"{name}=={pinned[name]}"
        for name in ("mlflow-skinny", "numpy", "onnxruntime", "pandas", "pillow", "uvicorn")
    ]


def test_model_has_files_of_readable_kinds_alone(folder):
    files = sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file())

    assert {Path(each).suffix for each in files} <= {
        *("", ".json", ".onnx", ".pt2", ".py", ".txt", ".yaml")
    }
    assert PROGRAM in files


def test_signature_has_inputs_outputs_and_top_k(folder):
    signature = yaml.safe_load((folder / "MLmodel").read_text())["signature"]

    assert [each["name"] for each in json.loads(signature["inputs"])] == ["image"]
    assert [each["name"] for each in json.loads(signature["outputs"])] == [
        "classes",
        "probabilities",
    ]
    assert json.loads(signature["params"])[0]["name"] == "top_k"


def test_prediction_is_the_same_alone_and_among_others(model):
    small = encode(file_of(np.zeros((5, 5, 3), np.uint8)))
    among = pd.DataFrame({"image": [small, PICTURE, small, PICTURE]})

    answers = model.predict(among, {"top_k": len(CLASSES)})

    alone = model.predict(TABLE[:1], {"top_k": len(CLASSES)})[0]
    for answer in (answers[1], answers[3]):
        assert answer["classes"] == alone["classes"]
        assert answer["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
    assert answers[0] != answers[1]


def test_any_network_with_any_number_of_classes_is_served(tmp_path):
    torch.manual_seed(0)
    classifier, preprocess = Classifier(resnet18, num_classes=100).eval(), Preprocess(32, 32)
    save_model(tmp_path / "model", classifier, preprocess)
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))

    answer = model.predict(TABLE[:1], {"top_k": 100})[0]

    pixels = torch.from_numpy(PIXELS).permute(2, 0, 1)[None]
    values, labels = classifier(preprocess(pixels)).softmax(dim=1)[0].sort(descending=True)
    assert answer["classes"] == [str(int(label)) for label in labels]
    assert answer["probabilities"] == pytest.approx(values.tolist(), abs=1e-5)


def test_more_images_than_a_batch_are_all_classified(folder):
    roomy = mlflow.pyfunc.load_model(str(folder), model_config={"max_images": 300})

    answers = roomy.predict(pd.DataFrame({"image": [PICTURE] * 257}))

    assert [answer["classes"] for answer in answers] == [answers[0]["classes"]] * 257


def test_predictions_are_in_order_however_few_pixels_are_pending(model, monkeypatch):
    small = encode(file_of(np.zeros((5, 5, 3), np.uint8)))
    among = pd.DataFrame({"image": [small, PICTURE, small, small, PICTURE, small]})
    answers = model.predict(among)
    code = type(model.unwrap_python_model()).predict.__globals__  # of the model's own copy
    monkeypatch.setitem(code, "_MAX_PENDING_PIXELS", PIXELS.size // 3 - 1)

    for answer, known in zip(model.predict(among), answers, strict=True):
        assert answer["classes"] == known["classes"]
        assert answer["probabilities"] == pytest.approx(known["probabilities"], abs=1e-5)


class Slow:
    """A network that returns the first value of each image once it may; keeps its batches."""

    def __init__(self):
        self.batches, self.is_running, self.may_run = [], threading.Event(), threading.Event()

    def classify(self, images):
        self.is_running.set()
        self.may_run.wait()
        self.batches.append(images.shape)
        if images.max() == 255:
            raise MemoryError
        return images[:, :, 0, 0].astype(np.float32)


def run_together(runner, network, requests):
    """Classify requests that wait while the first one runs; returns their results."""
    with ThreadPoolExecutor(len(requests)) as threads:
        futures = []
        for request in requests:
            futures.append(threads.submit(runner.classify, request))
            network.is_running.wait()
            wait_until(lambda: runner._thread._work_queue.qsize() == len(futures) - 1, "queued")
        network.may_run.set()
        return futures


def make_request(value, count, side=4):
    return np.full((count, 3, side, side), value, np.uint8)


def test_requests_that_wait_are_answered_in_one_batch_each_with_its_own_images(model):
    network = Slow()
    runner = type(model.unwrap_python_model().runner)(network)
    requests = [make_request(*each) for each in [(1, 1), (2, 2), (3, 1, 6), (4, 3), (5, 127)]]

    futures = run_together(runner, network, requests)

    for future, request in zip(futures, requests, strict=True):
        assert (future.result() == request[:, :, 0, 0]).all()
    # the first, those of its size up to 128 images, and the others
    assert network.batches == [(1, 3, 4, 4), (5, 3, 4, 4), (1, 3, 6, 6), (127, 3, 4, 4)]


def test_error_of_a_batch_is_raised_for_its_requests_alone(model):
    network = Slow()
    runner = type(model.unwrap_python_model().runner)(network)

    first, second, third = run_together(
        runner, network, [make_request(1, 1), make_request(255, 1), make_request(2, 1, 6)]
    )

    assert first.result()[0, 0] == 1
    with pytest.raises(MemoryError):
        second.result()
    assert third.result()[0, 0] == 2


def test_large_image_among_small_ones_takes_only_its_own_memory(model):
    body = json.dumps({"inputs": [PICTURE] * 19 + ["A" * 4_000_000]}).encode()
    schema = model.metadata.get_input_schema()
    tracemalloc.start()

    with pytest.raises(mlflow.MlflowException, match=r"^image 19 .*JPEG"):
        invocations(body, "application/json", model, schema)

    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def test_limits_can_be_set_when_the_model_is_loaded(folder):
    strict = mlflow.pyfunc.load_model(str(folder), model_config={"max_images": 1})

    with pytest.raises(mlflow.MlflowException, match=r"images .*\b2 .* 1 to 1\b"):
        strict.predict(TABLE)


def test_mlflow_models_predict_classifies_a_json_file(folder, model, tmp_path):
    (tmp_path / "in.json").write_text(json.dumps({"inputs": [PICTURE], "params": {"top_k": 3}}))
    command = ["-m", "mlflow", "models", "predict", "--env-manager", "local"]
    files = ["--input-path", "in.json", "--output-path", "out.json", "--content-type", "json"]
    done = processes.run(*command, "--model-uri", folder, *files, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    answered = json.loads((tmp_path / "out.json").read_text())
    assert answered == {"predictions": model.predict(TABLE[:1], {"top_k": 3})}


def test_requirements_leave_out_local_versions(monkeypatch):
    from pyclassify.serving import artifact

    monkeypatch.setattr(artifact, "version", lambda name: "2.15.0+cu130")

    assert all(
        re.fullmatch(r"[\w-]+==2\.15\.0", each) for each in artifact._list_requirements("torch")
    )
