"""Make a folder of JPEGs on the spot, as large a set as is asked for.

    python -m benchmarks.parts.jpegs FOLDER [--count 100000] [--side 256] [--classes 100]

Each is cut out of a large picture of noise that has a photo's spectrum (amplitudes fall as
1/frequency; Field, "Relations between the statistics of natural images", JOSA A 1987), so that
files are as large and decode as slowly as photos do. All processors of the machine take part.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

CANVAS = 2048  # pixels
QUALITY = 85


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=256, help="of each image, in pixels")
    parser.add_argument("--classes", type=int, default=100)
    given = parser.parse_args()
    size = make(given.folder, given.count, given.side, given.classes)
    sys.stdout.write(f"{given.count} files of {size / given.count / 1000:.1f} kB on average\n")


def make(folder, count, side, classes=10, canvas_side=CANVAS):
    """Fill FOLDER/train/<class>; returns the files' bytes."""
    names = [folder / "train" / f"class{number:04}" for number in range(classes)]
    for name in names:
        name.mkdir(parents=True)
    shares = [(name, len(range(number, count, classes))) for number, name in enumerate(names)]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return sum(
            pool.map(partial(fill, side=side, canvas_side=canvas_side), range(classes), shares)
        )


def fill(seed, share, side, canvas_side):
    folder, count = share
    rng, size = np.random.default_rng(seed), 0
    for number in range(count):
        left, top = (int(place) for place in rng.integers(0, canvas_side - side, 2))
        path = folder / f"{number:06}.jpg"
        box = (left, top, left + side, top + side)
        canvas(canvas_side).crop(box).save(path, quality=QUALITY)
        size += path.stat().st_size
    return size


@cache
def canvas(side):
    rng = np.random.default_rng(0)
    total = np.zeros((side, side, 3), np.float32)
    # Each octave has the same contrast, so that amplitudes fall as 1/frequency. The finest is left
    # out: lenses blur it, and files would be twice as large as photos of as many pixels.
    for cells in (2**power for power in range(2, side.bit_length() - 1)):
        for channel in range(3):
            noise = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
            total[..., channel] += noise.resize((side, side), Image.Resampling.BICUBIC)
    total *= 60 / total.std()
    grey = total.mean(axis=2, keepdims=True)  # colours of a photo differ less than its light
    return Image.fromarray((128 + grey * 1.4 + total * 0.3).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
