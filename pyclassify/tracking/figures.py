"""Pictures of how a network does by class, to be looked at beside those of other runs.

All are made of matplotlib's own objects, without pyplot's list of open figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
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
ROWS, COLUMNS = 4, 6


def confusion_matrix(predictions: Predictions, names: Sequence[str]) -> Figure:
    """Which classes are taken for which: each row is one true class, shaded by its shares.

    Args:
        predictions: The predictions.
        names: The classes' names.
    """
    # The images of all processes are in already, and no other process draws.
    matrix = MulticlassConfusionMatrix(
        predictions.num_classes, validate_args=False, sync_on_compute=False
    )
    matrix.update(torch.from_numpy(predictions.predicted), torch.from_numpy(predictions.labels))
    counts = matrix.compute()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    named = predictions.num_classes <= MOST_NAMES
    side = min(12.0, 3.5 + 0.5 * predictions.num_classes) if named else 7.0
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    if named:
        matrix.plot(shares, axes, add_text=False, labels=[shorten(name) for name in names])
        _tidy_names(axes, small=predictions.num_classes > MOST_COUNTS)
    else:  # where torchmetrics would draw each name, over the next one, for seconds
        axes.imshow(shares)
    (image,) = axes.images
    image.set_cmap("Blues")
    image.set_norm(PowerNorm(0.5, 0, 1))  # mistakes are rare: their shades are spread out
    if predictions.num_classes <= MOST_COUNTS:
        _write_counts(axes, counts, shares)
    axes.set_xlabel("predicted class", fontsize=11)
    axes.set_ylabel("true class", fontsize=11)
    axes.set_title(_headline(predictions), fontsize=12, color=DARK, loc="left")
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


def class_accuracy(predictions: Predictions, names: Sequence[str]) -> Figure:
    """How many images of each class are recognised, the best class first.

    Where there are more than 100 classes, the best 50 and the worst 50.

    Args:
        predictions: The predictions.
        names: The classes' names.
    """
    num_classes, labels = predictions.num_classes, predictions.labels
    total = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[predictions.correct], minlength=num_classes)
    tested = [number for number in range(num_classes) if total[number] > 0]
    share = {number: float(correct[number] / total[number]) for number in tested}
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
    mean = 100 * _accuracy(predictions)
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
    title = f"{_headline(predictions)} (dashed line)"
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


def _accuracy(predictions: Predictions) -> float:
    return float(predictions.correct.mean())


def _headline(predictions: Predictions) -> str:
    count = len(predictions.labels)
    return f"{100 * _accuracy(predictions):.2f}% of {count:,} test images are recognised"


def confident_mistakes(predictions: Predictions, names: Sequence[str], dataset: Any) -> Figure:
    """The images that the network was most sure of and wrong, with both labels.

    Args:
        predictions: The predictions.
        names: The classes' names.
        dataset: The test set; an item begins with an image, as `as_shown` takes it, and a label.

    Raises:
        MisconfigurationException: The set's labels are not those that were tested.
    """
    (wrong,) = np.nonzero(~predictions.correct)
    probabilities = torch.from_numpy(predictions.probabilities[wrong])
    surest = wrong[probabilities.argsort(descending=True, stable=True).numpy()]
    surest = surest[: ROWS * COLUMNS]
    rows = max(1, -(-len(surest) // COLUMNS))
    figure = Figure(figsize=(10, 0.4 + 2.05 * rows), dpi=90)
    # One axes for all images, since to lay out one for each takes a second.
    bottom = 0.4 / float(figure.get_figheight())
    axes = figure.add_axes((0, 0, 1, 1 - bottom))
    axes.set_axis_off()
    title = f"{len(wrong):,} of {len(predictions.labels):,} test images are mistaken"
    if len(surest) > 0:
        title += f". The {len(surest)} surest: above, what was predicted; below, what it is"
    figure.text(0.01, 1 - bottom / 2, title, fontsize=12, color=DARK, va="center")
    for number, row in enumerate(surest.tolist()):
        image, label, *_ = dataset[int(predictions.indices[row])]
        if int(label) != int(predictions.labels[row]):
            raise MisconfigurationException("the test set's items are not in the loader's order")
        top, left = divmod(number, COLUMNS)
        middle, y = left + 0.5, top * 1.23 + 0.13  # in widths of an image and its margin
        shown = as_shown(image)
        height, width, _ = shown.shape
        axes.imshow(shown, extent=_fit(height, width, middle, y + 0.47))
        said = shorten(names[int(predictions.predicted[row])], 16)
        said = f"{said} {100 * float(predictions.probabilities[row]):.1f}%"
        words: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9.5}
        axes.text(middle, y - 0.055, said, color=ORANGE, **words)
        axes.text(middle, y + 1.0, shorten(names[int(label)], 20), color=DARK, **words)
    axes.set_xlim(0, COLUMNS)
    axes.set_ylim(rows * 1.23, 0)
    axes.set_aspect("auto")
    return figure


def _fit(height: int, width: int, x: float, y: float) -> tuple[float, float, float, float]:
    """Where an image of any shape goes: into a square of 0.94 about a point."""
    scale = 0.47 / max(height, width)
    return x - scale * width, x + scale * width, y + scale * height, y - scale * height


def as_shown(image: Any) -> npt.NDArray[np.float32]:
    """Turn an image as a data set has it into one for the eye.

    Args:
        image: [1 or 3, height, width] as bytes, as floats of 0 to 1 or 0 to 255, or normalised by
            means and deviations that nobody tells (the darkest value becomes black, the brightest
            white); or a Pillow image.

    Returns:
        [height, width, 3], values 0 to 1.
    """
    if not isinstance(image, torch.Tensor):
        return np.asarray(image.convert("RGB"), np.float32) / np.float32(255)
    pixels = image.detach().cpu().float()
    low, high = float(pixels.min()), float(pixels.max())
    if image.dtype == torch.uint8 or (low >= 0 and 8 < high <= 255.5):
        pixels = pixels / 255
    elif low < 0 or high > 1:
        pixels = (pixels - low) / max(high - low, 1e-9)
    return pixels.clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0).numpy()
