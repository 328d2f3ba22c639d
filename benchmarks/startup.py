"""Measure the time from `mlflow run` to the first optimizer step, relative to its lower bound.

The lower bound is `mlflow run` of an empty project, and one import of torch, lightning and mlflow
for each process. The start-up time of two commands is measured too.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlflow

from benchmarks.parts import report
from benchmarks.parts.command import BenchmarkParser

ROOT = Path(__file__).parents[1]
EMPTY_PROJECT = "name: empty\nentry_points:\n  main:\n    command: 'true'\n"


def time_command(command, **options):
    """Run a command; return its seconds."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, **options)
    return time.perf_counter() - started


def time_mlflow_run(project, folder, *options):
    """Run a project; return the seconds."""
    command = [sys.executable, "-m", "mlflow", "run", project, "--env-manager", "local", *options]
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    uri = f"sqlite:///{folder}/mlflow.db"
    return time_command(
        command, cwd=folder, env={**os.environ, "PATH": tools, "MLFLOW_TRACKING_URI": uri}
    )


def time_first_step(folder, devices, extra_parameters):
    """Measure the seconds from the start of `mlflow run` to the metric of the first step."""
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
    parameters = [f"{name}={value}" for name, value in options.items()] + extra_parameters
    argv = [word for parameter in parameters for word in ("-P", parameter)]
    time_mlflow_run(ROOT, folder, *argv)
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    run = client.search_runs(["0"], max_results=1)[0]
    return client.get_metric_history(run.info.run_id, "train_loss")[0].timestamp / 1000 - started


def measure(folder, project, devices, extra_parameters):
    """Measure all times once."""
    return {
        "empty project": time_mlflow_run(project, folder),
        "import": time_command([sys.executable, "-c", "import torch, lightning, mlflow"]),
        "first step": time_first_step(folder, devices, extra_parameters),
        "--help": time_command([sys.executable, "-m", "pyclassify", "--help"], cwd=ROOT),
        "slurm status --help": time_command(
            [sys.executable, "-m", "pyclassify", "slurm", "status", "--help"], cwd=ROOT
        ),
    }


def main(args=None):
    parser = BenchmarkParser("startup", __doc__, ("--devices 2", "-P max_epochs=2 --repeats 1"))
    parser.add_argument("--devices", type=int, default=2, help="Train in this many processes.")
    parser.add_argument("--repeats", type=int, default=3, help="Repeat each measurement.")
    parser.add_argument(
        "-P",
        dest="parameters",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="Pass this parameter to the training; repeatable.",
    )
    parser.add_json_option()
    args = parser.parse_args(sys.argv[1:] if args is None else args)
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "project")
        project.mkdir()
        (project / "MLproject").write_text(EMPTY_PROJECT)
        time_mlflow_run(project, folder)  # creates the database
        rows = [
            measure(folder, project, args.devices, args.parameters) for _ in range(args.repeats)
        ]
    table_row = {
        "processes": args.devices,
        **{f"{name}, s": [row[name] for row in rows] for name in rows[0]},
        "ratio": [
            row["first step"] / (row["empty project"] + args.devices * row["import"])
            for row in rows
        ],
    }
    report.print_table([table_row], {"rows": rows, "ratios": table_row["ratio"]}, args.json)


if __name__ == "__main__":
    main()
