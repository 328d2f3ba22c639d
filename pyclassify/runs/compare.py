"""`pyclassify compare`: show how runs differ, and test whether one is better than another.

The command finds the runs, `_compare_runs` collects how they differ, and the result is written as a
page of text (sections of tables and sentences) or as JSON. A new statistic is a field of
`_Comparison` with its place in `_to_json` and `_format_report`. Nothing here loads torch.
"""

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

from pyclassify.runs.stats import (
    METRIC,
    PairedTest,
    SeedsTest,
    compare_on_images,
    compare_over_seeds,
)
from pyclassify.tracking.search import (
    find_best_runs,
    find_run,
    open_store,
)
from pyclassify.tracking.ui import find_server_address, format_fast_ui_command, link_comparison
from pyclassify.utils.masking import mask
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.options import CLASS_OPTIONS, SHORT_OPTIONS, CommandParser
from pyclassify.utils.text import join_lines

_DEFAULT_BEST = 5
_SIGNIFICANCE = 0.05
# Parameters that `mlflow run -P` logs as typed; training logs the same with a slash in the name.
_TYPED_PARAMS = {*SHORT_OPTIONS, *CLASS_OPTIONS, "trainer", "checkpoint", "config"}
_MISSING = "-"
_GAP = "  "
_MIN_COLUMN_WIDTH, _MAX_NAME_WIDTH, _MAX_TEXT_WIDTH = 12, 32, 100


@dataclass(frozen=True)
class _Comparison:
    """How runs differ.

    Args:
        runs: The runs; the others are compared to the first.
        differing_params: The values of each parameter that differs, by run; None if not set.
        num_equal_params: How many parameters are equal in all runs.
        metrics: The last values of each metric, by run; None if not logged.
        paired_test: The test of two runs with predictions for the same images.
        seeds_test: The test of two parents of seeds.
        notes: What to keep in mind, a sentence each.
    """

    runs: list[Run]
    differing_params: dict[str, list[str | None]]
    num_equal_params: int
    metrics: dict[str, list[float | None]]
    paired_test: PairedTest | None
    seeds_test: SeedsTest | None
    notes: list[str]


def main(argv: Sequence[str]) -> int:
    """Compare the named runs, or the best ones of an experiment.

    Args:
        argv: The command line after the command's name.

    Returns:
        The exit code.

    Raises:
        ValueError: The command line is wrong, or there are no such runs.
        OSError: There is no store.
    """
    args = _parse_args(argv)
    configure_mlflow(retries=2)
    comparison = _compare_runs(_find_runs(args))
    uri = mlflow.get_tracking_uri()
    infos = [run.info for run in comparison.runs]
    link = link_comparison(uri, [i.run_id for i in infos], [i.experiment_id for i in infos])
    if args.json:
        sys.stdout.write(json.dumps(_to_json(comparison, mask(uri), link), indent=2) + "\n")
        return 0
    has_server = find_server_address(uri) is not None
    how_to_open = "open" if has_server else f"start\n{format_fast_ui_command(uri)}\nand open"
    report = _format_report(comparison, shutil.get_terminal_size().columns)
    sys.stdout.write(f"{report}\nIn the browser: {how_to_open}\n{link}\n")
    return 0


def _parse_args(argv: Sequence[str]) -> argparse.Namespace:
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
    parser.add_argument(
        "--best", type=int, metavar="N", help=f"how many of them (default: {_DEFAULT_BEST})"
    )
    parser.add_argument("--metric", metavar="NAME", help=f"best by what (default: {METRIC})")
    parser.add_argument("--json", action="store_true", help="write JSON, for programs")
    args = parser.parse_args(argv)
    if args.experiment is None:
        for name in ("best", "metric"):
            if getattr(args, name) is not None:
                parser.error(f"--{name} is of an experiment's runs, and no --experiment is given")
    elif args.runs:
        parser.error("give either ids of runs or --experiment")
    if args.best is not None and args.best < 2:
        parser.error(f"--best is {args.best}; give 2 or more")
    return args


