"""What tracking costs: the seconds of its calls over those of the epochs, and those of the ends.

    python -m benchmarks.tracking

Trains the drawn shapes on the CPU by the whole command line, in this process, with the calls that
track timed: each without the ones that it makes of the others. Options that it does not know are
handed to `pyclassify train`, such as --data.train_size=640.
"""

import argparse
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
    """Seconds that functions take, each without those of the watched functions that it calls.

    Args:
        clock: Gives the time.

    Attributes:
        spent: By place (loop, ends, or beside: in another thread) and name.
        loop: How long training took.
    """

    def __init__(self, clock):
        self.clock = clock
        self._callers = threading.local()
        self.reset()

    def reset(self):
        self.spent = {place: Counter() for place in ("loop", "ends", "beside")}
        self.loop, self._training = 0.0, False

    def watch(self, name, owner, attribute):
        """Time a function or method under a name, from now on."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            callers = vars(self._callers).setdefault("inner", [])
            callers.append(0.0)
            started = self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                whole = self.clock() - started
                self.spent[self._place()][name] += whole - callers.pop()
                if callers:
                    callers[-1] += whole

        setattr(owner, attribute, timed)

    def watch_loop(self, owner, attribute):
        """Time what is the training itself."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*args, **kwargs):
            self._training, started = True, self.clock()
            try:
                return function(*args, **kwargs)
            finally:
                self._training, self.loop = False, self.clock() - started

        setattr(owner, attribute, timed)

    def _place(self):
        if threading.current_thread() is not threading.main_thread():
            return "beside"
        return "loop" if self._training else "ends"


def train(stopwatches, options):
    for each in stopwatches:
        each.reset()
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the figures
        code = pyclassify(["train", f"--config={RECIPE}", "--accelerator=cpu", *options])
    if code:
        raise SystemExit(code)


def figures(stopwatch):
    spent = {place: dict(times) for place, times in stopwatch.spent.items()}
    weights = spent["ends"].pop("weights", 0.0)
    return {
        "loop": stopwatch.loop,
        "in the loop": spent["loop"],
        "percent of the loop": 100 * sum(spent["loop"].values()) / stopwatch.loop,
        "beside, in a thread": spent["beside"],
        "at the ends": spent["ends"],
        "sum of the ends": sum(spent["ends"].values()),
        "to keep the weights": weights,
    }


def measure(stopwatches, options, bare):
    train(stopwatches.values(), options)
    row = {name: figures(each) for name, each in stopwatches.items()}
    if bare:
        train(stopwatches.values(), [*options, "--trainer.logger=false"])
        row["loop without a logger"] = {name: each.loop for name, each in stopwatches.items()}
    return row


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--max_epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--bare", action="store_true", help="train with no logger as well")
    parser.add_argument("--json", help="a file for all figures")
    given, more = parser.parse_known_args(args)
    options = [f"--max_epochs={given.max_epochs}", *more]
    # On a busy machine the second tells more: how long this thread computed, of the time it took.
    stopwatches = {"seconds": Stopwatch(time.perf_counter), "CPU": Stopwatch(time.thread_time)}
    for each in stopwatches.values():
        each.watch_loop(_FitLoop, "run")
        for name, functions in TRACKING.items():
            for owner, attribute in functions:
                each.watch(name, owner, attribute)
    with tempfile.TemporaryDirectory() as own, contextlib.chdir(own):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{own}/mlflow.db"
        mlflow.search_experiments()  # makes the database
        rows = [measure(stopwatches, options, given.bare) for _ in range(given.repeats)]
    # Of the ends the first: it pays for imports, as each run that has a process of its own does.
    lines = [
        {
            "measured in": name,
            "epochs, s": [row[name]["loop"] for row in rows],
            "tracking, % of them": [row[name]["percent of the loop"] for row in rows],
            "tracking at both ends, s": rows[0][name]["sum of the ends"],
        }
        for name in stopwatches
    ]
    report.tell(lines, {"rows": rows, "threads": torch.get_num_threads()}, given.json)


if __name__ == "__main__":
    main()
