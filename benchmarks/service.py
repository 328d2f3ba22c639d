"""Fifty runs at once against the group's server of docs/service.md, counted in its database.

    python -m benchmarks.service --database postgresql --by spool
    python -m benchmarks.service --database sqlite --by client

A few processes log 1,000 values a second together for 2 minutes: as trainings do, through a spool
that a thread of each run delivers; or by MLflow's own client, a batch a second. Needs what the
tests of the service need. Prints the values that the database lacks or has twice, the seconds that
the server took for a batch, and the memory and CPU time of it and its database.
"""

import argparse
import json
import os
import sqlite3
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.parts.service_runs import log
from benchmarks.parts.watch import Watch
from tests.support.service import ADMIN, Service, commands, is_up

POSTGRES = "postgresql+psycopg2:///mlflow"


class OnSqlite(Service):
    """The same server with its runs and accounts in a file."""

    def start(self):
        self.uris = {name: f"sqlite:///{self.folder}/{name}.db" for name in ("runs", "accounts")}
        accounts = self.folder / "auth.ini"
        given = Path(self.env["MLFLOW_AUTH_CONFIG_PATH"]).read_text()
        accounts.write_text(given.replace(POSTGRES, self.uris["accounts"]))
        self.env["MLFLOW_AUTH_CONFIG_PATH"] = str(accounts)
        self.start_server()

    def start_server(self):
        command = commands("server").replace(POSTGRES, self.uris["runs"])
        self.daemons.start("mlflow", "bash", "-c", f"exec {command}")
        self.daemons.wait("mlflow", lambda: is_up(f"{self.uri}/health"), seconds=120)

    def sql(self, query):
        with closing(sqlite3.connect(self.folder / "runs.db")) as database:
            return ["|".join(map(str, row)) for row in database.execute(query)]


DATABASES = {"postgresql": Service, "sqlite": OnSqlite}


def measure(service, asked, folder):
    """Have the runs log, and count what the database has of them."""
    runs = make_runs(service, asked.runs)
    with Watch(service.daemons) as watch, logging(service, runs, asked, folder) as logs:
        done = [each.result() for each in logs]
    took = np.array([seconds for each in done for seconds in each["batches"]])
    counted = count(service, done)
    return {
        "database": asked.database,
        "by": asked.by,
        "runs": len(runs),
        "seconds": round(watch.seconds),
        **counted,
        "batches": took.size,
        "values_a_batch": round(counted["logged"] / took.size, 1),
        "batch_seconds": {f"p{n}": round(float(np.percentile(took, n)), 3) for n in (50, 99, 100)},
        **watch.tell(),
        "cpus": os.cpu_count(),
        "load_of_the_machine": round(os.getloadavg()[1], 1),
    }


def make_runs(service, number):
    from mlflow import MlflowClient

    client = MlflowClient(service.uri)
    experiment = client.create_experiment("load")
    return [client.create_run(experiment).info.run_id for _ in range(number)]


@contextmanager
def logging(service, runs, asked, folder, **more):
    """Processes that log to the runs; what they will return."""
    shares = [runs[number :: asked.processes] for number in range(asked.processes)]
    arguments = (service.uri, asked.by, asked.rate / asked.runs, asked.seconds, folder)
    with ProcessPoolExecutor(asked.processes, mp_context=get_context("spawn")) as pool:
        yield [pool.submit(log, share, *arguments, **more) for share in shares]


def count(service, done):
    """What the database lacks, what it has twice, and how the runs ended there."""
    logged = sum(each["logged"] for each in done)
    (row,) = service.sql(
        "SELECT count(*), count(DISTINCT run_uuid || '/' || key || '/' || step) FROM metrics "
        "WHERE key LIKE 'load_%'"
    )
    there, different = map(int, row.split("|"))
    ended = service.sql("SELECT status, count(*) FROM runs GROUP BY status")
    return {
        "logged": logged,
        "lost": logged - different,
        "doubled": there - different,
        "statuses": dict(each.split("|") for each in ended),
        "batches_failed": sum(each["failed"] for each in done),
        "longest_call_of_a_run": round(max(each["longest_call"] for each in done), 4),
    }


def options(description):
    """The options that all benchmarks of the service have, in a parser."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--database", choices=[*DATABASES], default="postgresql")
    parser.add_argument("--by", choices=["spool", "client"], default="spool")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--rate", type=float, default=1000, help="values a second of all runs")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--workers", type=int, default=4, help="of the server")
    return parser


@contextmanager
def started(service):
    """The service, started, with this process its admin; and a folder for spools."""
    try:
        service.start()
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = ADMIN
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        service.stop()


def tell(found):
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return bool(found["lost"] or found["doubled"] or [*found["statuses"]] != ["FINISHED"])


def main():
    asked = options(__doc__.splitlines()[0]).parse_args()
    service = DATABASES[asked.database](asked.workers)
    with started(service) as folder:
        found = measure(service, asked, folder)
    return tell(found)


if __name__ == "__main__":
    sys.exit(main())
