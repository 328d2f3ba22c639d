"""Send odd and broken requests to a served model, and tell what it answers.

    python -m benchmarks.odd_requests [--count 10000] [--seed 0] [--url http://HOST:PORT]

Without --url it serves a tiny network of its own. What MLflow's server says before the model is
asked is told apart; behind the proxy of docs/serving.md, to be named by --url, nothing must be.
"""

import argparse
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

from benchmarks.parts.server import running
from pyclassify.data.transforms import Preprocess
from pyclassify.serving.artifact import save_model

JSON = "application/json"
CLASSES = list("abcdefghij")
LIMITS = {"max_images": 20, "max_pixels": 100_000}
WORDS = [None, True, 0, -1, 1.5, 1e308, "", "a", "NaN", "\x00", "é", [], {}, [[]], {"b64": "aaaa"}]
MLFLOWS = ("Failed to predict data", "Invalid input.", "The input must be")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--url", help="of a proxy before a server of some ten classes")
    given = parser.parse_args()
    with ExitStack() as stack:
        if given.url is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory()) + "/model"
            save_tiny_model(folder)
            port, _ = stack.enter_context(running(folder, "--env-manager", "local"))
            place = f"127.0.0.1:{port}"
        else:
            place = urllib.parse.urlparse(given.url).netloc
        result = bombard(place, given.count, given.seed, behind_proxy=given.url is not None)
    result["wrong"] = result["wrong"][:10]
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def save_tiny_model(folder, limits=LIMITS):
    """A network of ten classes that is as small as they get."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, len(CLASSES)))
    save_model(folder, network, Preprocess(10, 8), CLASSES, limits)


def bombard(place, count, seed, behind_proxy=False):
    """Send requests and judge the answers.

    Args:
        place: The server's host and port.
        count: How many requests.
        seed: Decides which.
        behind_proxy: Whether a proxy mends what MLflow's server says by itself.

    Returns:
        How many answers of each kind there were, and the requests behind what must not be.
    """
    draw = random.Random(seed)
    seen, wrong = collections.Counter(), []
    good = json.dumps({"inputs": [picture(random.Random(0))]}).encode()
    expected = ask(place, good, JSON)
    for number in range(count):
        kind, body, content_type = request(draw)
        status, text = ask(place, body, content_type)
        faults = judge(status, text)
        own = kind.startswith("mlflow") and not behind_proxy
        seen[f"{kind}: {status}"] += 1
        if faults and own:
            seen[f"{kind}: {', '.join(faults)}"] += 1
        elif faults:
            wrong.append({"number": number, "kind": kind, "faults": faults, "answer": text[:300]})
    return {
        "requests": count,
        "answers": dict(sorted(seen.items())),
        "wrong": wrong,
        "alive": expected[0] == 200 and ask(place, good, JSON) == expected,
    }


def ask(place, body, content_type):
    connection = http.client.HTTPConnection(place, timeout=60)
    headers = {} if content_type is None else {"Content-Type": content_type}
    connection.request("POST", "/invocations", body, headers)
    answer = connection.getresponse()
    text = answer.read().decode("utf-8", "replace")
    connection.close()
    return answer.status, text


def judge(status, text):
    """What is wrong with an answer."""
    faults = []
    if status >= 500:
        faults.append("5xx")
    if "Traceback" in text or 'File "' in text:
        faults.append("trace")
    if re.search(r"site-packages|/[\w.-]+\.py\b|/tmp/", text):
        faults.append("path")
    if 400 <= status < 500 and text.startswith("{"):
        message = json.loads(text).get("message", "")
        ours = not message.startswith(MLFLOWS)
        if ours and (len(message) > 500 or "\n" in message):
            faults.append("long")
    return faults


def request(draw):
    """Draw a request: its kind, body and content type."""
    kinds = [whole, whole, odd_images, odd_images, odd_shapes, odd_params, broken_json, noise]
    return draw.choice([*kinds, before_the_model])(draw)


def whole(draw):
    form = draw.choice(["inputs", "instances", "split", "records", "named"])
    texts = [draw.choice([picture, raw])(draw) for _ in range(draw.randint(1, 8))]
    body = {
        "inputs": {"inputs": texts},
        "instances": {"instances": texts},
        "named": {"inputs": {"image": texts}},
        "split": {"dataframe_split": {"columns": ["image"], "data": [[each] for each in texts]}},
        "records": {"dataframe_records": [{"image": each} for each in texts]},
    }[form]
    if draw.random() < 0.5:
        body["params"] = {"top_k": draw.randint(1, 10)}
    return f"whole {form}", json.dumps(body).encode(), JSON


def odd_images(draw):
    texts = [draw.choice([picture, raw, damaged, word])(draw) for _ in range(draw.randint(0, 24))]
    form = draw.choice(["inputs", "records"])
    body = {"inputs": texts}
    if form == "records":
        body = {"dataframe_records": [{"image": each} for each in texts]}
    return f"odd images {form}", json.dumps(body).encode(), JSON


def odd_shapes(draw):
    def nest(depth):
        if depth == 0 or draw.random() < 0.3:
            return draw.choice([word, picture])(draw)
        parts = [nest(depth - 1) for _ in range(draw.randint(0, 3))]
        names = ["image", "columns", "data", "index", "b64", "shape", ""]
        return parts if draw.random() < 0.5 else {draw.choice(names): each for each in parts}

    names = ["inputs", "instances", "dataframe_split", "dataframe_records", "messages", "prompt"]
    keys = draw.choices([*names, "input", "params", "image"], k=draw.randint(0, 2))
    return "odd shapes", json.dumps({key: nest(3) for key in keys}).encode(), JSON


def odd_params(draw):
    params = word(draw)
    if draw.random() < 0.8:
        params = {draw.choice(["top_k", "k"]): draw.choice([0, -1, 11, 10**30, "3", word(draw)])}
    return "odd params", json.dumps({"inputs": [picture(draw)], "params": params}).encode(), JSON


def broken_json(draw):
    _, body, _ = whole(draw)
    changed = bytearray(body[: draw.randint(0, len(body))])
    for _ in range(draw.randint(0, 3)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return "broken JSON", bytes(changed), JSON


def noise(draw):
    return "noise", draw.randbytes(draw.randint(0, 200)), JSON


def before_the_model(draw):
    """What MLflow's server stumbles over by itself."""
    _, body, _ = whole(draw)
    return draw.choice(
        [
            ("mlflow no content type", body, None),
            ("mlflow deep JSON", b'{"inputs": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", JSON),
            ("mlflow long number", b'{"inputs": [' + b"9" * 5000 + b"]}", JSON),
            ("mlflow CSV", b"image\naaaa\n", "text/csv"),
            ("mlflow parquet", draw.randbytes(50), "application/vnd.apache.parquet"),
            ("other content type", body, draw.choice(["image/png", "", "text/plain", "a;b=c"])),
            ("other charset", body, f"{JSON}; charset=latin-1"),
        ]
    )


def word(draw):
    return draw.choice(WORDS)


def picture(draw):
    content = io.BytesIO()
    kind = draw.choice(["PNG", "JPEG", "WEBP"])
    Image.fromarray(pixels(draw)).save(content, kind)
    return base64.b64encode(content.getvalue()).decode()


def raw(draw):
    image = pixels(draw)
    height, width, _ = image.shape
    text = base64.b64encode(image.tobytes()).decode()
    return f"data:application/octet-stream;shape={height}x{width}x3;base64,{text}"


def damaged(draw):
    text = draw.choice([picture, raw])(draw)
    place = draw.randrange(len(text))
    return draw.choice(
        [text[:place], text[:place] + draw.choice("!\n=A,;") + text[place + 1 :], text[place:]]
    )


def pixels(draw):
    shape = draw.randint(1, 40), draw.randint(1, 40), 3
    return np.frombuffer(draw.randbytes(shape[0] * shape[1] * 3), np.uint8).reshape(shape)


if __name__ == "__main__":
    main()
