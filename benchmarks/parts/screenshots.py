"""Screenshots that fit into a page of GitHub: 880 pixels wide there, twice as sharp, and small."""

import io

import numpy as np
from PIL import Image
from scipy.spatial import KDTree

WIDTH = 880  # of a README on GitHub, in its pixels
SCALE = 2  # pixels of a picture for each of a page
MAX_BYTES = 150_000
_TOLERANCES = (0, 6, 12, 18, 24, 32)  # between two colors, in steps of a channel
_MAX_COLORS = 256  # of a PNG's palette
_MAX_CANDIDATES = 4096  # the most frequent colors


def shrink(png):
    """Encode a picture with a palette, and as many colors as MAX_BYTES allows.

    Raises:
        ValueError: It is too large even with the fewest colors.
    """
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    packed = pixels.astype(np.int32) @ (1 << 16, 1 << 8, 1)
    values, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colors = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1)
    frequent_first = colors[np.argsort(-counts, kind="stable")][:_MAX_CANDIDATES]
    for tolerance in _TOLERANCES:
        palette = _choose_palette(frequent_first, tolerance)
        _, nearest = KDTree(palette).query(colors)
        indices = nearest.astype(np.uint8)[inverse].reshape(packed.shape)
        image = Image.fromarray(indices)
        image.putpalette(palette.astype(np.uint8).tobytes())
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
    raise ValueError(f"a picture has {buffer.tell():,} bytes (expected at most {MAX_BYTES:,})")


def _choose_palette(colors, tolerance):
    """Choose the first colors that differ from those before them, so that areas keep theirs."""
    palette = colors[:1]
    for color in colors[1:]:
        if len(palette) == _MAX_COLORS:
            break
        if abs(palette - color).max(axis=1).min() > tolerance:
            palette = np.append(palette, color[None], axis=0)
    return palette
