"""Folders of small images."""

import numpy as np
from PIL import Image


def grow(folder, *parts, count=4):
    """Fill each of the parts, such as train/cat, with images of noise and different sizes."""
    rng = np.random.default_rng(0)
    for part in parts:
        (folder / part).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (9, 7 + number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / part / f"{number}.png")
    return folder
