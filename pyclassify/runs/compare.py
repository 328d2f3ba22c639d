"""`pyclassify compare`: show how runs differ, and test whether one is better than another.

MLflow and SciPy are imported after the command line is parsed, so that `--help` is fast. Nothing
here loads torch.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pyclassify.tracking.ui import find_server_address, format_fast_ui_command, link_comparison
from pyclassify.utils.masking import mask
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.options import CommandParser

if TYPE_CHECKING:
    from mlflow.entities import Run

_DEFAULT_BEST = 5
_DEFAULT_METRIC = "test_accuracy"


def main(argv: Sequence[str]) -> int:
    """Compare the named runs, or the best runs of an experiment.

    Args:
        argv: The command line after the command's name.

    Returns:
        The exit code.

    Raises:
        UsageError: The command line is invalid.
        ValueError: The runs do not exist, or are fewer than two.
        OSError: The store does not exist.
    """
    args = _parse_args(argv)
    import mlflow

    from pyclassify.runs.comparison import compare_runs, format_report, to_json

    configure_mlflow(retries=2)
    comparison = compare_runs(_find_runs(args))
    uri = mlflow.get_tracking_uri()
    infos = [run.info for run in comparison.runs]
    url = link_comparison(uri, [i.run_id for i in infos], [i.experiment_id for i in infos])
    if args.json:
        sys.stdout.write(json.dumps(to_json(comparison, mask(uri), url), indent=2) + "\n")
        return 0
    has_server = find_server_address(uri) is not None
    how_to_open = "open" if has_server else f"start\n{format_fast_ui_command(uri)}\nand open"
    report = format_report(comparison, shutil.get_terminal_size().columns)
    sys.stdout.write(f"{report}\nTo compare them in the browser, {how_to_open}\n{url}\n")
    return 0


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        "pyclassify compare",
        description="Compare runs: parameters, metrics and seed statistics. Two runs with the same "
        "test images are compared by McNemar's exact test of their predictions, two parents of "
        "seeds by Welch's t-test.",
        examples=[
            "pyclassify compare 3f2a91c0 77b0de45",
            "pyclassify compare --experiment Default --best 3",
            "pyclassify compare --experiment Default --metric val_loss --json",
        ],
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN_ID",
        help="give the IDs of two or more runs, or the first 8 digits of each",
    )
    parser.add_argument(
        "--experiment", metavar="NAME", help="compare the best finished runs of this experiment"
    )
    parser.add_argument(
        "--best",
        type=int,
        metavar="N",
        help=f"with --experiment, compare the N best runs (default: {_DEFAULT_BEST})",
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help=f"with --experiment, rank the runs by this metric (default: {_DEFAULT_METRIC})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args: argparse.Namespace = parser.parse_args(argv)
    if args.experiment is None:
        for name in ("best", "metric"):
            if getattr(args, name) is not None:
                parser.error(f"--{name} needs --experiment NAME")
        if len(set(args.runs)) < 2:
            parser.error(
                "compare needs two or more different runs; give their IDs, or --experiment NAME "
                "for the best runs of an experiment"
            )
    elif args.runs:
        parser.error("give either run IDs or --experiment, not both")
    if args.best is not None and args.best < 2:
        parser.error(f"invalid --best: {args.best} (expected 2 or more)")
    return args


def _find_runs(args: argparse.Namespace) -> "list[Run]":
    from pyclassify.tracking.search import find_best_runs, find_run, open_store

    client = open_store()
    if args.experiment is not None:
        metric = args.metric or _DEFAULT_METRIC
        best = find_best_runs(client, args.experiment, metric, args.best or _DEFAULT_BEST)
        if len(best) < 2:
            raise ValueError(
                f"experiment {args.experiment!r} has only one finished run with the metric "
                f"{metric!r}: {best[0].info.run_id} (expected two or more)"
            )
        return best
    runs = {run.info.run_id: run for run in (find_run(client, run_id) for run_id in args.runs)}
    for run in runs.values():
        if not run.data.metrics:
            raise ValueError(
                f"run {run.info.run_id} ({run.info.run_name}, {run.info.status}) has no metrics to "
                "compare; leave it out"
            )
    if len(runs) < 2:
        raise ValueError(
            f"all given ids are of run {next(iter(runs))}; give two or more different runs"
        )
    return list(runs.values())
