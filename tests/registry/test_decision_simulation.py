"""How often the rule promotes a version: equal ones seldom, better ones nearly always."""

import numpy as np
import pytest
from scipy.stats import norm

from pyclassify.registry.decision import is_better
from pyclassify.runs.stats import compare_predictions

IMAGES, PAIRS, ALPHA = 10_000, 200, 0.05

# How strongly the hardness of an image correlates between two trainings: two seeds of a recipe
# agree on about 85 of 100 images.
CORRELATION = 0.8


def draw(generator, *accuracies):
    """Answers of two networks to the same images, which are hard for both or easy for both."""
    hardness = generator.standard_normal(IMAGES)
    for accuracy in accuracies:
        own = generator.standard_normal(IMAGES)
        seen = CORRELATION**0.5 * hardness + (1 - CORRELATION) ** 0.5 * own
        right = seen < norm.ppf(accuracy)
        yield dict(enumerate(("", bool(each)) for each in right))


def share_promoted(*accuracies):
    generator = np.random.default_rng(7)
    tests = [compare_predictions(*draw(generator, *accuracies)) for _ in range(PAIRS)]
    return sum(is_better(each, ALPHA) for each in tests) / PAIRS


def test_equal_versions_agree_as_trainings_do():
    test = compare_predictions(*draw(np.random.default_rng(7), 0.8, 0.8))

    assert (test.only_first_correct + test.only_second_correct) / IMAGES == pytest.approx(
        0.13, abs=0.02
    )


def test_equal_version_is_promoted_at_most_half_alpha_of_the_time():
    # Of 200 pairs 5 are promoted on average; more than 10 are in 1 of 100 such simulations.
    assert share_promoted(0.8, 0.8) <= ALPHA / 2 + 0.025


def test_version_that_is_two_points_better_is_promoted_nearly_always():
    assert share_promoted(0.8, 0.82) >= 0.99
