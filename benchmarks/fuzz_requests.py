"""Send invalid and random requests to a served model (fuzzing), and check its responses.

Without --url it serves a tiny network. Errors of MLflow's server before the model is called are
counted separately; behind the proxy of deploy/nginx-model.conf, given by --url, there must be none.
"""

import base64
import collections
import http.client
import io
import json
import random
import re
import sys
import tempfile
import urllib.parse
from contextlib import ExitStack

import numpy as np
from PIL import Image
from torch import nn

from benchmarks.parts.command import BenchmarkParser
from benchmarks.parts.server import running
from pyclassify.data.transforms import Preprocess
from pyclassify.serving.artifact import save_model

JSON = "application/json"
CLASSES = list("abcdefghij")
LIMITS = {"max_images": 20, "max_pixels": 100_000}
ODD_VALUES = [
    None,
    True,
    0,
    -1,
    1.5,
    1e308,
    "",
    "a",
    "NaN",
    "\x00",
    "é",
    [],
    {},
    [[]],
    {"b64": "aaaa"},
]
MLFLOW_MESSAGES = ("Failed to predict data", "Invalid input.", "The input must be")


def main():
    parser = BenchmarkParser("fuzz_requests", __doc__, ("--count 1000", "--url http://HOST:PORT"))
    parser.add_argument("--count", type=int, default=10_000, help="Send this number of requests.")
    parser.add_argument("--seed", type=int, default=0, help="Set the seed of the requests.")
    parser.add_argument("--url", help="Send requests to this server of a model with 10 classes.")
    args = parser.parse_args(sys.argv[1:])
    with ExitStack() as stack:
        if args.url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory()) + "/model"
            save_tiny_model(folder)
            port, _ = stack.enter_context(running(folder, "--env-manager", "local"))
            host = f"127.0.0.1:{port}"
        else:
            host = urllib.parse.urlparse(args.url).netloc
        result = send_requests(host, args.count, args.seed, behind_proxy=args.url is not None)
    result["wrong"] = result["wrong"][:10]
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def save_tiny_model(folder, limits=LIMITS):
    """Save a tiny network of ten classes as a model."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, len(CLASSES)))
    save_model(folder, network, Preprocess(10, 8), CLASSES, limits)


def send_requests(host, count, seed, behind_proxy=False):
    """Send random requests and check the responses.

    Args:
        host: The server's host and port.
        count: The number of requests.
        seed: The seed of the requests.
        behind_proxy: Whether a proxy replaces the error messages of MLflow's server.

    Returns:
        The number of responses of each kind, and the requests with wrong responses.
    """
    rng = random.Random(seed)
    seen, wrong = collections.Counter(), []
    valid = json.dumps({"inputs": [encode_image(random.Random(0))]}).encode()
    expected = post(host, valid, JSON)
    for number in range(count):
        kind, body, content_type = make_request(rng)
        status, text = post(host, body, content_type)
        faults = find_faults(status, text)
        is_mlflows = kind.startswith("mlflow") and not behind_proxy
        seen[f"{kind}: {status}"] += 1
        if faults and is_mlflows:
            seen[f"{kind}: {', '.join(faults)}"] += 1
        elif faults:
            fault = {"number": number, "kind": kind, "faults": faults, "response": text[:300]}
            wrong.append(fault)
    return {
        "requests": count,
        "responses": dict(sorted(seen.items())),
        "wrong": wrong,
        "alive": expected[0] == 200 and post(host, valid, JSON) == expected,
    }


def post(host, body, content_type):
    """Send a request; return status and text of the response."""
    connection = http.client.HTTPConnection(host, timeout=60)
    headers = {} if content_type is None else {"Content-Type": content_type}
    connection.request("POST", "/invocations", body, headers)
    response = connection.getresponse()
    text = response.read().decode("utf-8", "replace")
    connection.close()
    return response.status, text


def find_faults(status, text):
    """Find what is wrong with a response."""
    faults = []
    if status >= 500:
        faults.append("5xx")
    if "Traceback" in text or 'File "' in text:
        faults.append("trace")
    if re.search(r"site-packages|/[\w.-]+\.py\b|/tmp/", text):
        faults.append("path")
    if 400 <= status < 500 and text.startswith("{"):
        message = json.loads(text).get("message", "")
        ours = not message.startswith(MLFLOW_MESSAGES)
        if ours and (len(message) > 500 or "\n" in message):
            faults.append("long")
    return faults


def make_request(rng):
    """Make a random request: its kind, body and content type."""
    kinds = [
        *(make_valid, make_valid, make_odd_images, make_odd_images, make_odd_shapes),
        *(make_odd_params, make_broken_json, make_noise, make_error_before_model),
    ]
    return rng.choice(kinds)(rng)


def make_valid(rng):
    form = rng.choice(["inputs", "instances", "split", "records", "named"])
    texts = [rng.choice([encode_image, encode_raw])(rng) for _ in range(rng.randint(1, 8))]
    body = {
        "inputs": {"inputs": texts},
        "instances": {"instances": texts},
        "named": {"inputs": {"image": texts}},
        "split": {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
        "records": {"dataframe_records": [{"image": text} for text in texts]},
    }[form]
    if rng.random() < 0.5:
        body["params"] = {"top_k": rng.randint(1, 10)}
    return f"valid {form}", json.dumps(body).encode(), JSON


def make_odd_images(rng):
    kinds = [encode_image, encode_raw, encode_damaged, choose_odd_value]
    texts = [rng.choice(kinds)(rng) for _ in range(rng.randint(0, 24))]
    form = rng.choice(["inputs", "records"])
    body = {"inputs": texts}
    if form == "records":
        body = {"dataframe_records": [{"image": text} for text in texts]}
    return f"odd images {form}", json.dumps(body).encode(), JSON


def make_odd_shapes(rng):
    def nest(depth):
        if depth == 0 or rng.random() < 0.3:
            return rng.choice([choose_odd_value, encode_image])(rng)
        items = [nest(depth - 1) for _ in range(rng.randint(0, 3))]
        names = ["image", "columns", "data", "index", "b64", "shape", ""]
        return items if rng.random() < 0.5 else {rng.choice(names): item for item in items}

    names = ["inputs", "instances", "dataframe_split", "dataframe_records", "messages", "prompt"]
    keys = rng.choices([*names, "input", "params", "image"], k=rng.randint(0, 2))
    return "odd shapes", json.dumps({key: nest(3) for key in keys}).encode(), JSON


def make_odd_params(rng):
    params = choose_odd_value(rng)
    if rng.random() < 0.8:
        values = [0, -1, 11, 10**30, "3", choose_odd_value(rng)]
        params = {rng.choice(["top_k", "k"]): rng.choice(values)}
    body = {"inputs": [encode_image(rng)], "params": params}
    return "odd params", json.dumps(body).encode(), JSON


def make_broken_json(rng):
    _, body, _ = make_valid(rng)
    changed = bytearray(body[: rng.randint(0, len(body))])
    for _ in range(rng.randint(0, 3)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return "broken JSON", bytes(changed), JSON


def make_noise(rng):
    return "noise", rng.randbytes(rng.randint(0, 200)), JSON


def make_error_before_model(rng):
    """Make a request that fails in MLflow's server before the model is called."""
    _, body, _ = make_valid(rng)
    return rng.choice(
        [
            ("mlflow no content type", body, None),
            ("mlflow deep JSON", b'{"inputs": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", JSON),
            ("mlflow long number", b'{"inputs": [' + b"9" * 5000 + b"]}", JSON),
            ("mlflow CSV", b"image\naaaa\n", "text/csv"),
            ("mlflow parquet", rng.randbytes(50), "application/vnd.apache.parquet"),
            ("other content type", body, rng.choice(["image/png", "", "text/plain", "a;b=c"])),
            ("other charset", body, f"{JSON}; charset=latin-1"),
        ]
    )


def choose_odd_value(rng):
    return rng.choice(ODD_VALUES)


def encode_image(rng):
    content = io.BytesIO()
    kind = rng.choice(["PNG", "JPEG", "WEBP"])
    Image.fromarray(make_pixels(rng)).save(content, kind)
    return base64.b64encode(content.getvalue()).decode()


def encode_raw(rng):
    image = make_pixels(rng)
    height, width, _ = image.shape
    text = base64.b64encode(image.tobytes()).decode()
    return f"data:application/octet-stream;shape={height}x{width}x3;base64,{text}"


def encode_damaged(rng):
    text = rng.choice([encode_image, encode_raw])(rng)
    index = rng.randrange(len(text))
    changed = text[:index] + rng.choice("!\n=A,;") + text[index + 1 :]
    return rng.choice([text[:index], changed, text[index:]])


def make_pixels(rng):
    shape = rng.randint(1, 40), rng.randint(1, 40), 3
    return np.frombuffer(rng.randbytes(shape[0] * shape[1] * 3), np.uint8).reshape(shape)


if __name__ == "__main__":
    main()
