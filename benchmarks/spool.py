"""Measure the upload of a million values through a spool, and the overhead for a training.

It prints the seconds of the upload relative to `MlflowClient.log_batch` alone with the same batches
and the same server, and the memory and disk usage. For a loop that logs like an epoch of AlexNet it
prints the seconds in logging calls and the CPU seconds of all threads relative to the loop's
duration, with the server up and down.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.parts.command import BenchmarkParser
from benchmarks.parts.submitted_training import Server

NAMES = [f"metric_{number}" for number in range(10)]
BATCH_VALUES = 1000  # MLflow's limit


def points(count):
    """Generate values of ten metrics: [name, value, milliseconds, step]."""
    for step in range(count // len(NAMES)):
        yield from ([name, step / 7, 1_700_000_000_000 + step, step] for name in NAMES)


def send_bare(client, run_id, count):
    """Send values by MLflow's client, in the largest batches that it accepts."""
    from mlflow.entities import Metric

    batch = []
    started = time.perf_counter()
    for point in points(count):
        batch.append(Metric(*point))
        if len(batch) == BATCH_VALUES:
            client.log_batch(run_id, metrics=batch)
            batch = []
    return time.perf_counter() - started


def send_spooled(client, run_id, root, count):
    """Log values to a spool and upload it; return the seconds, and memory and disk in MB."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    from pyclassify.spool.records import create_from_server
    from pyclassify.spool.uploader import Uploader

    folder = create_from_server(root, client, run_id)
    spool = MlflowClient(f"spool://{root}")
    started = time.perf_counter()
    for first in range(0, count, len(NAMES)):
        step = first // len(NAMES)
        values = [Metric(name, step / 7, 1_700_000_000_000 + step, step) for name in NAMES]
        spool.log_batch(run_id, metrics=values)
    logged = time.perf_counter() - started
    before = measure_memory()
    started = time.perf_counter()
    Uploader(folder, client).upload()
    uploaded = time.perf_counter() - started
    size = sum(path.stat().st_size for path in folder.glob("*.records"))
    return {
        "logging_seconds": logged,
        "upload_seconds": uploaded,
        "memory_before_mb": before,
        "memory_after_mb": measure_memory(),
        "memory_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "disk_mb": size / 1e6,
    }


def measure_memory():
    """Measure the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def log_like_training(uri, root, seconds):
    """Log like an epoch of AlexNet: a step every 0.3 s, two values every ten steps."""
    from mlflow import MlflowClient

    from pyclassify.tracking import run

    spooled_run = run.start_run(None, None, None, uri, str(root))
    client, run_id = MlflowClient(spooled_run.spool_uri), spooled_run.run_id
    spent, step, cpu = 0.0, 0, time.process_time()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.3)  # the loop needs almost no CPU time: the rest is that of the upload
        step += 1
        if step % 10 == 0:
            started = time.perf_counter()
            client.log_metric(run_id, "train_loss", 1 / step, step=step)
            client.log_metric(run_id, "train_accuracy", 1 / step, step=step)
            spent += time.perf_counter() - started
    cpu = time.process_time() - cpu
    os.environ.pop("MLFLOW_RUN_ID", None)
    return {"logging": spent / seconds, "all_threads_cpu": cpu / seconds}


def main():
    examples = ("--points 1000000 --minutes 1", "--points 10000 --minutes 0.2")
    parser = BenchmarkParser("spool", __doc__, examples)
    parser.add_argument(
        "--points", type=int, default=1_000_000, help="Upload this number of values."
    )
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="Run each loop for this number of minutes."
    )
    args = parser.parse_args(sys.argv[1:])
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)
        from mlflow import MlflowClient

        from pyclassify.spool.store import register_scheme

        register_scheme()
        server = Server(folder)
        server.start()
        try:
            client = MlflowClient(server.uri)
            bare, spooled = (client.create_run("0").info.run_id for _ in range(2))
            result = {"bare_seconds": send_bare(client, bare, args.points)}
            result |= send_spooled(client, spooled, folder / "spool", args.points)
            result["upload_over_bare"] = result["upload_seconds"] / result["bare_seconds"]
            result["up"] = log_like_training(server.uri, folder / "up", 60 * args.minutes)
        finally:
            server.kill()
        from pyclassify.tracking import run

        run.end_run("KILLED")
        result["down"] = log_like_training(server.uri, folder / "down", 60 * args.minutes)
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        run.end_run("KILLED")


if __name__ == "__main__":
    main()
