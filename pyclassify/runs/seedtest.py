"""Two recipes with several seeds each: is one better by more than luck?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from pyclassify.runs.pairing import list_test_digests
from pyclassify.runs.spread import FINISHED, SEEDS
from pyclassify.runs.stats import welch

METRIC = "test_accuracy"


@dataclass(frozen=True)
class SeedsTest:
    """How two recipes compare over their seeds.

    Args:
        metric: What is compared.
        counts: How many seeds each recipe had.
        means: Each one's mean.
        p_value: Welch's t-test of equal means.
        interval: The 95% interval of the means' difference, second minus first.
    """

    metric: str
    counts: tuple[int, int]
    means: tuple[float, float]
    p_value: float
    interval: tuple[float, float]


def judge_seeds(runs: Sequence[Run]) -> tuple[SeedsTest | None, list[str]]:
    """Compare runs that are parents of seeds, by what they hold of the runs under them.

    Returns:
        The test, where there are two parents of two finished seeds or more, tested on the same
        images as far as the parents tell; and what to keep in mind, a sentence each.
    """
    parents = {number: run for number, run in enumerate(runs, 1) if SEEDS in run.data.tags}
    notes = [
        f"run {number} is of {count:.0f} seed{'s' * (count != 1)}, and its metrics are their "
        "means, deviations and intervals"
        for number, run in parents.items()
        for count in [run.data.metrics.get(FINISHED, 0)]
    ]
    notes += _name_children(runs, parents)
    if len(parents) != 2 or len(runs) != 2:
        return None, notes
    first, second = runs
    digests = [list_test_digests(run) for run in runs]
    if all(digests) and digests[0] != digests[1]:
        return None, [
            *notes,
            "the test images of run 2 are not those of run 1 (other content, by the data's "
            "digest), so that their test metrics don't say which recipe is better",
        ]
    one, other = (_read(run.data.metrics) for run in (first, second))
    if min(one[2], other[2]) < 2:
        said = f"a test of two recipes needs two finished seeds of each with a {METRIC}"
        return None, [*notes, said]
    means, counts = (one[0], other[0]), (one[2], other[2])
    p_value, interval = welch(means, (one[1], other[1]), counts)
    return SeedsTest(METRIC, counts, means, p_value, interval), notes


def _read(metrics: Mapping[str, float]) -> tuple[float, float, int]:
    """Mean, standard deviation and number of seeds; no seed where there is no deviation."""
    mean, deviation = (metrics.get(f"{METRIC}_{name}") for name in ("mean", "std"))
    if mean is None or deviation is None or not isfinite(mean):
        return 0.0, 0.0, 0
    return mean, deviation, int(metrics[FINISHED])


def _name_children(runs: Sequence[Run], parents: Mapping[int, Run]) -> list[str]:
    ids = {run.info.run_id: number for number, run in parents.items()}
    above = {n: ids.get(run.data.tags.get(MLFLOW_PARENT_RUN_ID)) for n, run in enumerate(runs, 1)}
    return [
        f"run {number} is one of the seeds of run {parent}, and counts in its means"
        for number, parent in above.items()
        if parent
    ]
