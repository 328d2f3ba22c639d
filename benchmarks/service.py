"""Log 50 concurrent runs to the group's server of docs/service.md, and check its database.

Several processes log 1,000 values per second in total for 2 minutes: through a spool with an upload
thread per run, as trainings do, or by MLflow's own client, one batch per second. It needs the same
programs as the tests of the service. It prints the number of lost and duplicate values, the seconds
per batch, and the memory and CPU time of the server and its database.
"""

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

from benchmarks.parts.command import BenchmarkParser
from benchmarks.parts.resource_monitor import ResourceMonitor
from benchmarks.parts.service_runs import log
from tests.support.service import ADMIN, Service, commands, is_up

POSTGRES = "postgresql+psycopg2:///mlflow"


class OnSqlite(Service):
    """The same server with its runs and accounts in SQLite files."""

    def start(self):
        self.uris = {name: f"sqlite:///{self.folder}/{name}.db" for name in ("runs", "accounts")}
        accounts = self.folder / "auth.ini"
        config = Path(self.env["MLFLOW_AUTH_CONFIG_PATH"]).read_text()
        accounts.write_text(config.replace(POSTGRES, self.uris["accounts"]))
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


def measure(service, args, folder):
    """Log to all runs, and count their values in the database."""
    runs = make_runs(service, args.runs)
    with (
        ResourceMonitor(service.daemons) as monitor,
        log_concurrently(service, runs, args, folder) as futures,
    ):
        results = [future.result() for future in futures]
    seconds = np.array([batch for result in results for batch in result["batch_seconds"]])
    counts = count(service, results)
    percentiles = {f"p{n}": round(float(np.percentile(seconds, n)), 3) for n in (50, 99, 100)}
    return {
        "database": args.database,
        "by": args.by,
        "runs": len(runs),
        "seconds": round(monitor.seconds),
        **counts,
        "batches": seconds.size,
        "values_per_batch": round(counts["logged"] / seconds.size, 1),
        "batch_seconds": percentiles,
        **monitor.summarize(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[1], 1),
    }


def make_runs(service, number):
    from mlflow import MlflowClient

    client = MlflowClient(service.uri)
    experiment = client.create_experiment("load")
    return [client.create_run(experiment).info.run_id for _ in range(number)]


@contextmanager
def log_concurrently(service, runs, args, folder, **options):
    """Start processes that log to the runs; yield their futures."""
    groups = [runs[number :: args.processes] for number in range(args.processes)]
    arguments = (service.uri, args.by, args.rate / args.runs, args.seconds, folder)
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        yield [pool.submit(log, group, *arguments, **options) for group in groups]


def count(service, results):
    """Count the lost and duplicate values in the database, and the final statuses."""
    logged = sum(result["logged"] for result in results)
    (row,) = service.sql(
        "SELECT count(*), count(DISTINCT run_uuid || '/' || key || '/' || step) FROM metrics "
        "WHERE key LIKE 'load_%'"
    )
    total, unique = map(int, row.split("|"))
    statuses = service.sql("SELECT status, count(*) FROM runs GROUP BY status")
    return {
        "logged": logged,
        "lost": logged - unique,
        "duplicate": total - unique,
        "statuses": dict(line.split("|") for line in statuses),
        "batches_failed": sum(result["failed"] for result in results),
        "max_call_seconds": round(max(result["max_call_seconds"] for result in results), 4),
    }


def make_parser(name, description, examples):
    """Make a parser with the options of all benchmarks of the service."""
    parser = BenchmarkParser(name, description, examples)
    parser.add_argument(
        "--database", choices=[*DATABASES], default="postgresql", help="Use this database."
    )
    parser.add_argument(
        "--by",
        choices=["spool", "client"],
        default="spool",
        help="Log through spools, or directly by MLflow's client.",
    )
    parser.add_argument("--runs", type=int, default=50, help="Log to this number of runs.")
    parser.add_argument("--processes", type=int, default=4, help="Log in this many processes.")
    parser.add_argument(
        "--rate", type=float, default=1000, help="Log this number of values per second in total."
    )
    parser.add_argument("--seconds", type=float, default=120, help="Log for this many seconds.")
    parser.add_argument("--workers", type=int, default=4, help="Set the server's workers.")
    return parser


@contextmanager
def started(service):
    """Start the service, with this process as its admin; yield a folder for spools."""
    try:
        service.start()
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = ADMIN
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    finally:
        service.stop()


def print_result(result):
    """Print the result as JSON; return whether values are lost or duplicate, or a run failed."""
    sys.stdout.write(json.dumps(result, indent=2) + "\n")
    is_wrong = result["lost"] or result["duplicate"] or [*result["statuses"]] != ["FINISHED"]
    return bool(is_wrong)


def main():
    examples = ("--database postgresql --by spool", "--database sqlite --by client")
    args = make_parser("service", __doc__, examples).parse_args(sys.argv[1:])
    service = DATABASES[args.database](args.workers)
    with started(service) as folder:
        result = measure(service, args, folder)
    return print_result(result)


if __name__ == "__main__":
    sys.exit(main())
