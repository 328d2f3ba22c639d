"""How sure a comparison of classifiers is: statistics of paired predictions and of seeds."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, stdev
from typing import Any

from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from scipy.stats import binomtest, norm, t, ttest_ind_from_stats

from pyclassify.tracking.prediction_table import (
    PREDICTIONS_FILE,
    PredictionsByIndex,
    read_predictions,
)
from pyclassify.utils.text import format_error

METRIC = "test_accuracy"
# A tag with the seeds; it tells a parent from other runs.
SEEDS_TAG = "pyclassify.seeds"
FINISHED_METRIC = "seeds_finished"
# What a reader asks for first.
_FIRST = ("test_accuracy", "best_val_accuracy", "val_accuracy")


def mcnemar(only_first: int, only_second: int) -> float:
    """Test whether two classifiers have the same accuracy, on the same images.

    McNemar's test (Psychometrika 12, 1947) in its exact form: images that both have right or both
    have wrong say nothing; were the two equally good, each other image would be as likely to fall
    to either, as a fair coin does.

    Args:
        only_first: How many images the first alone has right.
        only_second: How many the second alone has right.

    Returns:
        The two-sided p-value; 1.0 where they differ on no image.
    """
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def paired_interval(
    only_first: int, only_second: int, count: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Estimate how much more accurate the second classifier is, from the same images.

    The adjusted Wald interval of Bonett and Price (Journal of Educational and Behavioral Statistics
    37, 2012): one image more is counted for each side. Fagerland, Lydersen and Laake (Statistics in
    Medicine 33, 2014) recommend it, since it covers the true difference as often as it says on few
    images too, where the plain Wald interval does not and has no width for equal predictions.

    Args:
        only_first: How many images the first alone has right.
        only_second: How many the second alone has right.
        count: How many images there are.
        confidence: How often such an interval holds the true difference.

    Returns:
        The lowest and the highest difference of the accuracies, second minus first, in [-1, 1].

    Raises:
        ValueError: There are fewer images than were counted, or none.
    """
    if count < max(1, only_first + only_second):
        raise ValueError(
            f"{only_first} and {only_second} of {count} images is no count; count each image once, "
            "of one or more"
        )
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    middle = second - first
    reach = norm.ppf((1 + confidence) / 2) * sqrt((first + second - middle**2) / (count + 2))
    return max(-1.0, float(middle - reach)), min(1.0, float(middle + reach))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Estimate the mean that many more seeds would have, by Student's t (Biometrika 6, 1908).

    Args:
        values: What was measured, one value a seed; two or more.
        confidence: How often such an interval holds the true mean, where the values are normal.

    Returns:
        The lowest and the highest mean.

    Raises:
        ValueError: There are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs two or more values, and {len(values)} was given")
    quantile = t.ppf((1 + confidence) / 2, len(values) - 1)
    reach = float(quantile) * stdev(values) / sqrt(len(values))
    return fmean(values) - reach, fmean(values) + reach


def welch(
    means: tuple[float, float],
    deviations: tuple[float, float],
    counts: tuple[int, int],
    confidence: float = 0.95,
) -> tuple[float, tuple[float, float]]:
    """Test whether two recipes have the same mean, and estimate how far the means are apart.

    The test of Welch (Biometrika 34, 1947), which lets one recipe vary more from seed to seed than
    the other; the interval of the difference has its standard error and degrees of freedom.

    Args:
        means: Each recipe's mean over its seeds.
        deviations: The standard deviation of each one's sample.
        counts: How many seeds each one had; two or more.
        confidence: How often such an interval holds the true difference, where the values are
            normal.

    Returns:
        The two-sided p-value, and the lowest and the highest difference, second minus first. Where
        neither recipe varies, the means are as far apart as they are: p is 1.0 or 0.0.

    Raises:
        ValueError: A recipe had fewer than two seeds.
    """
    if min(counts) < 2:
        raise ValueError(f"the test needs two or more seeds each, and {min(counts)} was given")
    apart = means[1] - means[0]
    first, second = (s**2 / n for s, n in zip(deviations, counts, strict=True))
    if first + second == 0:
        return float(apart == 0), (apart, apart)
    given = (each for side in zip(means, deviations, counts, strict=True) for each in side)
    p_value = ttest_ind_from_stats(*given, equal_var=False).pvalue
    freedom = (first + second) ** 2 / (first**2 / (counts[0] - 1) + second**2 / (counts[1] - 1))
    reach = float(t.ppf((1 + confidence) / 2, freedom)) * sqrt(first + second)
    return float(p_value), (apart - reach, apart + reach)


