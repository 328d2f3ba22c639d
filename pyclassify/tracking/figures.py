"""Figures of a test by class: confusion matrix, accuracy by class, most confident errors.

They are made of matplotlib's objects: pyplot would hold each figure in its list of open figures.
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
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix

from pyclassify.utils.text import shorten

if TYPE_CHECKING:
    from pyclassify.tracking.prediction_table import Predictions


MAX_BYTES = 300_000  # of a PNG
_MAX_BARS = 100
_MAX_COUNTED_CLASSES = 25  # with a number in each cell of the matrix
_MAX_NAMED_CLASSES = 120  # with names beside the matrix
_ROWS, _COLUMNS = 4, 6  # of images
_DARK, _BLUE, _ORANGE = "#1f2933", "#2b6cb0", "#c05621"


def plot_confusion_matrix(predictions: Predictions, names: Sequence[str]) -> Figure:
    """Plot which classes are predicted for which: a row for each true class, shaded by its shares.

    Args:
        predictions: The predictions of a test.
        names: The names of the classes.
    """
    num_classes = predictions.num_classes
    # The images of all processes are in already, and no other process draws.
    matrix = MulticlassConfusionMatrix(num_classes, validate_args=False, sync_on_compute=False)
    matrix.update(torch.from_numpy(predictions.predicted), torch.from_numpy(predictions.labels))
    counts = matrix.compute()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    has_names = num_classes <= _MAX_NAMED_CLASSES
    side = min(12.0, 3.5 + 0.5 * num_classes) if has_names else 7.0
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    if has_names:
        matrix.plot(shares, axes, add_text=False, labels=[shorten(name, 24) for name in names])
        _format_class_names(axes, is_small=num_classes > _MAX_COUNTED_CLASSES)
    else:  # torchmetrics would take seconds to draw the names over each other
        axes.imshow(shares)
    (image,) = axes.images
    image.set_cmap("Blues")
    image.set_norm(PowerNorm(0.5, 0, 1))  # errors are rare: spread out their shades
    if num_classes <= _MAX_COUNTED_CLASSES:
        _write_counts(axes, counts, shares)
    axes.set_xlabel("predicted class", fontsize=11)
    axes.set_ylabel("true class", fontsize=11)
    axes.set_title(_format_accuracy(predictions), fontsize=12, color=_DARK, loc="left")
    bar = figure.colorbar(image, shrink=0.6, ticks=[0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1%", "5%", "10%", "25%", "50%", "100%"], fontsize=9)
    bar.set_label("share of the true class", fontsize=10)
    return figure


def _format_class_names(axes: Axes, is_small: bool) -> None:
    axes.tick_params(labelsize=6 if is_small else 10, length=0 if is_small else 3)
    for label in axes.get_xticklabels():
        label.set(rotation=90 if is_small else 45, ha="center" if is_small else "right")
        label.set_rotation_mode("default" if is_small else "anchor")
    for label in axes.get_yticklabels():
        label.set_rotation(0)


def _write_counts(axes: Axes, counts: torch.Tensor, shares: torch.Tensor) -> None:
    size = 10 if len(counts) <= 12 else 7
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size}
    for label, predicted in counts.nonzero().tolist():
        color = "white" if shares[label, predicted] > 0.3 else _DARK
        axes.text(predicted, label, f"{int(counts[label, predicted]):,}", color=color, **style)


def plot_class_accuracy(predictions: Predictions, names: Sequence[str]) -> Figure:
    """Plot the accuracy of each class, the best class first.

    Of more than 100 classes, the best 50 and the worst 50 are shown.

    Args:
        predictions: The predictions of a test.
        names: The names of the classes.
    """
    accuracies = _compute_class_accuracies(predictions)
    order = sorted(accuracies, key=lambda label: -accuracies[label])
    shown = order
    if len(order) > _MAX_BARS:
        shown = order[: _MAX_BARS // 2] + order[-_MAX_BARS // 2 :]
    values = [100 * accuracies[label] for label in shown]
    mean = 100 * _compute_accuracy(predictions)
    is_small = len(shown) > _MAX_COUNTED_CLASSES
    size = 7 if is_small else 10
    height = 1.3 + len(shown) * (0.15 if is_small else 0.36)
    figure = Figure(figsize=(8, height), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    colors = [_BLUE if value >= mean else _ORANGE for value in values]
    axes.barh(range(len(shown)), values, color=colors, height=0.75)
    for row, value in enumerate(values):
        axes.text(106, row, f"{value:.1f}", va="center", ha="right", fontsize=size, color=_DARK)
    axes.axvline(mean, color=_DARK, linewidth=1, linestyle="--")
    axes.set_yticks(
        range(len(shown)), [shorten(names[label], 24) for label in shown], fontsize=size
    )
    axes.set_xticks(range(0, 101, 20))
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 106)
    axes.set_xlabel("accuracy of the class, %", fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    title = f"{_format_accuracy(predictions)}, the dashed line"
    if len(shown) < len(order):
        title += f"\nThe best and the worst {_MAX_BARS // 2} of {len(order):,} classes"
    axes.set_title(title, fontsize=12, color=_DARK, loc="left")
    return figure


def plot_confident_errors(predictions: Predictions, names: Sequence[str], dataset: Any) -> Figure:
    """Plot the most confident errors: images with their predicted and their true class.

    Args:
        predictions: The predictions of a test.
        names: The names of the classes.
        dataset: The test set; an item begins with an image, as `to_displayed_rgb` takes it, and
            the label.

    Raises:
        MisconfigurationException: A label in the set is not the one that was tested.
    """
    (errors,) = np.nonzero(~predictions.correct)
    probabilities = torch.from_numpy(predictions.probabilities[errors])
    order = probabilities.argsort(descending=True, stable=True).numpy()
    shown = errors[order][: _ROWS * _COLUMNS].tolist()
    rows = max(1, -(-len(shown) // _COLUMNS))
    figure = Figure(figsize=(10, 0.4 + 2.05 * rows), dpi=90)
    # One axes for all images, since the layout of one for each takes a second.
    bottom = 0.4 / float(figure.get_figheight())
    axes = figure.add_axes((0, 0, 1, 1 - bottom))
    axes.set_axis_off()
    title = f"{len(errors):,} of {len(predictions.labels):,} test images are misclassified"
    if shown:
        title += f". The {len(shown)} most confident: predicted class above, true class below"
    figure.text(0.01, 1 - bottom / 2, title, fontsize=12, color=_DARK, va="center")
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9.5}
    for number, row in enumerate(shown):
        image, label, *_ = dataset[int(predictions.indices[row])]
        if int(label) != int(predictions.labels[row]):
            raise MisconfigurationException("the test set's items are not in the loader's order")
        top, left = divmod(number, _COLUMNS)
        x, y = left + 0.5, top * 1.23 + 0.13  # in widths of an image and its margin
        pixels = to_displayed_rgb(image)
        height, width, _ = pixels.shape
        axes.imshow(pixels, extent=_fit(height, width, x, y + 0.47))
        predicted = shorten(names[int(predictions.predicted[row])], 16)
        probability = 100 * float(predictions.probabilities[row])
        axes.text(x, y - 0.055, f"{predicted} {probability:.1f}%", color=_ORANGE, **style)
        axes.text(x, y + 1.0, shorten(names[int(label)], 20), color=_DARK, **style)
    axes.set_xlim(0, _COLUMNS)
    axes.set_ylim(rows * 1.23, 0)
    axes.set_aspect("auto")
    return figure


def _fit(height: int, width: int, x: float, y: float) -> tuple[float, float, float, float]:
    """The extent of an image of any shape in a square of 0.94 about a point."""
    scale = 0.47 / max(height, width)
    return x - scale * width, x + scale * width, y + scale * height, y - scale * height


def to_displayed_rgb(image: Any) -> npt.NDArray[np.float32]:
    """Convert an image of a data set to RGB for display.

    Args:
        image: A tensor [1 or 3, height, width] of bytes, of floats in 0 to 1 or 0 to 255, or of
            floats normalized by unknown means and deviations (the darkest value becomes black, the
            brightest white); or a Pillow image.

    Returns:
        The image [height, width, 3], values 0 to 1.
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


def save_figure(figure: Figure, path: Path) -> None:
    """Save a figure as a PNG of at most 300 kB, by fewer colors and pixels if necessary."""
    dpi = figure.dpi
    figure.savefig(path)
    for scale in (1, 0.8, 0.6):
        if path.stat().st_size <= MAX_BYTES:
            return
        png = BytesIO()
        figure.savefig(png, dpi=scale * dpi)
        Image.open(png).convert("RGB").quantize(256).save(path)


def _compute_accuracy(predictions: Predictions) -> float:
    return float(predictions.correct.mean())


def _compute_class_accuracies(predictions: Predictions) -> dict[int, float]:
    """The accuracy of each class that was tested."""
    labels, num_classes = predictions.labels, predictions.num_classes
    total = np.bincount(labels, minlength=num_classes)
    correct = np.bincount(labels[predictions.correct], minlength=num_classes)
    return {
        label: float(correct[label] / total[label])
        for label in range(num_classes)
        if total[label] > 0
    }


def _format_accuracy(predictions: Predictions) -> str:
    percent = 100 * _compute_accuracy(predictions)
    return f"Test accuracy {percent:.2f}% ({len(predictions.labels):,} images)"
