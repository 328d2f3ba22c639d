"""Some runs of one process that log at once, for `benchmarks.service`."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

NAMES = [f"load_{number}" for number in range(10)]


def log(run_ids, uri, by, rate, seconds, folder, files_every=0):
    """Log values of ten metrics to each run.

    Args:
        run_ids: The runs, which the server has.
        uri: The server.
        by: `spool`, as a training does; `client`, by MLflow's own, a batch a second.
        rate: Values a second of each run.
        seconds: For so long.
        folder: Where spools are.
        files_every: Steps between two files that a run logs through its spool; 0 for none.

    Returns:
        How many values were `logged`; the seconds of each of the `batches` that the server took,
        and how many `failed`; the seconds of the `longest_call` that a training would wait for;
        and how many `files`.
    """
    from mlflow import MlflowClient

    from pyclassify.spool import store

    os.environ.pop("MLFLOW_RUN_ID", None)
    store.register_scheme()
    batches = Batches(MlflowClient)
    steps = round(rate * seconds / len(NAMES))
    with ThreadPoolExecutor(len(run_ids)) as pool:
        how = {"spool": by_spool, "client": by_client}[by]
        given = (uri, steps, seconds / steps, folder, files_every)
        longest = max(pool.map(lambda run_id: how(run_id, *given), run_ids))
    return {
        "logged": len(run_ids) * steps * len(NAMES),
        "batches": batches.taken,
        "failed": batches.failed,
        "longest_call": longest,
        "files": len(run_ids) * (len(range(0, steps, files_every)) if files_every else 0),
    }


class Batches:
    """The seconds that a server takes for each batch, of all clients of this process."""

    def __init__(self, client_class):
        self.taken, self.failed = [], 0
        plain = client_class.log_batch

        def timed(client, *args, **kwargs):
            if not client.tracking_uri.startswith("http"):
                return plain(client, *args, **kwargs)
            start = time.perf_counter()
            try:
                plain(client, *args, **kwargs)
            except Exception:
                self.failed += 1
                raise
            self.taken.append(time.perf_counter() - start)

        client_class.log_batch = timed


def by_spool(run_id, uri, steps, pause, folder, files_every):
    """Through a spool, which a thread of the run's own delivers."""
    from mlflow import MlflowClient

    from pyclassify.spool.records import create_from_server
    from pyclassify.spool.spooled_run import SpooledRun
    from pyclassify.utils.mlflow_settings import limit_requests

    limit_requests()
    written = SpooledRun(create_from_server(folder, MlflowClient(uri), run_id), uri)

    def send(step):
        written.client.log_batch(run_id, values([step]))
        if files_every and step % files_every == 0:
            written.client.log_text(run_id, f"at {step}", f"notes/{step}.txt")

    longest = in_step(steps, pause, send)
    written.close("FINISHED")
    return longest


def by_client(run_id, uri, steps, pause, *_):
    """As a training does that has nothing but MLflow; a batch a second, for the server's sake."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client, at_once = MlflowClient(uri), max(1, round(1 / pause))

    def send(number):
        first = number * at_once
        with suppress(MlflowException):  # a training would end here; it is counted as failed
            client.log_batch(run_id, values(range(first, min(first + at_once, steps))))

    longest = in_step(-(-steps // at_once), pause * at_once, send)
    client.set_terminated(run_id, "FINISHED")
    return longest


def values(steps):
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    return [Metric(name, step / 7, now, step) for step in steps for name in NAMES]


def in_step(count, pause, call):
    """Call at a pace, as far as the calls allow it; the seconds of the longest call."""
    start, longest = time.perf_counter(), 0.0
    for number in range(count):
        time.sleep(max(0.0, start + number * pause - time.perf_counter()))
        called = time.perf_counter()
        call(number)
        longest = max(longest, time.perf_counter() - called)
    return longest