def _find_runs(args: argparse.Namespace) -> list[Run]:
    if args.experiment is None and len(set(args.runs)) < 2:
        raise ValueError(
            "compare takes two or more different runs; give their ids, or --experiment NAME for "
            "the best runs of one"
        )
    client = open_store()
    if args.experiment is not None:
        metric = args.metric or METRIC
        best = find_best_runs(client, args.experiment, metric, args.best or _DEFAULT_BEST)
        if len(best) < 2:
            raise ValueError(
                f"experiment {args.experiment!r} has only one finished run with the metric "
                f"{metric!r}, {best[0].info.run_id}; two or more can be compared"
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
        raise ValueError(f"these are all run {next(iter(runs))}; give two or more different runs")
    return list(runs.values())


def _compare_runs(runs: Sequence[Run]) -> _Comparison:
    """Collect how two or more runs differ: parameters, metrics and statistical tests."""
    params = [_drop_typed_params(run.data.params) for run in runs]
    rows = {name: [values.get(name) for values in params] for name in sorted(set().union(*params))}
    differing = {name: values for name, values in rows.items() if len(set(values)) > 1}
    metrics = sorted(set().union(*(run.data.metrics for run in runs)), key=_rank_metric)
    paired_test, image_notes = compare_on_images(runs)
    seeds_test, seeds_notes = compare_over_seeds(runs)
    status_notes = [
        f"run {number} is {run.info.status}, and its metrics are those of what it got to"
        for number, run in enumerate(runs, 1)
        if run.info.status != "FINISHED"
    ]
    return _Comparison(
        runs=list(runs),
        differing_params=differing,
        num_equal_params=len(rows) - len(differing),
        metrics={name: [run.data.metrics.get(name) for run in runs] for name in metrics},
        paired_test=paired_test,
        seeds_test=seeds_test,
        notes=status_notes + image_notes + seeds_notes,
    )


def _drop_typed_params(params: dict[str, str]) -> dict[str, str]:
    """Drop the parameters of `mlflow run -P` that training logged by their full names too."""
    if not any("/" in name for name in params):
        return params
    return {
        name: value
        for name, value in params.items()
        if "/" in name or name.partition(".")[0] not in _TYPED_PARAMS
    }


def _rank_metric(metric: str) -> tuple[int, str]:
    """Rank metrics of the test first, then of validation, of training, and others."""
    stages = ("test", "best", "val", "train")
    ranks = (rank for rank, stage in enumerate(stages) if metric.startswith(f"{stage}_"))
    return next(ranks, len(stages)), metric


def _subtract_first(values: Sequence[float | None]) -> list[float | None]:
    """Subtract the first value from the others; None where either is missing or not finite."""
    first, *others = map(_finite, values)
    return [None, *(None if v is None or first is None else v - first for v in others)]


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _to_json(comparison: _Comparison, tracking_uri: str, link: str) -> dict[str, Any]:
    """Convert a comparison to what JSON can hold; numbers that are not finite become null."""
    metrics = {
        name: {"values": [*map(_finite, values)], "differences": _subtract_first(values)}
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
        "parameters_that_differ": comparison.differing_params,
        "parameters_the_same": comparison.num_equal_params,
        "metrics": metrics,
        "paired_test": asdict(comparison.paired_test) if comparison.paired_test else None,
        "seeds_test": asdict(comparison.seeds_test) if comparison.seeds_test else None,
        "notes": comparison.notes,
        "link": link,
    }


def _format_report(comparison: _Comparison, width: int) -> str:
    """Format a comparison as text, in lines of at most so many characters."""
    headings = [f"{number} {run.info.run_name}" for number, run in enumerate(comparison.runs, 1)]
    sections = [
        "Runs\n" + _format_runs(comparison.runs, width),
        _format_params(comparison, headings, width),
    ]
    # The load of the machine is no result; the browser shows it.
    metrics = {k: v for k, v in comparison.metrics.items() if not k.startswith("system/")}
    if metrics:
        title = "Metrics, and how far they are from those of run 1\n"
        sections.append(
            title + _format_table(_format_metrics(metrics), headings, width, cut_cells=False)
        )
    if comparison.paired_test:
        sections.append(_wrap(_format_paired_test(comparison.paired_test), width))
    if comparison.seeds_test:
        sections.append(_wrap(_format_seeds_test(comparison.seeds_test), width))
    sections += [_wrap(f"Note: {note}.", width) for note in comparison.notes]
    return "\n".join(sections)


def _format_runs(runs: Sequence[Run], width: int) -> str:
    status_width = max(len(run.info.status) for run in runs)
    lines = []
    for number, run in enumerate(runs, 1):
        start = f"{_GAP}{number}"
        end = f"{run.info.status:{status_width}}{_GAP}{run.info.run_id}"
        room = max(_MIN_COLUMN_WIDTH, width - len(start + end) - 2 * len(_GAP))
        lines.append(f"{start}{_GAP}{_cut(run.info.run_name or '', room):{room}}{_GAP}{end}\n")
    return "".join(lines)


def _format_params(comparison: _Comparison, headings: Sequence[str], width: int) -> str:
    equal = comparison.num_equal_params
    equal_count = f"{equal:,} {'is' if equal == 1 else 'are'} the same"
    if not comparison.differing_params:
        return f"No parameter differs ({equal_count})\n"
    rows = {name: _format_values(values) for name, values in comparison.differing_params.items()}
    return f"Parameters that differ ({equal_count})\n" + _format_table(rows, headings, width)


def _format_values(values: Sequence[str | None]) -> list[str]:
    """Format values in one line each; import paths by their last name if that is unambiguous."""
    texts = [_MISSING if value is None else join_lines(value) for value in values]
    last = [re.sub(r"^([A-Za-z_]\w*\.)+(?=[A-Za-z_]\w*$)", "", text) for text in texts]
    return last if len(set(last)) == len(set(texts)) else texts


def _format_metrics(metrics: dict[str, list[float | None]]) -> dict[str, list[str]]:
    """Format values with their differences to the first, aligned in columns."""
    values, differences = {}, {}
    for name, row in metrics.items():
        decimals = _choose_decimals(name, [value for value in row if value is not None])
        values[name] = [_MISSING if v is None else _format_number(v, decimals) for v in row]
        differences[name] = [
            "" if v is None else "=" if v == 0 else _format_number(v, decimals, "+")
            for v in _subtract_first(row)
        ]
    widths = [
        [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
        for rows in (values, differences)
    ]
    return {
        name: [
            f"{value:>{w}}{f' {difference:>{d}}' if d else ''}"
            for value, difference, w, d in zip(
                values[name], differences[name], *widths, strict=True
            )
        ]
        for name in metrics
    }


def _choose_decimals(name: str, values: Sequence[float]) -> int:
    is_count = not re.search("accuracy|loss", name) and all(value % 1 == 0 for value in values)
    return 0 if is_count else 1 if any(100 <= abs(value) < inf for value in values) else 4


def _format_number(value: float, decimals: int, sign: str = "") -> str:
    if 1e6 <= abs(value) < inf:
        return f"{value / 1e6:{sign},.2f}M"
    if decimals == 4 and 0 < abs(value) < 1e-3:
        return f"{value:{sign}.2g}"
    return f"{value:{sign},.{decimals}f}"


def _format_paired_test(test: PairedTest) -> str:
    """Explain the paired test to a reader without statistics."""
    low, high = test.interval
    surprise, verdict = _format_verdict(
        test.p_value, better=1 if test.only_first > test.only_second else 2
    )
    return (
        f"Of the same {test.count:,} test images, run 1 has {test.right[0]:,} right and run 2 "
        f"{test.right[1]:,}; run 1 alone has {test.only_first:,} right, run 2 alone "
        f"{test.only_second:,}. Were both equally good, so uneven a split would be {surprise} "
        f"(McNemar's exact test, p = {test.p_value:.2g}): {verdict}. On all images of this kind, "
        f"run 2's accuracy minus run 1's is between {low:+.4f} and {high:+.4f} (95% interval). "
        "This holds for these two trained networks; another seed may change it."
    )


def _format_seeds_test(test: SeedsTest) -> str:
    """Explain the test over seeds to a reader without statistics."""
    low, high = test.interval
    surprise, verdict = _format_verdict(
        test.p_value, better=1 if test.means[0] > test.means[1] else 2
    )
    return (
        f"Over {test.counts[0]} seeds, run 1's mean {test.metric} is {test.means[0]:.4f}; over "
        f"{test.counts[1]}, run 2's is {test.means[1]:.4f}. Were both recipes equally good, so "
        f"large a difference would be {surprise} (Welch's t-test, p = {test.p_value:.2g}): "
        f"{verdict}. With many more seeds, run 2's mean minus run 1's is between {low:+.4f} and "
        f"{high:+.4f} (95% interval). This holds for these recipes, trained and tested on these "
        "images."
    )


def _format_verdict(p_value: float, better: int) -> tuple[str, str]:
    if p_value < _SIGNIFICANCE:
        return "a surprise", f"run {better} is better"
    return "no surprise", "neither is shown to be better"


def _wrap(text: str, width: int) -> str:
    width = min(width, _MAX_TEXT_WIDTH)
    return fill(text, width, break_long_words=False, break_on_hyphens=False) + "\n"


def _format_table(
    rows: dict[str, list[str]], headings: Sequence[str], width: int, cut_cells: bool = True
) -> str:
    """Format rows in columns, and in blocks below each other if the columns are too many.

    Args:
        rows: The cells of each row, by its name.
        headings: The heading of each column.
        width: The most characters of a line.
        cut_cells: Whether cells may be shortened.
    """
    name_width = min(max(map(len, rows)), _MAX_NAME_WIDTH)
    room = width - len(_GAP) - name_width
    share = max(_MIN_COLUMN_WIDTH, room // len(headings) - len(_GAP))
    cells = [_cut_apart(row, share) if cut_cells else row for row in rows.values()]
    widths = [
        max(min(len(heading), share), *map(len, column))
        for heading, column in zip(headings, zip(*cells, strict=True), strict=True)
    ]
    blocks = []
    for start, end in _split_columns(widths, room):
        lines = []
        for name, row in [("", headings), *zip(rows, cells, strict=True)]:
            columns = zip(row[start:end], widths[start:end], strict=True)
            line = "".join(f"{_GAP}{_cut(cell, w):{w}}" for cell, w in columns)
            lines.append(f"{_GAP}{_cut(name, name_width):{name_width}}{line}".rstrip() + "\n")
        blocks.append("".join(lines))
    return "\n".join(blocks)


def _split_columns(widths: Sequence[int], room: int) -> Iterator[tuple[int, int]]:
    """Split columns into blocks that fit; the start and end of each."""
    start, used = 0, 0
    for end, width in enumerate(widths):
        if end > start and used + len(_GAP) + width > room:
            yield start, end
            start, used = end, 0
        used += len(_GAP) + width
    yield start, len(widths)


def _cut(text: str, width: int) -> str:
    """Shorten a text in the middle."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


def _cut_apart(values: Sequence[str], width: int) -> list[str]:
    """Shorten values so that they stay different: at their common start if need be."""
    shortened = [_cut(value, width) for value in values]
    if len(set(shortened)) == len(set(values)):
        return shortened
    common = next(
        (i for i, letters in enumerate(zip(*values, strict=False)) if len(set(letters)) > 1),
        min(map(len, values)),
    )
    ends = [f"…{value[common:]}" for value in values]
    return [end if len(end) <= width else f"{end[: width - 1]}…" for end in ends]
