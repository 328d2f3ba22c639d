"""`pyclassify compare`: which run is better, and in what they differ."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from math import isfinite
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pyclassify.runs.comparison import Comparison, compare, differences
from pyclassify.runs.report import report
from pyclassify.tracking.search import be_brief, find_best, find_run, format_error, open_store
from pyclassify.tracking.ui import compare_link, server_address, start_quickly
from pyclassify.utils.masking import mask
from pyclassify.utils.options import VerbParser

METRIC, BEST = "test_accuracy", 5


def main(args: Sequence[str]) -> int:
    """Compare the runs that are named, or the best of an experiment.

    Args:
        args: The command line after the verb.

    Returns:
        The exit code.

    Raises:
        ValueError: It is wrong, or there are no such runs.
        OSError: There is no store.
    """
    asked = _parse(args)
    be_brief()
    try:
        comparison = compare(_find(asked))
    except MlflowException as error:
        raise ValueError(format_error(error)) from error
    uri = mlflow.get_tracking_uri()
    infos = [run.info for run in comparison.runs]
    link = compare_link(uri, [i.run_id for i in infos], [i.experiment_id for i in infos])
    if asked.json:
        sys.stdout.write(json.dumps(_as_data(comparison, mask(uri), link), indent=2) + "\n")
        return 0
    start = "open" if server_address(uri) else f"start\n{start_quickly(uri)}\nand open"
    text = report(comparison, shutil.get_terminal_size().columns)
    sys.stdout.write(f"{text}\nIn the browser: {start}\n{link}\n")
    return 0


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = VerbParser(
        prog="pyclassify compare",
        description="Show in what runs differ: parameters, metrics and, for two runs with the same "
        "test images or of several seeds each, whether one is better by more than luck.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN_ID", help="a run's id, or its first 8 digits or more"
    )
    parser.add_argument("--experiment", metavar="NAME", help="compare the best runs of this one")
    parser.add_argument("--best", type=int, metavar="N", help=f"how many of them (default: {BEST})")
    parser.add_argument("--metric", metavar="NAME", help=f"best by what (default: {METRIC})")
    parser.add_argument("--json", action="store_true", help="write JSON, for programs")
    asked = parser.parse_args(args)
    if asked.experiment is None:
        for name in ("best", "metric"):
            if getattr(asked, name) is not None:
                parser.error(f"--{name} is of an experiment's runs, and no --experiment is given")
    elif asked.runs:
        parser.error("give either ids of runs or --experiment")
    if asked.best is not None and asked.best < 2:
        parser.error(f"--best is {asked.best}; give 2 or more")
    return asked


def _find(asked: argparse.Namespace) -> list[Run]:
    if asked.experiment is None and len(set(asked.runs)) < 2:
        raise ValueError(
            "compare takes two or more different runs; give their ids, or --experiment NAME for "
            "the best runs of one"
        )
    client = open_store()
    if asked.experiment is not None:
        metric = asked.metric or METRIC
        runs = find_best(client, asked.experiment, metric, asked.best or BEST)
        if len(runs) < 2:
            raise ValueError(
                f"experiment {asked.experiment!r} has only one finished run with the metric "
                f"{metric!r}, {runs[0].info.run_id}; two or more can be compared"
            )
        return runs
    found = {run.info.run_id: run for run in (find_run(client, each) for each in asked.runs)}
    for run in found.values():
        if not run.data.metrics:
            raise ValueError(
                f"run {run.info.run_id} ({run.info.run_name}, {run.info.status}) has no metrics to "
                "compare; leave it out"
            )
    if len(found) < 2:
        raise ValueError(f"these are all run {next(iter(found))}; give two or more different runs")
    return list(found.values())


def _as_data(comparison: Comparison, tracking_uri: str, link: str) -> dict[str, Any]:
    """A comparison as JSON can have it: what is not finite is null."""
    metrics = {
        name: {"values": [_finite(v) for v in values], "differences": differences(values)}
        for name, values in comparison.metrics.items()
    }
    return {
        "tracking_uri": tracking_uri,
        "runs": [
            {
                "run_id": run.info.run_id,
                "name": run.info.run_name,
                "status": run.info.status,
                "experiment_id": run.info.experiment_id,
            }
            for run in comparison.runs
        ],
        "parameters_that_differ": comparison.differ,
        "parameters_the_same": comparison.equal,
        "metrics": metrics,
        "paired_test": asdict(comparison.paired) if comparison.paired else None,
        "seeds_test": asdict(comparison.seeds) if comparison.seeds else None,
        "notes": comparison.notes,
        "link": link,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
