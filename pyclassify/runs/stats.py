"""How sure a comparison of classifiers is: statistics of paired predictions and of seeds."""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev

from scipy.stats import binomtest, norm, t, ttest_ind_from_stats


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
