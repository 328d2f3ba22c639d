"""The time of a submission by `mlflow.projects.run`, over that of the same script by sbatch.

    python -m benchmarks.submissions [PROJECT]

It takes a SLURM; the jobs are held, and cancelled afterwards.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow

TIMES = 50
NOTHING = "name: nothing\nentry_points:\n  main:\n    command: 'true'\n"


def seconds(function):
    started = time.perf_counter()
    given = function()
    return time.perf_counter() - started, given


def submit(project):
    config = {"job_name": "submissions", "sbatch_args": ["--hold"]}
    return mlflow.projects.run(
        str(project),
        backend="slurm",
        backend_config=config,
        env_manager="local",
        synchronous=False,
    )


def sbatch(script):
    subprocess.run(["sbatch", "--parsable", script], check=True, capture_output=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", nargs="?", type=Path, help="a project; one of nothing else")
    asked = parser.parse_args()
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(asked.project or folder, "MLproject").absolute().parent
        if asked.project is None:
            (project / "MLproject").write_text(NOTHING)
        inside = Path(folder, "submitted")
        inside.mkdir()
        os.chdir(inside)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        try:
            script = Path(folder, "submitted-slurm", submit(project).run_id, "job.sh")
            bare = [seconds(lambda: sbatch(script))[0] for _ in range(TIMES)]
            ours = [seconds(lambda: submit(project))[0] for _ in range(TIMES)]
        finally:
            subprocess.run(["scancel", "--name=submissions"], check=True)
    figures = {
        "sbatch_ms": round(statistics.median(bare) * 1000, 1),
        "mlflow_projects_run_ms": round(statistics.median(ours) * 1000, 1),
        "ratio": round(statistics.median(ours) / statistics.median(bare), 1),
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
