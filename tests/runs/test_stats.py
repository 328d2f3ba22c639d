"""The statistics of comparisons: reference values, symmetry, coverage and format."""

from math import comb, isclose

import pytest
from scipy.stats import multinomial

from pyclassify.runs.stats import (
    format_mean_and_deviation,
    mcnemar,
    mean_interval,
    paired_interval,
    welch,
)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (1, 7, 2 * (1 + 8) / 2**8),  # both tails of eight tosses
        (0, 5, 2 / 2**5),
        (3, 3, 1.0),
        (0, 1, 1.0),
        (0, 0, 1.0),
        (10, 20, 2 * sum(comb(30, k) for k in range(11)) / 2**30),
    ],
)
def test_mcnemar_p_value_is_that_of_a_fair_coin(only_first, only_second, p_value):
    assert mcnemar(only_first, only_second) == pytest.approx(p_value)


def test_mcnemar_of_exchanged_runs_is_equal():
    assert mcnemar(12, 30) == mcnemar(30, 12)


def test_mcnemar_of_a_clear_difference_is_tiny_and_above_zero():
    assert 0 < mcnemar(500, 1500) < 1e-100


def test_paired_interval_equals_bonett_and_prices():
    # One and seven of 21: 2/23 and 8/23, 0.2609 apart, with a standard error of 0.1263.
    assert paired_interval(1, 7, 21) == pytest.approx((0.0134, 0.5084), abs=5e-5)


def test_paired_interval_of_exchanged_runs_changes_sign():
    low, high = paired_interval(4, 9, 50)

    assert paired_interval(9, 4, 50) == pytest.approx((-high, -low))


def test_paired_interval_of_equal_predictions_shrinks_with_the_images():
    few, many = paired_interval(0, 0, 10)[1], paired_interval(0, 0, 10_000)[1]

    assert 0 < many < few / 100


def test_paired_interval_of_one_image_is_clipped():
    assert paired_interval(0, 1, 1)[1] == 1.0
    assert paired_interval(1, 0, 1)[0] == -1.0


@pytest.mark.parametrize(("first", "second"), [(0.05, 0.05), (0.1, 0.3), (0.02, 0.1), (0.25, 0.25)])
def test_paired_interval_has_its_nominal_coverage(first, second):
    count, held = 40, 0.0
    for b in range(count + 1):
        for c in range(count + 1 - b):
            low, high = paired_interval(b, c, count)
            if low <= second - first <= high:
                shares = [first, second, 1 - first - second]
                held += multinomial.pmf([b, c, count - b - c], count, shares)

    assert 0.94 < held < 0.99


@pytest.mark.parametrize("counts", [(3, 3, 5), (0, 0, 0)])
def test_paired_interval_of_too_few_images_raises(counts):
    first, second, count = counts
    with pytest.raises(ValueError, match=rf"^invalid counts: {first} and {second} of {count} "):
        paired_interval(*counts)


def test_mean_interval_equals_students():
    # The quantile of four degrees of freedom is 2.7764; the values' deviation is sqrt(2.5).
    low, high = mean_interval([1, 2, 3, 4, 5])

    assert (low, high) == pytest.approx((3 - 2.7764 * 0.70711, 3 + 2.7764 * 0.70711), abs=1e-4)


def test_mean_interval_of_higher_confidence_is_wider():
    low, high = mean_interval([0.5, 0.6])

    assert mean_interval([0.5, 0.6], confidence=0.99) < (low, high)
    assert isclose(mean_interval([0.5, 0.6], confidence=0.5)[1], 0.6)  # a Cauchy quartile is 1


def test_mean_interval_of_equal_values_has_no_width():
    assert mean_interval([0.75, 0.75, 0.75]) == (0.75, 0.75)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_mean_interval_of_one_value_raises(values):
    with pytest.raises(ValueError, match=f"two or more.* {len(values)}$"):
        mean_interval(values)


def test_welch_of_exchanged_recipes_changes_sign():
    p_value, (low, high) = welch((0.5, 0.6), (0.01, 0.1), (3, 8))
    exchanged, interval = welch((0.6, 0.5), (0.1, 0.01), (8, 3))

    assert exchanged == pytest.approx(p_value)
    assert interval == pytest.approx((-high, -low))


def test_welch_without_variance_compares_the_means():
    assert welch((0.5, 0.5), (0.0, 0.0), (2, 2)) == (1.0, (0.0, 0.0))
    assert welch((0.5, 0.75), (0.0, 0.0), (2, 2)) == (0.0, (0.25, 0.25))


def test_welch_of_one_seed_raises():
    with pytest.raises(ValueError, match=r"two or more seeds.* 1$"):
        welch((0.5, 0.6), (0.1, 0.1), (1, 5))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "no finished seed has this metric"),  # the form of this message
        ([0.5], "0.5000 (1 seed)"),
        ([0.5, 0.7], "0.6000 ± 0.1414 (95% CI -0.6706 to 1.8706, 2 seeds)"),
        ([0.5, float("nan")], "nan (2 seeds)"),
    ],
)
def test_format_mean_and_deviation_shows_what_is_known(values, words):
    assert format_mean_and_deviation(values) == words
