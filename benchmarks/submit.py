"""Measure the time of a submission through MLflow, relative to `sbatch --parsable` alone.

Both submit an empty job, alternately, to the tests' private cluster (as root, with Debian's
slurm-wlm, munge, slurmdbd and mariadb-server). The jobs are held, so that none runs.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow

from benchmarks.parts import report
from benchmarks.parts.command import BenchmarkParser
from tests.support.cluster import Cluster

ROOT = Path(__file__).parents[1]
EMPTY_PROJECT = "name: empty\nentry_points:\n  main:\n    command: 'true'\n"
IMPORT_CODE = (
    "import time, mlflow.projects, mlflow.tracking; started = time.perf_counter(); "
    "import pyclassify.slurm.submit; print(time.perf_counter() - started)"
)


def time_call(function, *args, **options):
    """Call a function; return its seconds."""
    started = time.perf_counter()
    function(*args, **options)
    return time.perf_counter() - started


def submit_by_mlflow(project):
    """Submit a project through MLflow."""
    mlflow.projects.run(
        str(project),
        backend="slurm",
        backend_config={"sbatch_args": ["--hold"]},
        env_manager="local",
        synchronous=False,
    )


def submit_by_sbatch(script):
    """Submit a script by sbatch."""
    argv = ["sbatch", "--parsable", "--hold", "--output=/dev/null", str(script)]
    subprocess.run(argv, check=True, capture_output=True)


def time_import():
    """Measure the seconds of importing the backend, after MLflow."""
    command = [sys.executable, "-c", IMPORT_CODE]
    return float(subprocess.check_output(command, cwd=ROOT, text=True))


def measure(folder, count):
    """Measure all times."""
    project = folder / "project"
    project.mkdir()
    (project / "MLproject").write_text(EMPTY_PROJECT)
    script = folder / "empty.sh"
    script.write_text("#!/bin/sh\ntrue\n")
    (folder / "submitted").mkdir()
    os.chdir(folder / "submitted")  # the folders of the runs are created next to it
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    first = time_call(submit_by_mlflow, project)  # includes imports and the database's tables
    submit_by_sbatch(script)
    rows = [
        {
            "mlflow": time_call(submit_by_mlflow, project),
            "sbatch": time_call(submit_by_sbatch, script),
        }
        for _ in range(count)
    ]
    return {"first": first, "rows": rows, "import": [time_import() for _ in range(5)]}


def main(args=None):
    parser = BenchmarkParser("submit", __doc__, ("--count 50", "--count 5 --json submit.json"))
    parser.add_argument("--count", type=int, default=50, help="Submit this number of jobs by each.")
    parser.add_json_option()
    args = parser.parse_args(sys.argv[1:] if args is None else args)
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(Cluster())
        os.environ.update(cluster.env)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.chdir(ROOT))
        figures = measure(Path(folder), args.count)
    seconds = {name: [row[name] for row in figures["rows"]] for name in ("mlflow", "sbatch")}
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    row = {
        "submissions": args.count,
        **{f"{name}, s": values for name, values in seconds.items()},
        "ratio of medians": medians["mlflow"] / medians["sbatch"],
        "first submission, s": figures["first"],
        "import of the backend, s": figures["import"],
    }
    report.print_table([row], figures, args.json)


if __name__ == "__main__":
    main()
