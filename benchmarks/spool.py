"""A million values through the spool to a real server, and what a training pays for it.

    python -m benchmarks.spool --points 1000000 --minutes 1

Prints the seconds of delivering the values over those of sending the same batches to the same
server by `MlflowClient.log_batch` alone, and the memory and the disk that it takes; and for a loop
that logs as AlexNet's epochs do, the seconds in logging calls and the CPU seconds of all threads
over the loop's own seconds, with the server up and with it down.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.parts.tortured import Server

NAMES = [f"metric_{number}" for number in range(10)]
BATCH = 1000  # MLflow's limit


def points(count):
    """Values of ten metrics, as [name, value, milliseconds, step]."""
    for step in range(count // len(NAMES)):
        yield from ([name, step / 7, 1_700_000_000_000 + step, step] for name in NAMES)


def send_bare(client, run_id, count):
    """Send them by MLflow's own client, in batches as large as it takes."""
    from mlflow.entities import Metric

    batch = []
    started = time.perf_counter()
    for point in points(count):
        batch.append(Metric(*point))
        if len(batch) == BATCH:
            client.log_batch(run_id, metrics=batch)
            batch = []
    return time.perf_counter() - started


def send_spooled(client, run_id, root, count):
    """Log them to a spool, then deliver them; seconds of both, memory and disk in MB."""
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
    before = resident()
    started = time.perf_counter()
    Uploader(folder, client).upload()
    delivered = time.perf_counter() - started
    size = sum(each.stat().st_size for each in folder.glob("*.records"))
    return {
        "logging_seconds": logged,
        "delivery_seconds": delivered,
        "memory_before_mb": before,
        "memory_after_mb": resident(),
        "memory_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "disk_mb": size / 1e6,
    }


def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def train_a_while(uri, root, seconds):
    """Log as an epoch of AlexNet does: a step each 0.3 s, two values each tenth step."""
    from mlflow import MlflowClient

    from pyclassify.tracking import run

    written = run.start_run(None, None, None, uri, str(root))
    client, run_id = MlflowClient(written.spool_uri), written.run_id
    spent, step, cpu = 0.0, 0, time.process_time()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.3)  # the loop's own CPU time is next to nothing: the rest is delivery's
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=1.0)
    asked = parser.parse_args()
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
            found = {"bare_seconds": send_bare(client, bare, asked.points)}
            found |= send_spooled(client, spooled, folder / "spool", asked.points)
            found["delivery_over_bare"] = found["bare_seconds"] / found["delivery_seconds"]
            found["up"] = train_a_while(server.uri, folder / "up", 60 * asked.minutes)
        finally:
            server.kill()
        from pyclassify.tracking import run

        run.end_run("KILLED")
        found["down"] = train_a_while(server.uri, folder / "down", 60 * asked.minutes)
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        run.end_run("KILLED")


if __name__ == "__main__":
    main()
