"""Log concurrently to several runs in one process, for `benchmarks.service`."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

NAMES = [f"load_{number}" for number in range(10)]


def log(run_ids, uri, by, rate, seconds, folder, files_every=0):
    """Log values of ten metrics to each run.

    Args:
        run_ids: The runs, which exist at the server.
        uri: The server.
        by: `spool`, as a training does, or `client`, MLflow's own, with one batch per second.
        rate: Values per second of each run.
        seconds: The duration.
        folder: The folder of spools.
        files_every: Steps between two files that a run logs through its spool; 0 for none.

    Returns:
        The number of `logged` values, the `batch_seconds` of each uploaded batch, the number of
        `failed` batches, the `max_call_seconds` that a training would wait, and the number of
        `files`.
    """
    from mlflow import MlflowClient

    from pyclassify.spool import store

    os.environ.pop("MLFLOW_RUN_ID", None)
    store.register_scheme()
    batches = BatchTimer(MlflowClient)
    steps = round(rate * seconds / len(NAMES))
    with ThreadPoolExecutor(len(run_ids)) as pool:
        log_run = {"spool": log_by_spool, "client": log_by_client}[by]
        args = (uri, steps, seconds / steps, folder, files_every)
        longest = max(pool.map(lambda run_id: log_run(run_id, *args), run_ids))
    return {
        "logged": len(run_ids) * steps * len(NAMES),
        "batch_seconds": batches.seconds,
        "failed": batches.failed,
        "max_call_seconds": longest,
        "files": len(run_ids) * (len(range(0, steps, files_every)) if files_every else 0),
    }


class BatchTimer:
    """Measures the seconds per batch of all clients in this process."""

    def __init__(self, client_class):
        self.seconds, self.failed = [], 0
        log_batch = client_class.log_batch

        def timed(client, *args, **kwargs):
            if not client.tracking_uri.startswith("http"):
                return log_batch(client, *args, **kwargs)
            start = time.perf_counter()
            try:
                log_batch(client, *args, **kwargs)
            except Exception:
                self.failed += 1
                raise
            self.seconds.append(time.perf_counter() - start)

        client_class.log_batch = timed


def log_by_spool(run_id, uri, steps, pause, folder, files_every):
    """Log through a spool with its own upload thread."""
    from mlflow import MlflowClient

    from pyclassify.spool.records import create_from_server
    from pyclassify.spool.spooled_run import SpooledRun
    from pyclassify.utils.mlflow_settings import limit_requests

    limit_requests()
    run = SpooledRun(create_from_server(folder, MlflowClient(uri), run_id), uri)

    def log_step(step):
        run.client.log_batch(run_id, make_metrics([step]))
        if files_every and step % files_every == 0:
            run.client.log_text(run_id, f"at {step}", f"notes/{step}.txt")

    longest = call_at_pace(steps, pause, log_step)
    run.close("FINISHED")
    return longest


def log_by_client(run_id, uri, steps, pause, *_):
    """Log by MLflow's client, one batch per second."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, batch_steps = MlflowClient(uri), max(1, round(1 / pause))

    def log_batch(number):
        first = number * batch_steps
        with suppress(MlflowException):  # a training would fail here; it is counted as failed
            client.log_batch(run_id, make_metrics(range(first, min(first + batch_steps, steps))))

    longest = call_at_pace(-(-steps // batch_steps), pause * batch_steps, log_batch)
    client.set_terminated(run_id, "FINISHED")
    return longest


def make_metrics(steps):
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, step / 7, now, step) for step in steps for name in NAMES]


def call_at_pace(count, pause, call):
    """Call a function at a pace, if it is fast enough; return the seconds of the longest call."""
    start, longest = time.perf_counter(), 0.0
    for number in range(count):
        time.sleep(max(0.0, start + number * pause - time.perf_counter()))
        called = time.perf_counter()
        call(number)
        longest = max(longest, time.perf_counter() - called)
    return longest
