"""What came out of a run, in Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyclassify.tracking.markdown import plain

_FEW = 3  # classes that are named as best, and as worst

_NAMES = {
    "test_accuracy": "test accuracy",
    "best_val_accuracy": "best validation accuracy",
    "val_accuracy": "validation accuracy",
    "test_loss": "test loss",
    "val_loss": "validation loss",
    "test_ece": "calibration error",
    "test_flip_accuracy": "test accuracy averaged with mirror images",
}


@dataclass(frozen=True)
class Scores:
    """How many test images of each class there are, and how many are recognised.

    Args:
        names: The classes.
        total: The images of each.
        right: Those of them that are recognised.
    """

    names: Sequence[str]
    total: Sequence[int]
    right: Sequence[int]


def tell_results(metrics: Mapping[str, float], scores: Scores | None, epochs: int) -> str:
    """Write a run's results as Markdown, a line for the accuracy, one for the rest, one by class.

    Args:
        metrics: The run's own, by name.
        scores: Its test by classes, if there was one.
        epochs: How many it was trained for, 0 if it was not.
    """
    shown = [name for name in _NAMES if name in metrics]
    if "best_val_accuracy" in shown:  # the last epoch's are not the kept network's
        shown = [name for name in shown if not name.startswith("val_")]
    first = shown.pop(0) if shown and "accuracy" in shown[0] else None
    lines = [f"**{_NAMES[first].capitalize()} {metrics[first]:.4f}**" if first else "**Finished**"]
    if first == "test_accuracy" and scores is not None:
        lines[0] += f" ({_tell_interval(sum(scores.right), sum(scores.total))})"
    rest = [f"{_NAMES[name]} {metrics[name]:.4f}" for name in shown]
    if "parameters" in metrics:
        rest.append(f"{metrics['parameters']:,.0f} parameters")
    epochs_told = f"{epochs} epoch{'s' if epochs > 1 else ''}" if epochs else ""
    time_told = _tell_time(metrics["wall_seconds"]) if "wall_seconds" in metrics else ""
    rest.append(" in ".join(filter(None, (epochs_told, time_told))))
    if line := ", ".join(filter(None, rest)):
        lines.append(f"{line[0].upper()}{line[1:]}.")
    if scores is not None and len(scores.names) > 1:
        lines.append(_tell_classes(scores))
    return "\n\n".join(lines)


def _tell_interval(right: int, total: int) -> str:
    from scipy.stats import binomtest

    # Wilson's (JASA 22, 1927), which holds for few images and for all of them right as well.
    low, high = binomtest(right, total).proportion_ci(method="wilson")
    return f"{right:,} of {total:,} images; 95% interval {low:.4f} to {high:.4f}"


def _tell_classes(scores: Scores) -> str:
    tested = zip(scores.names, scores.total, scores.right, strict=True)
    share = [(plain(name, most=40), right / total) for name, total, right in tested if total]
    best = sorted(share, key=lambda each: -each[1])
    if len(best) <= 2 * _FEW:
        return f"By class: {_list(best)}."
    return f"Best at {_list(best[:_FEW])}; worst at {_list(best[: -_FEW - 1 : -1])}."


def _list(shares: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in shares)


def _tell_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = {"h": hours, "min": minutes, "s": rest if not hours else 0}
    return " ".join(f"{count} {unit}" for unit, count in parts.items() if count) or "under 1 s"
