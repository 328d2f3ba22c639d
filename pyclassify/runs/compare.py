"""`pyclassify compare`: which run is better, and in what they differ."""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from textwrap import fill
from typing import Any

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pyclassify.runs.stats import PairedTest, SeedsTest, compare_on_images, compare_over_seeds
from pyclassify.spool.server import configure_mlflow
from pyclassify.tracking.search import (
    find_best_runs,
    find_run,
    format_store_error,
    open_store,
)
from pyclassify.tracking.ui import find_server_address, format_fast_ui_command, link_comparison
from pyclassify.utils.masking import mask
from pyclassify.utils.options import CLASS_OPTIONS, SHORT_OPTIONS, CommandParser

METRIC, BEST = "test_accuracy", 5
# What `mlflow run -P` may have stored as typed; the same is there as resolved, with a slash.
_AS_TYPED = {*SHORT_OPTIONS, *CLASS_OPTIONS, "trainer", "checkpoint", "config"}
UNSET = "-"
GAP = "  "
NARROWEST_COLUMN, WIDEST_NAME = 12, 32


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
    configure_mlflow(retries=2)
    try:
        comparison = compare(_find(asked))
    except MlflowException as error:
        raise ValueError(format_store_error(error)) from error
    uri = mlflow.get_tracking_uri()
    infos = [run.info for run in comparison.runs]
    link = link_comparison(uri, [i.run_id for i in infos], [i.experiment_id for i in infos])
    if asked.json:
        sys.stdout.write(json.dumps(_as_data(comparison, mask(uri), link), indent=2) + "\n")
        return 0
    start = (
        "open" if find_server_address(uri) else f"start\n{format_fast_ui_command(uri)}\nand open"
    )
    text = report(comparison, shutil.get_terminal_size().columns)
    sys.stdout.write(f"{text}\nIn the browser: {start}\n{link}\n")
    return 0


