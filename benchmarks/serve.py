"""Images a second of `mlflow models serve` under load, over the exported program alone.

    python -m benchmarks.serve [--model URI] [--workers 2] [--threads 1]

Without --model it serves an AlexNet that was never trained, which is as fast. The program alone
runs in as many processes with as many threads, on the same bytes. The clients take their share of
this machine's processors; images per second of a processor's time leave that out.
"""

import argparse
import base64
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.parts import report
from benchmarks.parts.server import running, tree
from pyclassify.data.transforms import Preprocess
from pyclassify.model import AlexNet
from pyclassify.serving.artifact import save_model

SIDE = 32


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="its address or folder")
    parser.add_argument("--env-manager", default="local", help="uv or virtualenv: a fresh one")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--threads", type=int, default=1, help="of each worker")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--images", type=int, default=64, help="in each request")
    parser.add_argument("--kinds", nargs="+", default=["raw", "png"], choices=["raw", "png"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--json", help="a file for all figures")
    given = parser.parse_args(args)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    with contextlib.ExitStack() as stack:
        folder = given.model
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory()) + "/model"
            classes = [f"class {n}" for n in range(10)]
            save_model(folder, AlexNet(), Preprocess(), classes)
        manager = ["--env-manager", given.env_manager, "--workers", str(given.workers)]
        port, server = stack.enter_context(running(folder, *manager))
        result = {
            "workers": given.workers,
            "threads": given.threads,
            "images": given.images,
            "alone": measure_alone(folder, given),
            "served": [
                measure_served(server, port, kind, clients, given)
                for kind in given.kinds
                for clients in given.clients
            ],
        }
    for each in result["served"]:
        for figure in ("images_per_second", "images_per_processor_second"):
            each[f"{figure}_over_alone"] = round(each[figure] / result["alone"][figure], 3)
    columns = ("kind", "clients", "images_per_second", "images_per_second_over_alone", "errors")
    columns += ("p50_seconds", "p99_seconds", "clients_processors", "memory_mb")
    report.tell(
        [{key: each[key] for key in columns} for each in result["served"]], result, given.json
    )


def measure_served(server, port, kind, clients, given):
    """Load the server for a while."""
    body = make_body(kind, given.images)
    invoke(http.client.HTTPConnection("127.0.0.1", port, timeout=120), body)
    started = [threading.Event(), threading.Event()]
    seconds, errors, stop = [], [], time.monotonic() + given.seconds + 2

    def ask():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while (asked := time.monotonic()) < stop:
            try:
                invoke(connection, body)
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                errors.append(repr(error)[:200])
                connection.close()
            if started[0].is_set() and not started[1].is_set():
                seconds.append(time.monotonic() - asked)

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(2)  # to warm up
    before, memory, own = spent(server), resident(server), processor_seconds()
    begun = time.monotonic()
    started[0].set()
    time.sleep(given.seconds)
    started[1].set()
    wall = time.monotonic() - begun
    after, own = spent(server), processor_seconds() - own
    for thread in threads:
        thread.join()
    images = len(seconds) * given.images
    return {
        "kind": kind,
        "clients": clients,
        "requests_per_second": round(len(seconds) / wall, 2),
        "images_per_second": round(images / wall, 1),
        "images_per_processor_second": round(images / (after - before), 1),
        "p50_seconds": round(statistics.median(seconds), 4),
        "p99_seconds": round(float(np.quantile(seconds, 0.99)), 4),
        "memory_mb": [round(memory / 1e6), round(resident(server) / 1e6)],
        "clients_processors": round(own / wall, 3),
        "errors": len(errors),
        "first_error": errors[:1],
    }


def make_body(kind, count):
    generator = np.random.default_rng(0)
    texts = []
    for _ in range(count):
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        if kind == "raw":
            text = base64.b64encode(pixels.tobytes()).decode()
            texts.append(f"data:application/octet-stream;shape={SIDE}x{SIDE}x3;base64,{text}")
        else:
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            texts.append(base64.b64encode(content.getvalue()).decode())
    return json.dumps({"inputs": texts}).encode()


def invoke(connection, body):
    connection.request("POST", "/invocations", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(content.decode())
    return content


def measure_alone(folder, given):
    """Run the program in as many processes as the server has, at once."""
    context = multiprocessing.get_context("spawn")
    seconds = min(given.seconds, 20)
    job = (str(Path(folder, "artifacts", "program.pt2")), given.images, given.threads, seconds)
    with context.Pool(given.workers) as pool:
        found = pool.starmap(run_alone, [job] * given.workers, chunksize=1)
    return {
        "images_per_second": round(sum(images / wall for images, wall, _ in found), 1),
        "images_per_processor_second": round(
            sum(images for images, _, _ in found) / sum(spent for *_, spent in found), 1
        ),
    }


def run_alone(path, batch, threads, seconds):
    torch.set_num_threads(threads)
    program = torch.export.load(path).module()
    images = torch.randint(256, (batch, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.inference_mode():
        for _ in range(5):
            program(images)
        count, spent, begun = 0, processor_seconds(), time.monotonic()
        while time.monotonic() < begun + seconds:
            program(images)
            count += batch
    return count, time.monotonic() - begun, processor_seconds() - spent


def processor_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def spent(server):
    return sum(sum(each.cpu_times()[:2]) for each in tree(server))


def resident(server):
    return sum(each.memory_info().rss for each in tree(server))


if __name__ == "__main__":
    main()