@dataclass(frozen=True)
class PairedTest:
    """How two runs' answers to the same images compare.

    Args:
        count: How many images there are.
        right: How many each run has right.
        only_first: How many the first run alone has right.
        only_second: How many the second run alone has right.
        p_value: McNemar's exact test of equal accuracy.
        interval: The 95% interval of the accuracies' difference, second minus first.
    """

    count: int
    right: tuple[int, int]
    only_first: int
    only_second: int
    p_value: float
    interval: tuple[float, float]


def compare_predictions(first: PredictionsByIndex, second: PredictionsByIndex) -> PairedTest:
    """Compare two runs' answers to the same images."""
    kinds = Counter((first[index][1], second[index][1]) for index in first)
    both, only_first, only_second = kinds[True, True], kinds[True, False], kinds[False, True]
    return PairedTest(
        count=len(first),
        right=(both + only_first, both + only_second),
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
        interval=paired_interval(only_first, only_second, len(first)),
    )


def compare_on_images(runs: Sequence[Run]) -> tuple[PairedTest | None, list[str]]:
    """Compare what runs predicted.

    Returns:
        The test, where there are two runs with the same images, and what speaks against comparing
        the runs by their test metrics, a sentence each.
    """
    answers: dict[int, PredictionsByIndex] = {}
    lacking: list[int] = []
    notes: list[str] = []
    for number, run in enumerate(runs, 1):
        if SEEDS_TAG in run.data.tags:
            continue  # its answers are those of the runs under it
        try:
            found = read_predictions(run)
        except Exception as error:  # each kind of artifact store fails in its own way
            reason = format_error(error)
            notes.append(f"{PREDICTIONS_FILE} of run {number} can't be read: {reason}")
            continue
        if found is None:
            lacking.append(number)
        else:
            answers[number] = found
    if lacking:
        which = ", ".join(map(str, lacking))
        have = f"run {which} has" if len(lacking) == 1 else f"runs {which} have"
        notes.append(f"{have} no {PREDICTIONS_FILE}, which shows whether test images are the same")
    others = _others(runs, answers)
    same = not others and len(answers) == len(runs)
    return (
        compare_predictions(*answers.values()) if same and len(runs) == 2 else None
    ), notes + others


def _others(runs: Sequence[Run], answers: dict[int, PredictionsByIndex]) -> list[str]:
    """Name the runs whose test images are not those of the first that kept its answers."""
    notes = []
    first, *rest = answers or [0]
    for number in rest:
        two = (runs[first - 1], runs[number - 1])
        if how := describe_image_mismatch(two, (answers[first], answers[number])):
            notes.append(
                f"the test images of run {number} are not those of run {first} ({how}), so that "
                "their test metrics don't say which network is better"
            )
    return notes


def describe_image_mismatch(
    runs: tuple[Run | None, Run | None], answers: tuple[PredictionsByIndex, PredictionsByIndex]
) -> str | None:
    """Say in what two runs' test images differ: number, indices, labels or content.

    Args:
        runs: The runs; None for answers that are no run's, of which the content can't be told.
        answers: What each one answered.

    Returns:
        None where they don't, as far as the runs tell.
    """
    first, second = answers
    if len(first) != len(second):
        return f"{len(second):,} images, not {len(first):,}"
    if first.keys() != second.keys():
        return "other indices"
    if any(first[index][0] != second[index][0] for index in first):
        return "other labels"
    digests = [_list_test_digests(run) if run else set() for run in runs]
    if all(digests) and digests[0] != digests[1]:
        return "other content, by the data's digest"
    return None


