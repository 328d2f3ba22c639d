"""Statistical comparisons of runs: paired on the same test images, and over several seeds.

Two runs with the same test images are compared by McNemar's test of their predictions, and two
parents of seeds by Welch's t-test of their means. Nothing here loads torch.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, stdev

from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from scipy.stats import binomtest, norm, t, ttest_ind_from_stats

from pyclassify.tracking.prediction_table import (
    PREDICTIONS_FILE,
    PredictionsByIndex,
    read_predictions,
)
from pyclassify.utils.text import format_error

# The metric that runs and recipes are compared by unless another is named.
METRIC = "test_accuracy"
# The tag of a parent run with the range of its seeds: "0 to 4".
SEEDS_TAG = "pyclassify.seeds"
# The metric of a parent run with its number of finished seeds.
_FINISHED_METRIC = "seeds_finished"
# The metrics that seeds are reported by, the first that they have.
_HEADLINE_METRICS = (METRIC, "best_val_accuracy", "val_accuracy")


@dataclass(frozen=True)
class PairedTest:
    """The paired comparison of two runs' predictions for the same images.

    Args:
        num_images: The number of images.
        num_correct: How many images each run predicts correctly.
        only_first_correct: How many images only the first run predicts correctly.
        only_second_correct: How many images only the second run predicts correctly.
        p_value: The p-value of McNemar's exact test of equal accuracy.
        interval_95: The 95% confidence interval of the difference in accuracy, second minus first.

    Example:
        >>> first = {0: ("cat", True), 1: ("dog", False)}
        >>> second = {0: ("cat", True), 1: ("dog", True)}
        >>> compare_predictions(first, second).num_correct
        (1, 2)
    """

    num_images: int
    num_correct: tuple[int, int]
    only_first_correct: int
    only_second_correct: int
    p_value: float
    interval_95: tuple[float, float]


@dataclass(frozen=True)
class SeedsTest:
    """The comparison of two recipes that were each trained with several seeds.

    Args:
        metric: The metric that is compared.
        num_seeds: The number of seeds of each recipe.
        means: The mean of each recipe.
        p_value: The p-value of Welch's t-test of equal means.
        interval_95: The 95% confidence interval of the difference of the means, second minus first.
    """

    metric: str
    num_seeds: tuple[int, int]
    means: tuple[float, float]
    p_value: float
    interval_95: tuple[float, float]


def compare_on_images(runs: Sequence[Run]) -> tuple[PairedTest | None, list[str]]:
    """Compare the test predictions of runs.

    Returns:
        The test, if there are two runs with the same test images; and the reasons not to compare
        the runs by their test metrics, one clause each.
    """
    predictions: dict[int, PredictionsByIndex] = {}
    lacking: list[int] = []
    notes: list[str] = []
    for number, run in enumerate(runs, 1):
        if SEEDS_TAG in run.data.tags:
            continue  # its child runs have the predictions
        try:
            found = read_predictions(run)
        except Exception as error:  # each kind of artifact store raises its own
            message = format_error(error)
            notes.append(f"{PREDICTIONS_FILE} of run {number} can't be read: {message}")
            continue
        if found is None:
            lacking.append(number)
        else:
            predictions[number] = found
    if lacking:
        numbers = ", ".join(map(str, lacking))
        subject = f"run {numbers} has" if len(lacking) == 1 else f"runs {numbers} have"
        notes.append(
            f"{subject} no {PREDICTIONS_FILE}, so the predictions for the test images can't be "
            "compared"
        )
    mismatches = _list_image_mismatches(runs, predictions)
    comparable = not mismatches and len(predictions) == len(runs) == 2
    test = compare_predictions(*predictions.values()) if comparable else None
    return test, notes + mismatches


def _list_image_mismatches(
    runs: Sequence[Run], predictions: dict[int, PredictionsByIndex]
) -> list[str]:
    """List the runs whose test images differ from those of the first run with predictions."""
    if not predictions:
        return []
    notes = []
    first, *others = predictions
    for number in others:
        mismatch = describe_image_mismatch(
            (runs[first - 1], runs[number - 1]), (predictions[first], predictions[number])
        )
        if mismatch:
            notes.append(
                f"the test images of run {number} differ from those of run {first} ({mismatch}), "
                "so their test metrics do not show which network is better"
            )
    return notes


def describe_image_mismatch(
    runs: tuple[Run | None, Run | None],
    predictions: tuple[PredictionsByIndex, PredictionsByIndex],
) -> str | None:
    """Describe how the test images of two runs differ: by number, index, label or content.

    Args:
        runs: The runs; None for predictions without a run, whose content is not compared.
        predictions: The predictions of each one.

    Returns:
        None if no difference was found.
    """
    first, second = predictions
    if len(first) != len(second):
        return f"{len(second):,} images, not {len(first):,}"
    if first.keys() != second.keys():
        return "different indices"
    if any(first[index][0] != second[index][0] for index in first):
        return "different labels"
    if _have_other_images(*runs):
        return "different content, by the digest of the data"
    return None


def _have_other_images(first: Run | None, second: Run | None) -> bool:
    """Whether both runs logged digests of their test images, and they differ."""
    digests = [_list_test_digests(run) if run else set() for run in (first, second)]
    return all(digests) and digests[0] != digests[1]


def _list_test_digests(run: Run) -> set[str]:
    """List the digests of a run's test images, or of all its images if none are marked as such."""
    inputs = run.inputs.dataset_inputs if run.inputs else []
    contexts = [
        "".join(tag.value for tag in entry.tags if tag.key == "mlflow.data.context")
        for entry in inputs
    ]
    digests = [entry.dataset.digest for entry in inputs]
    test = {d for d, context in zip(digests, contexts, strict=True) if context.startswith("test")}
    return test or set(digests)


