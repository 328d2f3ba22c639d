"""When a version passes for champion: the rule alone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyclassify.runs.stats import PairedTest


def is_better(test: "PairedTest", alpha: float) -> bool:
    """Whether the second of two is better, and by more than luck.

    It has more images right, and of two that are equally good as large a difference is seen less
    than `alpha` of the time (McNemar's exact test, two-sided). Luck has two sides: of versions that
    are as good as the champion at most alpha/2 pass.
    """
    return measure_difference(test) > 0 and test.p_value < alpha


def measure_difference(test: "PairedTest") -> float:
    """How much more accurate the second of two was on the images, in [-1, 1]."""
    return (test.right[1] - test.right[0]) / test.count


def spell_difference(test: "PairedTest") -> str:
    """The same with its interval."""
    low, high = test.interval
    return f"{measure_difference(test):+.4f} (95%: {low:+.4f} to {high:+.4f})"


def check_bounds(alpha: float, min_accuracy: float) -> None:
    """Refuse what is no probability.

    Raises:
        ValueError: Which, and what it takes.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha:g}; it takes a number between 0 and 1, such as 0.05")
    if not 0 <= min_accuracy <= 1:
        raise ValueError(f"min_accuracy is {min_accuracy:g}; it takes a number from 0 to 1")
