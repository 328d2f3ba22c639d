"""Measure the overhead of tracking: seconds in its calls relative to the epochs, and at both ends.

It trains on the synthetic data set on the CPU by the complete command line, in this process, and
times each tracking function, without the tracking functions that it calls. Other options are passed
to `pyclassify train`, such as --data.train_size=640.
"""

import contextlib
import functools
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import mlflow
import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector

from benchmarks.parts import report
from benchmarks.parts.command import BenchmarkParser
from pyclassify.cli.main import main as pyclassify
from pyclassify.tracking import capsule, description, predictions, record, run
from pyclassify.tracking.logger import RunLogger
from pyclassify.tracking.metrics import RunMetrics
from pyclassify.tracking.predictions import PredictionLogger
from pyclassify.tracking.record import RunRecorder
from pyclassify.tracking.system_metrics import JobMonitor

RECIPE = Path(__file__).parents[1] / "configs" / "synthetic.yaml"
HOOKS = [name for name in vars(RunMetrics) if name.startswith("on_") or name == "setup"]
TRACKING = {
    "start and end of the run": [(run, "start_run"), (run, "set_final_status"), (run, "end_run")],
    "metrics": [(_LoggerConnector, "log_metrics"), (RunLogger, "log_metrics")],
    "speed, learning rate and bests": [(RunMetrics, name) for name in HOOKS],
    "parameters and config.yaml": [(RunRecorder, "save_config")],
    "capsule": [(capsule, "log_capsule")],
    "data digests": [(record, "describe_data"), (record, "_log_datasets"), (record, "check_data")],
    "description": [
        (description, "describe_start"),
        (description, "describe_results"),
        (record, "_log_preview"),
    ],
    "predictions": [
        (PredictionLogger, "on_test_batch_end"),
        (PredictionLogger, "on_test_epoch_end"),
        (predictions, "log_predictions"),
    ],
    "pictures": [(PredictionLogger, "_log_figures"), (predictions, "_log_figure")],
    "weights": [(RunLogger, "_log_weights")],
    "system metrics": [
        (RunLogger, "start_system_metrics"),
        (JobMonitor, "collect_metrics"),
        (JobMonitor, "publish_metrics"),
        (JobMonitor, "stop"),
    ],
}


class Stopwatch:
    """Measures the seconds of functions, each without the timed functions that it calls.

    Args:
        clock: Returns the time.

    Attributes:
        spent: Seconds by phase (loop, ends, or thread for another thread) and name.
        loop: The seconds of the training loop.
    """

    def __init__(self, clock):
        self.clock = clock
        self._callers = threading.local()
        self.reset()

    def reset(self):
        self.spent = {phase: Counter() for phase in ("loop", "ends", "thread")}
        self.loop, self._training = 0.0, False

    def watch(self, name, owner, attribute):
        """Time a function or method under a name."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            callers = vars(self._callers).setdefault("inner", [])
            callers.append(0.0)
            started = self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                total = self.clock() - started
                self.spent[self._get_phase()][name] += total - callers.pop()
                if callers:
                    callers[-1] += total

        setattr(owner, attribute, timed)

    def watch_loop(self, owner, attribute):
        """Time the training loop."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            self._training, started = True, self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self._training, self.loop = False, self.clock() - started

        setattr(owner, attribute, timed)

    def _get_phase(self):
        if threading.current_thread() is not threading.main_thread():
            return "thread"
        return "loop" if self._training else "ends"


def train(stopwatches, options):
    for stopwatch in stopwatches:
        stopwatch.reset()
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the table
        code = pyclassify(["train", f"--config={RECIPE}", "--accelerator=cpu", *options])
    if code:
        raise SystemExit(code)


def make_figures(stopwatch):
    spent = {phase: dict(seconds) for phase, seconds in stopwatch.spent.items()}
    weights = spent["ends"].pop("weights", 0.0)
    return {
        "loop": stopwatch.loop,
        "in the loop": spent["loop"],
        "percent of the loop": 100 * sum(spent["loop"].values()) / stopwatch.loop,
        "in another thread": spent["thread"],
        "at the ends": spent["ends"],
        "sum of the ends": sum(spent["ends"].values()),
        "logging the weights": weights,
    }


def measure(stopwatches, options, bare):
    train(stopwatches.values(), options)
    row = {name: make_figures(stopwatch) for name, stopwatch in stopwatches.items()}
    if bare:
        train(stopwatches.values(), [*options, "--trainer.logger=false"])
        loops = {name: stopwatch.loop for name, stopwatch in stopwatches.items()}
        row["loop without a logger"] = loops
    return row


def main(args=None):
    parser = BenchmarkParser("tracking", __doc__, ("--repeats 3", "--bare --data.train_size=640"))
    parser.add_argument("--max_epochs", type=int, default=3, help="Train for this many epochs.")
    parser.add_argument("--repeats", type=int, default=1, help="Repeat the training.")
    parser.add_argument("--bare", action="store_true", help="Train without a logger too.")
    parser.add_json_option()
    args, options = parser.parse_known_args(args)
    options = [f"--max_epochs={args.max_epochs}", *options]
    # CPU time of this thread depends less on other programs on the machine.
    stopwatches = {"seconds": Stopwatch(time.perf_counter), "CPU": Stopwatch(time.thread_time)}
    for stopwatch in stopwatches.values():
        stopwatch.watch_loop(_FitLoop, "run")
        for name, functions in TRACKING.items():
            for owner, attribute in functions:
                stopwatch.watch(name, owner, attribute)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        mlflow.search_experiments()  # creates the database
        rows = [measure(stopwatches, options, args.bare) for _ in range(args.repeats)]
    # The ends of the first run include imports, as those of each run in its own process do.
    table = [
        {
            "measured in": name,
            "epochs, s": [row[name]["loop"] for row in rows],
            "tracking, % of them": [row[name]["percent of the loop"] for row in rows],
            "tracking at both ends, s": rows[0][name]["sum of the ends"],
        }
        for name in stopwatches
    ]
    report.print_table(table, {"rows": rows, "threads": torch.get_num_threads()}, args.json)


if __name__ == "__main__":
    main()