def compare_predictions(first: PredictionsByIndex, second: PredictionsByIndex) -> PairedTest:
    """Compare two runs' predictions for the same images."""
    counts = Counter((first[index][1], second[index][1]) for index in first)
    both, only_first, only_second = counts[True, True], counts[True, False], counts[False, True]
    return PairedTest(
        num_images=len(first),
        num_correct=(both + only_first, both + only_second),
        only_first_correct=only_first,
        only_second_correct=only_second,
        p_value=mcnemar(only_first, only_second),
        interval_95=paired_interval(only_first, only_second, len(first)),
    )


def compare_over_seeds(runs: Sequence[Run]) -> tuple[SeedsTest | None, list[str]]:
    """Compare parents of seeds by the statistics that they logged.

    Returns:
        The test, if there are two parents of at least two finished seeds each, whose test images
        are not known to differ; and remarks, one clause each.
    """
    parents = {number: run for number, run in enumerate(runs, 1) if SEEDS_TAG in run.data.tags}
    notes = []
    for number, run in parents.items():
        count = run.data.metrics.get(_FINISHED_METRIC, 0)
        notes.append(
            f"run {number} is the parent of {count:.0f} finished seed{'s' * (count != 1)}; its "
            "metrics are their means, standard deviations and confidence intervals"
        )
    notes += _list_compared_children(runs, parents)
    if len(parents) != 2 or len(runs) != 2:
        return None, notes
    if _have_other_images(*runs):
        return None, [
            *notes,
            "the test images of run 2 differ from those of run 1 (different content, by the digest "
            "of the data), so their test metrics do not show which recipe is better",
        ]
    first, second = (_read_statistics(run.data.metrics) for run in runs)
    if first is None or second is None:
        message = f"comparing two recipes needs two finished seeds of each with {METRIC}"
        return None, [*notes, message]
    means, counts = (first[0], second[0]), (first[2], second[2])
    p_value, interval = welch(means, (first[1], second[1]), counts)
    return SeedsTest(METRIC, counts, means, p_value, interval), notes


