"""In what runs differ: parameters, metrics and predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from mlflow.entities import Run

from pyclassify.runs.pairing import PairedTest, judge
from pyclassify.runs.seedtest import SeedsTest, judge_seeds
from pyclassify.utils.options import PARTS, SHORT_OPTIONS

# What `mlflow run -P` may have stored as typed; the same is there as resolved, with a slash.
_AS_TYPED = {*SHORT_OPTIONS, *PARTS, "trainer", "checkpoint", "config"}


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


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare two or more runs."""
    params = [_resolve(run.data.params) for run in runs]
    rows = {name: [each.get(name) for each in params] for name in sorted(set().union(*params))}
    differ = {name: values for name, values in rows.items() if len(set(values)) > 1}
    names = sorted(set().union(*(run.data.metrics for run in runs)), key=_rank)
    paired, notes = judge(runs)
    seeds, more_notes = judge_seeds(runs)
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
