"""How runs differ, as data, as JSON and as a page of text for a terminal.

`compare_runs` collects the differences of parameters and metrics and the statistical tests. A new
statistic is a field of `Comparison`, which `to_json` and `format_report` have to show. Nothing here
loads torch.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite
from textwrap import fill
from typing import Any

from mlflow.entities import Run

from pyclassify.runs.stats import (
    PairedTest,
    SeedsTest,
    compare_on_images,
    compare_over_seeds,
)
from pyclassify.utils.options import CLASS_OPTIONS, SHORT_OPTIONS
from pyclassify.utils.text import join_lines

_SIGNIFICANCE_LEVEL = 0.05
# Parameters that `mlflow run -P` logs as typed; training logs the same with a slash in the name.
_TYPED_PARAMS = {*SHORT_OPTIONS, *CLASS_OPTIONS, "trainer", "checkpoint", "config"}
_MISSING = "-"
_GAP = "  "
_MIN_COLUMN_WIDTH, _MAX_NAME_WIDTH, _MAX_TEXT_WIDTH = 12, 32, 100


@dataclass(frozen=True)
class Comparison:
    """How runs differ.

    Args:
        runs: The runs; the others are compared to the first.
        differing_params: The values of each parameter that differs, by run; None if not set.
        num_equal_params: How many parameters are equal in all runs.
        metrics: The last values of each metric, by run; None if not logged.
        paired_test: The test of two runs with predictions for the same images.
        seeds_test: The test of two parents of seeds.
        notes: Remarks, one clause each.
    """

    runs: list[Run]
    differing_params: dict[str, list[str | None]]
    num_equal_params: int
    metrics: dict[str, list[float | None]]
    paired_test: PairedTest | None
    seeds_test: SeedsTest | None
    notes: list[str]


def compare_runs(runs: Sequence[Run]) -> Comparison:
    """Collect how two or more runs differ: parameters, metrics and statistical tests."""
    params = [_drop_typed_params(run.data.params) for run in runs]
    rows = {name: [values.get(name) for values in params] for name in sorted(set().union(*params))}
    differing = {name: values for name, values in rows.items() if len(set(values)) > 1}
    metrics = sorted(set().union(*(run.data.metrics for run in runs)), key=_rank_metric)
    paired_test, image_notes = compare_on_images(runs)
    seeds_test, seeds_notes = compare_over_seeds(runs)
    status_notes = [
        f"run {number} is {run.info.status}, so its metrics are not final"
        for number, run in enumerate(runs, 1)
        if run.info.status != "FINISHED"
    ]
    return Comparison(
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


def to_json(comparison: Comparison, tracking_uri: str, url: str) -> dict[str, Any]:
    """Convert a comparison to values for JSON; numbers that are not finite become null."""
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
        "differing_parameters": comparison.differing_params,
        "num_equal_parameters": comparison.num_equal_params,
        "metrics": metrics,
        "paired_test": asdict(comparison.paired_test) if comparison.paired_test else None,
        "seeds_test": asdict(comparison.seeds_test) if comparison.seeds_test else None,
        "notes": comparison.notes,
        "url": url,
    }


def format_report(comparison: Comparison, width: int) -> str:
    """Format a comparison as text, in lines of at most `width` characters."""
    headings = [f"{number} {run.info.run_name}" for number, run in enumerate(comparison.runs, 1)]
    sections = [
        "Runs\n" + _format_runs(comparison.runs, width),
        _format_params(comparison, headings, width),
    ]
    # System metrics, such as the CPU's utilization, are not results.
    metrics = {k: v for k, v in comparison.metrics.items() if not k.startswith("system/")}
    if metrics:
        title = "Metrics, with the difference to run 1\n"
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


def _format_params(comparison: Comparison, headings: Sequence[str], width: int) -> str:
    equal = comparison.num_equal_params
    equal_count = f"{equal:,} {'is' if equal == 1 else 'are'} equal"
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
    low, high = test.interval_95
    better = 1 if test.only_first_correct > test.only_second_correct else 2
    return (
        f"Paired test: on the same {test.num_images:,} test images, run 1 predicts "
        f"{test.num_correct[0]:,} correctly and run 2 predicts {test.num_correct[1]:,}. Correct in "
        f"run 1 only: {test.only_first_correct:,}; in run 2 only: {test.only_second_correct:,}. "
        f"{_format_verdict(test.p_value, better)} (McNemar's exact "
        f"test, p = {test.p_value:.2g}). The accuracy of run 2 minus that of run 1 is between "
        f"{low:+.4f} and {high:+.4f} (95% confidence interval). The test compares these two "
        "trained networks; training with other seeds may change the result."
    )


def _format_seeds_test(test: SeedsTest) -> str:
    low, high = test.interval_95
    better = 1 if test.means[0] > test.means[1] else 2
    return (
        f"Test over seeds: the mean {test.metric} of run 1 is {test.means[0]:.4f} "
        f"({test.num_seeds[0]} seeds), and that of run 2 is {test.means[1]:.4f} "
        f"({test.num_seeds[1]} seeds). {_format_verdict(test.p_value, better)} (Welch's t-test, "
        f"p = {test.p_value:.2g}). The mean of run 2 minus that of run 1 is between {low:+.4f} and "
        f"{high:+.4f} (95% confidence interval). The test compares these two recipes, trained and "
        "tested on these images."
    )


def _format_verdict(p_value: float, better: int) -> str:
    if p_value < _SIGNIFICANCE_LEVEL:
        return f"Run {better} is significantly better"
    return "Neither run is significantly better"


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
        width: The maximum number of characters in a line.
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
    """Shorten values so that they stay different: if necessary, at their common prefix."""
    shortened = [_cut(value, width) for value in values]
    if len(set(shortened)) == len(set(values)):
        return shortened
    common = next(
        (i for i, letters in enumerate(zip(*values, strict=False)) if len(set(letters)) > 1),
        min(map(len, values)),
    )
    ends = [f"…{value[common:]}" for value in values]
    return [end if len(end) <= width else f"{end[: width - 1]}…" for end in ends]