def _read_statistics(metrics: Mapping[str, float]) -> tuple[float, float, int] | None:
    """Read mean, standard deviation and number of seeds; None without two finished seeds."""
    mean, deviation = metrics.get(f"{METRIC}_mean"), metrics.get(f"{METRIC}_std")
    if mean is None or deviation is None or not isfinite(mean) or metrics[_FINISHED_METRIC] < 2:
        return None
    return mean, deviation, int(metrics[_FINISHED_METRIC])


def _list_compared_children(runs: Sequence[Run], parents: Mapping[int, Run]) -> list[str]:
    """List the runs that are seeds of another of the runs."""
    numbers = {run.info.run_id: number for number, run in parents.items()}
    notes = []
    for number, run in enumerate(runs, 1):
        if parent := numbers.get(run.data.tags.get(MLFLOW_PARENT_RUN_ID)):
            notes.append(
                f"run {number} is one of the seeds of run {parent}, and is part of its means"
            )
    return notes


def summarize_seeds(children: Sequence[Run]) -> dict[str, float]:
    """Compute the seed statistics that a parent run logs.

    Args:
        children: The runs of the seeds; only the finished ones count.

    Returns:
        `seeds_finished`, and for each metric of the test (of validation, if none was tested) its
        `_mean`. From two seeds on also `_std`, the sample standard deviation, and `_low` and
        `_high`, the 95% confidence interval of the mean; these are left out if a finished seed
        lacks the metric or has one that is not finite.
    """
    finished = [child for child in children if child.info.status == "FINISHED"]
    statistics: dict[str, float] = {_FINISHED_METRIC: len(finished)}
    for metric in _list_result_metrics(finished):
        values = read_metric(finished, metric)
        statistics[f"{metric}_mean"] = fmean(values)
        if 1 < len(values) == len(finished) and all(map(isfinite, values)):
            statistics[f"{metric}_std"] = stdev(values)
            statistics[f"{metric}_low"], statistics[f"{metric}_high"] = mean_interval(values)
    return statistics


def choose_metric(children: Sequence[Run]) -> str:
    """Choose the one metric that seeds are reported by."""
    names = _list_result_metrics(children)
    candidates = (name for name in (*_HEADLINE_METRICS, *names) if name in names)
    return next(candidates, METRIC)


def _list_result_metrics(runs: Sequence[Run]) -> list[str]:
    """List the metrics of the test, or of validation if no run was tested."""
    names = sorted({name for run in runs for name in run.data.metrics})
    tested = any(name.startswith("test_") for name in names)
    stages = ("test_", "best_") if tested else ("best_", "val_")
    return [name for name in names if name.startswith(stages)]


def read_metric(children: Sequence[Run], metric: str) -> list[float]:
    """Read a metric of the finished runs that have it."""
    return [
        child.data.metrics[metric]
        for child in children
        if child.info.status == "FINISHED" and metric in child.data.metrics
    ]


def format_mean_and_deviation(values: Sequence[float]) -> str:
    """Format mean, standard deviation and confidence interval: 0.81 ± 0.01 (95% CI ...)."""
    if not values:
        return "no finished seed has this metric"
    mean, count = fmean(values), f"{len(values)} seed{'s' if len(values) > 1 else ''}"
    if len(values) == 1 or not all(map(isfinite, values)):
        return f"{mean:.4f} ({count})"
    low, high = mean_interval(values)
    return f"{mean:.4f} ± {stdev(values):.4f} (95% CI {low:.4f} to {high:.4f}, {count})"


