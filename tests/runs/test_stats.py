"""The statistics of comparisons: values known from elsewhere, symmetry, and how often they hold."""

from math import comb, isclose

import pytest
from scipy.stats import multinomial

from pyclassify.runs.stats import mcnemar, mean_interval, paired_interval


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
def test_p_value_is_that_of_a_fair_coin(only_first, only_second, p_value):
    assert mcnemar(only_first, only_second) == pytest.approx(p_value)


def test_p_value_is_the_same_with_the_runs_exchanged():
    assert mcnemar(12, 30) == mcnemar(30, 12)


def test_clear_difference_on_a_large_set_has_a_tiny_p_value_above_zero():
    assert 0 < mcnemar(500, 1500) < 1e-100


def test_paired_interval_is_bonett_and_prices():
    # One and seven of 21: 2/23 and 8/23, 0.2609 apart, with a standard error of 0.1263.
    assert paired_interval(1, 7, 21) == pytest.approx((0.0134, 0.5084), abs=5e-5)


def test_paired_interval_changes_sign_with_the_runs_exchanged():
    low, high = paired_interval(4, 9, 50)

    assert paired_interval(9, 4, 50) == pytest.approx((-high, -low))


def test_equal_predictions_leave_room_for_a_difference_that_shrinks_with_the_images():
    few, many = paired_interval(0, 0, 10)[1], paired_interval(0, 0, 10_000)[1]

    assert 0 < many < few / 100


def test_paired_interval_stays_within_what_accuracies_can_differ_by():
    assert paired_interval(0, 1, 1)[1] == 1.0
    assert paired_interval(1, 0, 1)[0] == -1.0


@pytest.mark.parametrize(("first", "second"), [(0.05, 0.05), (0.1, 0.3), (0.02, 0.1), (0.25, 0.25)])
def test_paired_interval_holds_the_true_difference_as_often_as_it_says(first, second):
    count, held = 40, 0.0
    for b in range(count + 1):
        for c in range(count + 1 - b):
            low, high = paired_interval(b, c, count)
            if low <= second - first <= high:
                shares = [first, second, 1 - first - second]
                held += multinomial.pmf([b, c, count - b - c], count, shares)

    assert 0.94 < held < 0.99


@pytest.mark.parametrize("counts", [(3, 3, 5), (0, 0, 0)])
def test_paired_interval_of_too_few_images_is_refused(counts):
    first, second, count = counts
    with pytest.raises(ValueError, match=rf"^{first} and {second} of {count} images"):
        paired_interval(*counts)


def test_mean_interval_is_students():
    # The quantile of four degrees of freedom is 2.7764; the values' deviation is sqrt(2.5).
    low, high = mean_interval([1, 2, 3, 4, 5])

    assert (low, high) == pytest.approx((3 - 2.7764 * 0.70711, 3 + 2.7764 * 0.70711), abs=1e-4)


def test_surer_interval_is_wider():
    low, high = mean_interval([0.5, 0.6])

    assert mean_interval([0.5, 0.6], confidence=0.99) < (low, high)
    assert isclose(mean_interval([0.5, 0.6], confidence=0.5)[1], 0.6)  # a Cauchy quartile is 1


def test_equal_seeds_have_an_interval_without_width():
    assert mean_interval([0.75, 0.75, 0.75]) == (0.75, 0.75)


@pytest.mark.parametrize("values", [[], [0.5]])
def test_single_seed_has_no_interval(values):
    with pytest.raises(ValueError, match=f"two or more.* {len(values)} "):
        mean_interval(values)
