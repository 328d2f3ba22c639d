"""The endpoint of `mlflow models serve`, for images and for invalid requests."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests
import torch

from benchmarks.fuzz_requests import CLASSES, save_tiny_model, send_requests
from benchmarks.parts.server import running
from tests.support.images import encode, file_of, raw
from tests.support.phrases import mentions

DRAW = np.random.default_rng(0)
PICTURES = [DRAW.integers(0, 256, (*size, 3), dtype=np.uint8) for size in [(20, 24), (9, 9)] * 2]
TEXTS = [encode(file_of(each)) for each in PICTURES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "model"
    save_tiny_model(folder, {"max_images": 20, "max_pixels": 2000})
    return folder


@pytest.fixture(scope="module")
def address(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        with running(folder, "--env-manager", "local") as (port, _):
            yield f"127.0.0.1:{port}"


@pytest.fixture
def ask(address):
    """Post a request, and return the status and the content."""

    def ask(body, content_type="application/json"):
        body = body if isinstance(body, str) else json.dumps(body)
        answer = requests.post(
            f"http://{address}/invocations", body, headers={"Content-Type": content_type}
        )
        return answer.status_code, answer.json()

    return ask


@pytest.fixture(scope="module")
def expected(folder):
    """The probabilities that the program gives for each image alone: float [10]."""
    program = torch.export.load(folder / "artifacts" / "model.pt2").module()
    batches = [torch.from_numpy(each.copy()).permute(2, 0, 1)[None] for each in PICTURES]
    return [program(batch)[0] for batch in batches]


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": TEXTS},
        {"inputs": [raw(each) for each in PICTURES]},
        {"inputs": {"image": TEXTS}},
        {"inputs": [{"image": each} for each in TEXTS]},
        {"instances": TEXTS},
        {"dataframe_split": {"columns": ["image"], "data": [[each] for each in TEXTS]}},
        {"dataframe_records": [{"image": each, "note": "dropped"} for each in TEXTS]},
    ],
    ids=["files", "raw", "named", "rows", "instances", "split", "records"],
)
def test_images_of_any_size_are_classified_in_order_in_every_form(body, ask, expected):
    status, answer = ask({**body, "params": {"top_k": 10}})

    assert status == 200
    assert len(answer["predictions"]) == len(TEXTS)
    for given, probabilities in zip(answer["predictions"], expected, strict=True):
        values, labels = probabilities.sort(descending=True)
        assert given["classes"] == [CLASSES[label] for label in labels]
        assert given["probabilities"] == pytest.approx(values.tolist(), abs=1e-5)


def test_concurrent_clients_get_their_own_predictions(ask):
    bodies = [{"inputs": [text] * count} for text in TEXTS for count in (1, 2, 5)] * 4
    alone = [ask(body) for body in bodies]

    with ThreadPoolExecutor(8) as clients:
        together = list(clients.map(ask, bodies))

    for (_, answer), (_, expected) in zip(together, alone, strict=True):
        for given, right in zip(answer["predictions"], expected["predictions"], strict=True):
            assert given["classes"] == right["classes"]


@pytest.mark.parametrize(("params", "count"), [({}, 5), ({"top_k": 1}, 1), ({"top_k": None}, 5)])
def test_top_k_is_the_number_of_classes(params, count, ask):
    _, answer = ask({"inputs": TEXTS[:1], "params": params})

    assert len(answer["predictions"][0]["classes"]) == count


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        # the forms of these messages
        (
            {"inputs": [TEXTS[0], "YWJj"]},
            ["image 1 does not decode as an image (not a supported image format: the"],
        ),
        ({"inputs": [TEXTS[0], None]}, ["image 1 is null (expected a string: "]),
        ({"inputs": TEXTS[:1] * 21}, ["images in the request: 21 (expected 1 to 20"]),
        (
            {"inputs": TEXTS[0]},
            ['has no column "image"; send {"inputs": [BASE64, ...'],
        ),
        (
            {"inputs": TEXTS[:1], "params": {"top_k": 0}},
            ["invalid top_k: 0 (expected 1 to 10, the num"],
        ),
        # of the same kinds, or short
        ({"inputs": [*TEXTS, "cat.png"]}, ["image 4", "base64", "letters, digits, + and /"]),
        ({"inputs": [TEXTS[0][:400]]}, ["image 0", "decode as an image ("]),
        ({"dataframe_records": [{"image": TEXTS[0]}, {}]}, ["image 1", "null"]),
        ({"inputs": [encode(file_of(np.zeros((50, 50), np.uint8)))]}, ["image 0", "50 x 50"]),
        ({"inputs": [raw(PICTURES[0], "9x9x3")]}, ["image 0", "1440 bytes", "9x9x3"]),
        ({"inputs": []}, ["images", 0, "1 to 20"]),
        ({"dataframe_split": {"columns": ["image"], "data": []}}, ["images", 0, "1 to 20"]),
        ({"dataframe_records": [{"photo": TEXTS[0]}]}, ['no column "image"']),
        ({"prompt": TEXTS[0]}, ['no column "image"']),
        ({"inputs": TEXTS[:1], "params": {"top_k": -1}}, ["top_k", "-1", "1 to 10"]),
        ({"inputs": TEXTS[:1], "params": {"top_k": 11}}, ["top_k", "11", "1 to 10"]),
    ],
    ids=lambda value: repr(value)[-30:],
)
def test_invalid_request_is_an_error_of_one_line(body, facts, ask):
    status, answer = ask(body)

    assert status == 400
    assert mentions(answer["message"], *facts)
    assert "\n" not in answer["message"]
    assert answer.keys() == {"error_code", "message", "sqlstate", "error_class"}
    assert len(answer["message"]) < 300


@pytest.mark.parametrize(
    "body", ["", "{", "[]", {}, {"inputs": TEXTS[:1], "params": {"top_k": "a"}}, {"inputs": None}]
)
def test_request_that_mlflow_rejects_is_a_400(body, ask):
    status, answer = ask(body)

    assert status == 400
    assert "stack_trace" not in answer


def test_malformed_requests_get_a_4xx_and_the_server_survives(address):
    result = send_requests(address, count=1000, seed=1)

    assert result["wrong"] == []
    assert result["alive"]
    assert sum("200" in kind for kind in result["responses"]) >= 5