def mcnemar(only_first: int, only_second: int) -> float:
    """Test whether two classifiers have the same accuracy, on the same images.

    McNemar's test (Psychometrika 12, 1947) in its exact form, a binomial test
    (scipy.stats.binomtest). Images that both classifiers predict correctly, or both wrongly, carry
    no information; under the null hypothesis each other image favors either with probability 1/2.

    Args:
        only_first: How many images only the first classifier predicts correctly.
        only_second: How many images only the second classifier predicts correctly.

    Returns:
        The two-sided p-value; 1.0 if the classifiers differ on no image.
    """
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def paired_interval(
    only_first: int, only_second: int, count: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Estimate how much more accurate the second classifier is, on the same images.

    The adjusted Wald interval of Bonett and Price (Journal of Educational and Behavioral Statistics
    37, 2012): one image more is counted for each side. Fagerland, Lydersen and Laake (Statistics in
    Medicine 33, 2014) recommend it: its coverage is near nominal for few images too, where the
    plain Wald interval covers too little and has no width for equal predictions.

    Args:
        only_first: How many images only the first classifier predicts correctly.
        only_second: How many images only the second classifier predicts correctly.
        count: The number of images.
        confidence: The coverage, in (0, 1).

    Returns:
        The lower and upper bound of the difference in accuracy, second minus first, in [-1, 1].

    Raises:
        ValueError: `count` is 0, or less than `only_first + only_second`.
    """
    if count < max(1, only_first + only_second):
        raise ValueError(
            f"invalid counts: {only_first} and {only_second} of {count} images (expected count > 0 "
            "and only_first + only_second <= count)"
        )
    first, second = (only_first + 1) / (count + 2), (only_second + 1) / (count + 2)
    difference = second - first
    error = sqrt((first + second - difference**2) / (count + 2))
    margin = norm.ppf((1 + confidence) / 2) * error
    return max(-1.0, float(difference - margin)), min(1.0, float(difference + margin))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Estimate the mean over many more seeds, by Student's t (Biometrika 6, 1908).

    Args:
        values: The values, one for each seed; two or more.
        confidence: The coverage where the values are normal, in (0, 1).

    Returns:
        The lower and upper bound of the mean.

    Raises:
        ValueError: There are fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"a confidence interval needs two or more values, got {len(values)}")
    quantile = t.ppf((1 + confidence) / 2, len(values) - 1)
    margin = float(quantile) * stdev(values) / sqrt(len(values))
    return fmean(values) - margin, fmean(values) + margin


def welch(
    means: tuple[float, float],
    deviations: tuple[float, float],
    counts: tuple[int, int],
    confidence: float = 0.95,
) -> tuple[float, tuple[float, float]]:
    """Test whether two recipes have the same mean, and estimate the difference of the means.

    Welch's t-test (Biometrika 34, 1947; scipy.stats.ttest_ind_from_stats), which allows each recipe
    its own variance; the confidence interval has its standard error and degrees of freedom.

    Args:
        means: The mean of each recipe over its seeds.
        deviations: The sample standard deviation of each recipe.
        counts: The number of seeds of each recipe; two or more.
        confidence: The coverage where the values are normal, in (0, 1).

    Returns:
        The two-sided p-value, and the lower and upper bound of the difference, second minus first.
        If neither recipe varies, the p-value is 1.0 for equal means and 0.0 for others.

    Raises:
        ValueError: A recipe has fewer than two seeds.
    """
    if min(counts) < 2:
        raise ValueError(f"the t-test needs two or more seeds of each recipe, got {min(counts)}")
    difference = means[1] - means[0]
    first, second = (s**2 / n for s, n in zip(deviations, counts, strict=True))
    if first + second == 0:
        return float(difference == 0), (difference, difference)
    samples = zip(means, deviations, counts, strict=True)
    statistics = (value for sample in samples for value in sample)
    p_value = ttest_ind_from_stats(*statistics, equal_var=False).pvalue
    freedom = (first + second) ** 2 / (first**2 / (counts[0] - 1) + second**2 / (counts[1] - 1))
    margin = float(t.ppf((1 + confidence) / 2, freedom)) * sqrt(first + second)
    return float(p_value), (difference - margin, difference + margin)
