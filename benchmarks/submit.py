"""The time of a submission through MLflow, over that of a bare `sbatch --parsable`.

    python -m benchmarks.submit

Both submit the same nothing, in turns, to the tests' private cluster (as root, with Debian's
slurm-wlm, munge, slurmdbd and mariadb-server). The jobs are held, so that none runs meanwhile.
"""

import argparse
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
from tests.support.cluster import Cluster

ROOT = Path(__file__).parents[1]
NOTHING = "name: nothing\nentry_points:\n  main:\n    command: 'true'\n"
IMPORT = (
    "import time, mlflow.projects, mlflow.tracking; started = time.perf_counter(); "
    "import pyclassify.slurm.submit; print(time.perf_counter() - started)"
)


def seconds(function, *args, **options):
    started = time.perf_counter()
    function(*args, **options)
    return time.perf_counter() - started


def submit(project):
    mlflow.projects.run(
        str(project),
        backend="slurm",
        backend_config={"sbatch_args": ["--hold"]},
        env_manager="local",
        synchronous=False,
    )


def bare(script):
    words = ["sbatch", "--parsable", "--hold", "--output=/dev/null", str(script)]
    subprocess.run(words, check=True, capture_output=True)


def import_seconds():
    """The backend's own import, beyond that of MLflow."""
    return float(subprocess.check_output([sys.executable, "-c", IMPORT], cwd=ROOT, text=True))


def measure(folder, count):
    project = folder / "project"
    project.mkdir()
    (project / "MLproject").write_text(NOTHING)
    script = folder / "nothing.sh"
    script.write_text("#!/bin/sh\ntrue\n")
    (folder / "submitted").mkdir()
    os.chdir(folder / "submitted")  # beside which are the folders of the runs
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    first = seconds(submit, project)  # with MLflow's imports and the tables of its database
    bare(script)
    rows = [
        {"mlflow": seconds(submit, project), "sbatch": seconds(bare, script)} for _ in range(count)
    ]
    return {"first": first, "rows": rows, "import": [import_seconds() for _ in range(5)]}


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--json", help="a file for all figures")
    given = parser.parse_args(args)
    cluster = Cluster()
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.stop)
        cluster.start()
        os.environ.update(cluster.env)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(contextlib.chdir(ROOT))
        figures = measure(Path(folder), given.count)
    took = {name: [row[name] for row in figures["rows"]] for name in ("mlflow", "sbatch")}
    line = {
        "submissions": given.count,
        **{f"{name}, s": values for name, values in took.items()},
        "ratio of medians": statistics.median(took["mlflow"]) / statistics.median(took["sbatch"]),
        "the first, s": figures["first"],
        "the backend's import, s": figures["import"],
    }
    report.tell([line], figures, given.json)


if __name__ == "__main__":
    main()
