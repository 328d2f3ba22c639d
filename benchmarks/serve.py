"""Measure images per second of `mlflow models serve` under load, relative to the exported program.

Without --model it serves an untrained AlexNet, which is as fast. The program alone runs in as many
processes with as many threads, on the same bytes. The clients use a part of this machine's CPU
time; images per CPU second of the server exclude it.
"""

import base64
import contextlib
import http.client
import io
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.parts import report
from benchmarks.parts.command import BenchmarkParser
from benchmarks.parts.server import list_processes, running
from pyclassify.data.transforms import Preprocess
from pyclassify.model import AlexNet
from pyclassify.serving.artifact import save_model

SIDE = 32


def parse(args):
    examples = ("--workers 2 --threads 1", "--model models:/alexnet@champion --env-manager uv")
    parser = BenchmarkParser("serve", __doc__, examples)
    parser.add_argument("--model", metavar="URI", help="Serve this model.")
    parser.add_argument(
        "--env-manager",
        default="local",
        choices=["local", "uv", "virtualenv"],
        help="Serve in this environment; uv and virtualenv create a new one.",
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count(), help="Set the number of workers."
    )
    parser.add_argument("--threads", type=int, default=1, help="Set the threads per worker.")
    parser.add_argument(
        "--clients",
        type=int,
        nargs="+",
        default=[1, 8, 64],
        help="Measure with these numbers of concurrent clients.",
    )
    parser.add_argument("--images", type=int, default=64, help="Set the images per request.")
    parser.add_argument(
        "--kinds",
        nargs="+",
        default=["raw", "png"],
        choices=["raw", "png"],
        help="Send raw pixels, PNG files or both.",
    )
    parser.add_argument(
        "--seconds", type=float, default=60, help="Measure for this number of seconds."
    )
    parser.add_json_option()
    return parser.parse_args(args)


def main(args=None):
    given = parse(sys.argv[1:] if args is None else args)
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
        for figure in ("images_per_second", "images_per_cpu_second"):
            each[f"{figure}_over_alone"] = round(each[figure] / result["alone"][figure], 3)
    columns = ("kind", "clients", "images_per_second", "images_per_second_over_alone", "errors")
    columns += ("p50_seconds", "p99_seconds", "clients_cpus", "memory_mb")
    report.print_table(
        [{key: each[key] for key in columns} for each in result["served"]], result, given.json
    )


def measure_served(server, port, kind, clients, given):
    """Measure the server under load."""
    body = make_body(kind, given.images)
    invoke(http.client.HTTPConnection("127.0.0.1", port, timeout=120), body)
    started = [threading.Event(), threading.Event()]
    seconds, errors, stop = [], [], time.monotonic() + given.seconds + 2

    def send_requests():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        while (sent := time.monotonic()) < stop:
            try:
                invoke(connection, body)
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                errors.append(repr(error)[:200])
                connection.close()
            if started[0].is_set() and not started[1].is_set():
                seconds.append(time.monotonic() - sent)

    threads = [threading.Thread(target=send_requests) for _ in range(clients)]
    for thread in threads:
        thread.start()
    time.sleep(2)  # to warm up
    before, memory, own = (
        measure_cpu_seconds_of(server),
        measure_memory(server),
        measure_cpu_seconds(),
    )
    begun = time.monotonic()
    started[0].set()
    time.sleep(given.seconds)
    started[1].set()
    wall = time.monotonic() - begun
    after, own = measure_cpu_seconds_of(server), measure_cpu_seconds() - own
    for thread in threads:
        thread.join()
    images = len(seconds) * given.images
    return {
        "kind": kind,
        "clients": clients,
        "requests_per_second": round(len(seconds) / wall, 2),
        "images_per_second": round(images / wall, 1),
        "images_per_cpu_second": round(images / (after - before), 1),
        "p50_seconds": round(statistics.median(seconds), 4),
        "p99_seconds": round(float(np.quantile(seconds, 0.99)), 4),
        "memory_mb": [round(memory / 1e6), round(measure_memory(server) / 1e6)],
        "clients_cpus": round(own / wall, 3),
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
    response = connection.getresponse()
    content = response.read()
    if response.status != 200:
        raise RuntimeError(content.decode())
    return content


def measure_alone(folder, given):
    """Run the program concurrently in as many processes as the server has workers."""
    context = multiprocessing.get_context("spawn")
    seconds = min(given.seconds, 20)
    job = (str(Path(folder, "artifacts", "model.pt2")), given.images, given.threads, seconds)
    with context.Pool(given.workers) as pool:
        found = pool.starmap(run_alone, [job] * given.workers, chunksize=1)
    return {
        "images_per_second": round(sum(images / wall for images, wall, _ in found), 1),
        "images_per_cpu_second": round(
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
        count, spent, begun = 0, measure_cpu_seconds(), time.monotonic()
        while time.monotonic() < begun + seconds:
            program(images)
            count += batch
    return count, time.monotonic() - begun, measure_cpu_seconds() - spent


def measure_cpu_seconds():
    """Measure the CPU time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_cpu_seconds_of(server):
    """Measure the CPU time of a process and its descendants."""
    return sum(sum(process.cpu_times()[:2]) for process in list_processes(server))


def measure_memory(server):
    """Measure the resident memory of a process and its descendants in bytes."""
    return sum(process.memory_info().rss for process in list_processes(server))


if __name__ == "__main__":
    main()
