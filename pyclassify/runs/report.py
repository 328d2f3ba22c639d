"""A comparison of runs as text for a terminal."""

import re
from collections.abc import Sequence
from math import inf
from textwrap import fill

from pyclassify.runs.comparison import Comparison, differences
from pyclassify.runs.pairing import PairedTest
from pyclassify.runs.seedtest import SeedsTest
from pyclassify.runs.table import GAP, NARROWEST_COLUMN, cut, table

UNSET = "-"


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
