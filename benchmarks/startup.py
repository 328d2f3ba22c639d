"""The time from `mlflow run` to the end of the first optimizer step, over what can't be less.

    python -m benchmarks.startup [--devices 2] [--repeats 3] [-P NAME=VALUE ...] [--json FILE]

What can't be less: `mlflow run` of a project that does nothing, and one bare import of torch,
lightning and mlflow for each process that is started after another. Beside it two verbs that a
person waits for.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow

from benchmarks.parts import report

ROOT = Path(__file__).parents[1]
NOTHING = "name: nothing\nentry_points:\n  main:\n    command: 'true'\n"


def seconds(command, **options):
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, **options)
    return time.perf_counter() - started


def mlflow_run(project, folder, *options):
    command = [sys.executable, "-m", "mlflow", "run", project, "--env-manager", "local", *options]
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    uri = f"sqlite:///{folder}/mlflow.db"
    return seconds(
        command, cwd=folder, env={**os.environ, "PATH": tools, "MLFLOW_TRACKING_URI": uri}
    )


def first_step(folder, devices, more):
    """Seconds from the start of `mlflow run` to the first step's entry in the run."""
    started = time.time()
    options = {
        "config": "configs/synthetic.yaml",
        "devices": devices,
        "max_epochs": 1,
        "trainer.limit_train_batches": 2,
        "trainer.limit_val_batches": 2,
        "trainer.limit_test_batches": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.logger.save_dir": folder,
    }
    parameters = [f"{name}={value}" for name, value in options.items()] + more
    mlflow_run(ROOT, folder, *(word for each in parameters for word in ("-P", each)))
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.search_runs(["0"], max_results=1)[0]
    return client.get_metric_history(run.info.run_id, "train_loss")[0].timestamp / 1000 - started


def measure(folder, nothing, devices, more):
    return {
        "nothing": mlflow_run(nothing, folder),
        "import": seconds([sys.executable, "-c", "import torch, lightning, mlflow"]),
        "first step": first_step(folder, devices, more),
        "--help": seconds([sys.executable, "-m", "pyclassify", "--help"], cwd=ROOT),
        "slurm status --help": seconds(
            [sys.executable, "-m", "pyclassify", "slurm", "status", "--help"], cwd=ROOT
        ),
    }


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "-P",
        dest="more",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another parameter of the training that `mlflow run` starts",
    )
    parser.add_argument("--json", help="a file for all figures")
    given = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        nothing = Path(folder, "nothing")
        nothing.mkdir()
        (nothing / "MLproject").write_text(NOTHING)
        mlflow_run(nothing, folder)  # makes the database
        rows = [measure(folder, nothing, given.devices, given.more) for _ in range(given.repeats)]
    line = {
        "processes": given.devices,
        **{f"{name}, s": [row[name] for row in rows] for name in rows[0]},
        "ratio": [
            row["first step"] / (row["nothing"] + given.devices * row["import"]) for row in rows
        ],
    }
    report.tell([line], {"rows": rows, "ratios": line["ratio"]}, given.json)


if __name__ == "__main__":
    main()