def _list_test_digests(run: Run) -> set[str]:
    """The digests of a run's test images, or else of all its data; empty where it kept none."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    contexts = [
        "".join(tag.value for tag in each.tags if tag.key == "mlflow.data.context")
        for each in inputs
    ]
    digests = [each.dataset.digest for each in inputs]
    test = {d for d, context in zip(digests, contexts, strict=True) if context.startswith("test")}
    return test or set(digests)


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


def compare_over_seeds(runs: Sequence[Run]) -> tuple[SeedsTest | None, list[str]]:
    """Compare runs that are parents of seeds, by what they hold of the runs under them.

    Returns:
        The test, where there are two parents of two finished seeds or more, tested on the same
        images as far as the parents tell; and what to keep in mind, a sentence each.
    """
    parents = {number: run for number, run in enumerate(runs, 1) if SEEDS_TAG in run.data.tags}
    notes = [
        f"run {number} is of {count:.0f} seed{'s' * (count != 1)}, and its metrics are their "
        "means, deviations and intervals"
        for number, run in parents.items()
        for count in [run.data.metrics.get(FINISHED_METRIC, 0)]
    ]
    notes += _name_children(runs, parents)
    if len(parents) != 2 or len(runs) != 2:
        return None, notes
    first, second = runs
    digests = [_list_test_digests(run) for run in runs]
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
    return mean, deviation, int(metrics[FINISHED_METRIC])


def _name_children(runs: Sequence[Run], parents: Mapping[int, Run]) -> list[str]:
    ids = {run.info.run_id: number for number, run in parents.items()}
    above = {n: ids.get(run.data.tags.get(MLFLOW_PARENT_RUN_ID)) for n, run in enumerate(runs, 1)}
    return [
        f"run {number} is one of the seeds of run {parent}, and counts in its means"
        for number, parent in above.items()
        if parent
    ]


def summarize_seeds(children: Sequence[Run]) -> dict[str, float]:
    """Summarise the metrics of whole trainings, over the seeds that finished.

    Args:
        children: The runs of the seeds; those that did not finish are left out.

    Returns:
        `seeds_finished`, and for each metric of the test, or of validation where none was tested,
        `_mean`; from two seeds on `_std`, of the sample, and `_low` and `_high`, the 95% interval
        of the mean. These are left out where a seed that finished lacks the metric, or has one that
        is not finite.
    """
    finished = [child for child in children if child.info.status == "FINISHED"]
    found: dict[str, float] = {FINISHED_METRIC: len(finished)}
    for name in _names(finished):
        values = read_metric(finished, name)
        found[f"{name}_mean"] = fmean(values)
        if 1 < len(values) == len(finished) and all(map(isfinite, values)):
            found[f"{name}_std"] = stdev(values)
            found[f"{name}_low"], found[f"{name}_high"] = mean_interval(values)
    return found


def _names(runs: Sequence[Run]) -> list[str]:
    names = sorted({name for run in runs for name in run.data.metrics})
    tested = any(name.startswith("test_") for name in names)
    stages = ("test_", "best_") if tested else ("best_", "val_")
    return [name for name in names if name.startswith(stages)]


def choose_metric(children: Sequence[Run]) -> str:
    """Choose the one metric that seeds are told by."""
    names = _names(children)
    return next((name for name in (*_FIRST, *names) if name in names), _FIRST[0])


def read_metric(children: Sequence[Run], metric: str) -> list[float]:
    """Read a metric in the runs that finished and have it."""
    return [
        child.data.metrics[metric]
        for child in children
        if child.info.status == "FINISHED" and metric in child.data.metrics
    ]


def format_mean_and_deviation(values: Sequence[float]) -> str:
    """Say a mean, the standard deviation and the mean's interval: 0.81 ± 0.01 (95%: ...)."""
    if not values:
        return "no seed that finished has it"
    mean, count = fmean(values), f"{len(values)} seed{'s' if len(values) > 1 else ''}"
    if len(values) == 1 or not all(map(isfinite, values)):
        return f"{mean:.4f} ({count})"
    low, high = mean_interval(values)
    return f"{mean:.4f} ± {stdev(values):.4f} (95%: {low:.4f} to {high:.4f}, {count})"


def agree(params: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The parameters of ours, those with a slash in their name, that all runs have alike."""
    first, *others = params
    return {
        name: value
        for name, value in first.items()
        if "/" in name and all(each.get(name) == value for each in others)
    }


def name_parent(children: Sequence[Run], count: int) -> str | None:
    """A parent's name by its children's: AlexNet-CIFAR10-5seeds by AlexNet-CIFAR10-seed0."""
    found = (re.fullmatch(r"(.+)-seed\d+", child.info.run_name or "") for child in children)
    return next((f"{match[1]}-{count}seeds" for match in found if match), None)


def find_logger(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Find what is set of the logger of runs, which may be one of several.

    Args:
        chosen: Dotted keys and values, as `options.settings` lists them.
    """
    start = "trainer.logger."
    alone = {key.removeprefix(start): v for key, v in chosen.items() if key.startswith(start)}
    several = chosen.get("trainer.logger")
    for each in several if isinstance(several, list) else ():
        if isinstance(each, dict) and str(each.get("class_path")).endswith("RunLogger"):
            return {**(each.get("init_args") or {}), **alone}
    return alone
