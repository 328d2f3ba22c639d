"""Pictures of how a network does by class, to be looked at beside those of other runs.

All are made of matplotlib's own objects, without pyplot's list of open figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix

if TYPE_CHECKING:
    from pyclassify.tracking.prediction_table import Predictions

DARK, BLUE, ORANGE, PALE = "#1f2933", "#2b6cb0", "#c05621", "#d2d6dc"
MOST_BYTES = 300_000
MOST_BARS = 100
MOST_COUNTS = 25  # classes with a number in each cell
MOST_NAMES = 120  # classes whose names fit beside the matrix


def confusion_matrix(kept: Predictions, names: Sequence[str]) -> Figure:
    """Which classes are taken for which: each row is one true class, shaded by its shares.

    Args:
        kept: The predictions.
        names: The classes' names.
    """
    # Of all processes' images already, and no other process draws.
    counted = MulticlassConfusionMatrix(
        kept.num_classes, validate_args=False, sync_on_compute=False
    )
    counted.update(kept.predicted, kept.labels)
    counts = counted.compute()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    named = kept.num_classes <= MOST_NAMES
    side = min(12.0, 3.5 + 0.5 * kept.num_classes) if named else 7.0
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    if named:
        counted.plot(shares, axes, add_text=False, labels=[shorten(name) for name in names])
        _tidy_names(axes, small=kept.num_classes > MOST_COUNTS)
    else:  # where torchmetrics would draw each name, over the next one, for seconds
        axes.imshow(shares)
    (image,) = axes.images
    image.set_cmap("Blues")
    image.set_norm(PowerNorm(0.5, 0, 1))  # mistakes are rare: their shades are spread out
    if kept.num_classes <= MOST_COUNTS:
        _write_counts(axes, counts, shares)
    axes.set_xlabel("predicted class", fontsize=11)
    axes.set_ylabel("true class", fontsize=11)
    axes.set_title(_headline(kept), fontsize=12, color=DARK, loc="left")
    bar = figure.colorbar(image, shrink=0.6, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1%", "5%", "10%", "25%", "50%", "100%"], fontsize=9)
    bar.set_label("share of the true class", fontsize=10)
    return figure


def _tidy_names(axes: Any, small: bool) -> None:
    axes.tick_params(labelsize=6 if small else 10, length=0 if small else 3)
    for label in axes.get_xticklabels():
        label.set(rotation=90 if small else 45, ha="center" if small else "right")
        label.set_rotation_mode("default" if small else "anchor")
    for label in axes.get_yticklabels():
        label.set_rotation(0)


def _write_counts(axes: Any, counts: torch.Tensor, shares: torch.Tensor) -> None:
    size = 10 if len(counts) <= 12 else 7
    for true, predicted in counts.nonzero().tolist():
        shade = "white" if shares[true, predicted] > 0.3 else DARK
        count = int(counts[true, predicted])
        axes.text(
            predicted, true, f"{count:,}", ha="center", va="center", fontsize=size, color=shade
        )


def class_accuracy(kept: Predictions, names: Sequence[str]) -> Figure:
    """How many images of each class are recognised, the best class first.

    Where there are more than 100 classes, the best 50 and the worst 50.

    Args:
        kept: The predictions.
        names: The classes' names.
    """
    total = torch.bincount(kept.labels, minlength=kept.num_classes)
    right = torch.bincount(kept.labels[kept.predicted == kept.labels], minlength=kept.num_classes)
    tested = [number for number in range(kept.num_classes) if total[number] > 0]
    share = {number: float(right[number] / total[number]) for number in tested}
    order = sorted(tested, key=lambda number: -share[number])
    shown = order
    if len(order) > MOST_BARS:
        shown = order[: MOST_BARS // 2] + order[-MOST_BARS // 2 :]
    values = [100 * share[number] for number in shown]
    many = len(shown) > MOST_COUNTS
    height = 1.3 + len(shown) * (0.15 if many else 0.36)
    figure = Figure(figsize=(8, height), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    size = 7 if many else 10
    mean = 100 * _accuracy(kept)
    colours = [BLUE if value >= mean else ORANGE for value in values]
    axes.barh(range(len(shown)), values, color=colours, height=0.75)
    for place, value in enumerate(values):
        axes.text(106, place, f"{value:.1f}", va="center", ha="right", fontsize=size, color=DARK)
    axes.axvline(mean, color=DARK, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(shown)), [shorten(names[number]) for number in shown], fontsize=size)
    axes.set_xticks(range(0, 101, 20))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 106)
    axes.set_xlabel("images of the class that are recognised, %", fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    title = f"{_headline(kept)} (dashed line)"
    if len(shown) < len(order):
        title += f"\nThe best and the worst {MOST_BARS // 2} of {len(order):,} classes"
    axes.set_title(title, fontsize=12, color=DARK, loc="left")
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG of at most 300 kB: of 256 colours, and smaller, where it takes that."""
    dpi = figure.dpi
    figure.savefig(path)
    for scale in (1, 0.8, 0.6):
        if path.stat().st_size <= MOST_BYTES:
            return
        drawn = BytesIO()
        figure.savefig(drawn, dpi=scale * dpi)
        Image.open(drawn).convert("RGB").quantize(256).save(path)


def shorten(name: str, length: int = 24) -> str:
    """Cut a name that is too long for its place."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _accuracy(kept: Predictions) -> float:
    return float((kept.predicted == kept.labels).float().mean())


def _headline(kept: Predictions) -> str:
    return f"{100 * _accuracy(kept):.2f}% of {len(kept.labels):,} test images are recognised"