def _parse(args: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
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
        runs = find_best_runs(client, asked.experiment, metric, asked.best or BEST)
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


@dataclass(frozen=True)
class Comparison:
    """In what runs differ.

    Args:
        runs: The runs; the others are compared to the first.
        differ: The parameters that differ: name and value in each run, None where it is not set.
        equal: How many parameters are equal in all runs.
        metrics: Name and last value in each run, None where it was not logged.
        paired: The test of two runs on the same images, where their predictions are kept.
        seeds: The test of two parents of seeds.
        notes: What to keep in mind, a sentence each.
    """

    runs: list[Run]
    differ: dict[str, list[str | None]]
    equal: int
    metrics: dict[str, list[float | None]]
    paired: PairedTest | None
    seeds: SeedsTest | None
    notes: list[str]


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


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare two or more runs."""
    params = [_resolve(run.data.params) for run in runs]
    rows = {name: [each.get(name) for each in params] for name in sorted(set().union(*params))}
    differ = {name: values for name, values in rows.items() if len(set(values)) > 1}
    names = sorted(set().union(*(run.data.metrics for run in runs)), key=_rank)
    paired, notes = compare_on_images(runs)
    seeds, more_notes = compare_over_seeds(runs)
    unfinished = [
        f"run {number} is {run.info.status}, and its metrics are those of what it got to"
        for number, run in enumerate(runs, 1)
        if run.info.status != "FINISHED"
    ]
    return Comparison(
        runs=list(runs),
        differ=differ,
        equal=len(rows) - len(differ),
        metrics={name: [run.data.metrics.get(name) for run in runs] for name in names},
        paired=paired,
        seeds=seeds,
        notes=unfinished + notes + more_notes,
    )


def differences(values: Sequence[float | None]) -> list[float | None]:
    """How far values are from the first: None for itself, and where one is missing or not finite.

    Args:
        values: A metric in each run.
    """
    first = values[0]
    if first is None or not isfinite(first):
        return [None] * len(values)
    rest = values[1:]
    return [None, *(each - first if each is not None and isfinite(each) else None for each in rest)]


def _resolve(params: dict[str, str]) -> dict[str, str]:
    """Drop what `mlflow run` was given where the run holds the same in its own spelling."""
    if not any("/" in name for name in params):
        return params
    return {
        name: value
        for name, value in params.items()
        if "/" in name or name.partition(".")[0] not in _AS_TYPED
    }


def _rank(metric: str) -> tuple[int, str]:
    """Metrics of the test first, then of validation, then of training, and others."""
    stages = ("test", "best", "val", "train")
    place = (i for i, stage in enumerate(stages) if metric.startswith(f"{stage}_"))
    return next(place, len(stages)), metric


def report(comparison: Comparison, width: int) -> str:
    """Write a comparison down.

    Args:
        comparison: What to write.
        width: How many characters a line may have.
    """
    headings = [f"{i} {run.info.run_name}" for i, run in enumerate(comparison.runs, 1)]
    parts = ["Runs\n" + _list_runs(comparison, width)]
    others = f"{comparison.equal:,} {'is' if comparison.equal == 1 else 'are'} the same"
    if comparison.differ:
        rows = {name: _show_values(values) for name, values in comparison.differ.items()}
        parts.append(f"Parameters that differ ({others})\n" + table(rows, headings, width))
    else:
        parts.append(f"No parameter differs ({others})\n")
    # What the machine was doing is no result; it is in the browser.
    metrics = {k: v for k, v in comparison.metrics.items() if not k.startswith("system/")}
    if metrics:
        title = "Metrics, and how far they are from those of run 1\n"
        parts.append(title + table(_show_metrics(metrics), headings, width, whole=True))
    if comparison.paired:
        parts.append(_paragraph(format_paired_test(comparison.paired), width))
    if comparison.seeds:
        parts.append(_paragraph(format_seeds_test(comparison.seeds), width))
    parts += [_paragraph(f"Note: {note}.", width) for note in comparison.notes]
    return "\n".join(parts)


def format_paired_test(test: PairedTest) -> str:
    """Say what the predictions of two runs tell, for a reader who knows no statistics."""
    low, high = test.interval
    surprise, better = _judge(test.p_value, 1 if test.only_first > test.only_second else 2)
    return (
        f"Of the same {test.count:,} test images, run 1 has {test.right[0]:,} right and run 2 "
        f"{test.right[1]:,}; run 1 alone has {test.only_first:,} right, run 2 alone "
        f"{test.only_second:,}. Were both equally good, so uneven a split would be {surprise} "
        f"(McNemar's exact test, p = {test.p_value:.2g}): {better}. On all images of this kind, "
        f"run 2's accuracy minus run 1's is between {low:+.4f} and {high:+.4f} (95% interval). "
        "This holds for these two trained networks; another seed may change it."
    )


def format_seeds_test(test: SeedsTest) -> str:
    """Say what two recipes came to with several seeds each, for a reader of no statistics."""
    low, high = test.interval
    surprise, better = _judge(test.p_value, 1 if test.means[0] > test.means[1] else 2)
    return (
        f"Over {test.counts[0]} seeds, run 1's mean {test.metric} is {test.means[0]:.4f}; over "
        f"{test.counts[1]}, run 2's is {test.means[1]:.4f}. Were both recipes equally good, so "
        f"large a difference would be {surprise} (Welch's t-test, p = {test.p_value:.2g}): "
        f"{better}. With many more seeds, run 2's mean minus run 1's is between {low:+.4f} and "
        f"{high:+.4f} (95% interval). This holds for these recipes, trained and tested on these "
        "images."
    )


def _judge(p_value: float, winner: int) -> tuple[str, str]:
    if p_value < 0.05:
        return "a surprise", f"run {winner} is better"
    return "no surprise", "neither is shown to be better"


def _list_runs(comparison: Comparison, width: int) -> str:
    status = max(len(run.info.status) for run in comparison.runs)
    lines = []
    for number, run in enumerate(comparison.runs, 1):
        start, end = f"{GAP}{number}", f"{run.info.status:{status}}{GAP}{run.info.run_id}"
        room = max(NARROWEST_COLUMN, width - len(start + end) - 2 * len(GAP))
        lines.append(f"{start}{GAP}{cut(run.info.run_name or '', room):{room}}{GAP}{end}\n")
    return "".join(lines)


def _show_values(values: Sequence[str | None]) -> list[str]:
    """Show values, import paths by their last name where that tells them apart."""
    texts = [UNSET if each is None else " ".join(each.split()) for each in values]
    last = [re.sub(r"^([A-Za-z_]\w*\.)+(?=[A-Za-z_]\w*$)", "", text) for text in texts]
    return last if len(set(last)) == len(set(texts)) else texts


def _show_metrics(metrics: dict[str, list[float | None]]) -> dict[str, list[str]]:
    """Show values with their differences to the first, numbers below each other."""
    values, offsets = {}, {}
    for name, row in metrics.items():
        decimals = _decimals(name, [each for each in row if each is not None])
        values[name] = [UNSET if each is None else _number(each, decimals) for each in row]
        offsets[name] = [
            "" if each is None else "=" if each == 0 else _number(each, decimals, "+")
            for each in differences(row)
        ]
    widths = [
        [max(map(len, column)) for column in zip(*shown.values(), strict=True)]
        for shown in (values, offsets)
    ]
    return {
        name: [
            f"{value:>{w}}{f' {offset:>{o}}' if o else ''}"
            for value, offset, w, o in zip(values[name], offsets[name], *widths, strict=True)
        ]
        for name in metrics
    }


def _decimals(name: str, values: Sequence[float]) -> int:
    counts = not re.search("accuracy|loss", name) and all(each % 1 == 0 for each in values)
    return 0 if counts else 1 if any(100 <= abs(each) < inf for each in values) else 4


def _number(value: float, decimals: int, sign: str = "") -> str:
    if 1e6 <= abs(value) < inf:
        return f"{value / 1e6:{sign},.2f}M"
    if decimals == 4 and 0 < abs(value) < 1e-3:
        return f"{value:{sign}.2g}"
    return f"{value:{sign},.{decimals}f}"


def _paragraph(text: str, width: int) -> str:
    return fill(text, min(width, 100), break_long_words=False, break_on_hyphens=False) + "\n"


def table(
    rows: dict[str, list[str]], headings: Sequence[str], width: int, whole: bool = False
) -> str:
    """Set rows in columns, and in blocks one below the other where the columns are too many.

    Args:
        rows: Name and cells.
        headings: One for each column.
        width: How many characters a line may have.
        whole: Cells must not be cut.
    """
    first = min(max(map(len, rows)), WIDEST_NAME)
    room = width - len(GAP) - first
    share = max(NARROWEST_COLUMN, room // len(headings) - len(GAP))
    cells = [row if whole else _tell_apart(row, share) for row in rows.values()]
    widths = [
        max(min(len(heading), share), *map(len, column))
        for heading, column in zip(headings, zip(*cells, strict=True), strict=True)
    ]
    blocks = []
    for start, end in _blocks(widths, room):
        lines = []
        for name, row in [("", headings), *zip(rows, cells, strict=True)]:
            columns = zip(row[start:end], widths[start:end], strict=True)
            line = "".join(f"{GAP}{cut(cell, w):{w}}" for cell, w in columns)
            lines.append(f"{GAP}{cut(name, first):{first}}{line}".rstrip() + "\n")
        blocks.append("".join(lines))
    return "\n".join(blocks)


def cut(text: str, width: int) -> str:
    """Leave out the middle of a text that is too long."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _tell_apart(values: Sequence[str], width: int) -> list[str]:
    """Cut values to a width, where they begin alike rather than where they differ."""
    short = [cut(each, width) for each in values]
    if len(set(short)) == len(set(values)):
        return short
    alike = next(
        (i for i, letters in enumerate(zip(*values, strict=False)) if len(set(letters)) > 1),
        min(map(len, values)),
    )
    return [end if len(end := f"…{v[alike:]}") <= width else f"{end[: width - 1]}…" for v in values]


def _blocks(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    start, used = 0, 0
    for end, each in enumerate(widths):
        if end > start and used + len(GAP) + each > room:
            yield start, end
            start, used = end, 0
        used += len(GAP) + each
    yield start, len(widths)
