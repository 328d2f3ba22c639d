"""A picture of the images that a network was surest of and wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure

from pyclassify.tracking.figures import DARK, ORANGE, shorten

if TYPE_CHECKING:
    from pyclassify.tracking.prediction_table import Predictions

ROWS, COLUMNS = 4, 6


def confident_mistakes(kept: Predictions, names: Sequence[str], dataset: Any) -> Figure:
    """The images that the network was most sure of and wrong, with both labels.

    Args:
        kept: The predictions.
        names: The classes' names.
        dataset: The test set; an item begins with an image, as `as_shown` takes it, and a label.

    Raises:
        MisconfigurationException: The set's labels are not those that were tested.
    """
    wrong = (kept.predicted != kept.labels).nonzero().flatten()
    surest = wrong[kept.probability[wrong].argsort(descending=True, stable=True)]
    surest = surest[: ROWS * COLUMNS]
    rows = max(1, -(-len(surest) // COLUMNS))
    figure = Figure(figsize=(10, 0.4 + 2.05 * rows), dpi=90)
    # One axes for all images, since to lay out one for each takes a second.
    bottom = 0.4 / float(figure.get_figheight())
    axes = figure.add_axes((0, 0, 1, 1 - bottom))
    axes.set_axis_off()
    title = f"{len(wrong):,} of {len(kept.labels):,} test images are mistaken"
    if len(surest) > 0:
        title += f". The {len(surest)} surest: above, what was predicted; below, what it is"
    figure.text(0.01, 1 - bottom / 2, title, fontsize=12, color=DARK, va="center")
    for number, row in enumerate(surest.tolist()):
        image, label, *_ = dataset[int(kept.places[row])]
        if int(label) != int(kept.labels[row]):
            raise MisconfigurationException("the test set's items are not in the loader's order")
        top, left = divmod(number, COLUMNS)
        middle, y = left + 0.5, top * 1.23 + 0.13  # in widths of an image and its margin
        shown = as_shown(image)
        height, width, _ = shown.shape
        axes.imshow(shown, extent=_fit(height, width, middle, y + 0.47))
        said = shorten(names[int(kept.predicted[row])], 16)
        said = f"{said} {100 * float(kept.probability[row]):.1f}%"
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
