"""Generate an image folder of JPEGs.

Each image is a crop of a large image of noise with the spectrum of photos (amplitudes fall as
1/frequency; Field, "Relations between the statistics of natural images", JOSA A 1987), so that
files are as large and decode as slowly as photos. All CPU cores are used.
"""

import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.parts.command import BenchmarkParser

CANVAS_PIXELS = 2048
QUALITY = 85


def main():
    parser = BenchmarkParser("parts.jpegs", __doc__, ("FOLDER", "FOLDER --count 1000 --side 64"))
    parser.add_argument("folder", type=Path, help="Write to train/<class>/ in this folder.")
    parser.add_argument(
        "--count", type=int, default=100_000, help="Generate this number of images."
    )
    parser.add_argument("--side", type=int, default=256, help="Set height and width in pixels.")
    parser.add_argument("--classes", type=int, default=100, help="Set the number of classes.")
    args = parser.parse_args(sys.argv[1:])
    size = make(args.folder, args.count, args.side, args.classes)
    sys.stdout.write(f"{args.count} files of {size / args.count / 1000:.1f} kB on average\n")


def make(folder, count, side, classes=10, canvas_side=CANVAS_PIXELS):
    """Write images to FOLDER/train/<class>; return the size of all files in bytes."""
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
        left, top = (int(offset) for offset in rng.integers(0, canvas_side - side, 2))
        path = folder / f"{number:06}.jpg"
        box = (left, top, left + side, top + side)
        canvas(canvas_side).crop(box).save(path, quality=QUALITY)
        size += path.stat().st_size
    return size


@cache
def canvas(side):
    rng = np.random.default_rng(0)
    total = np.zeros((side, side, 3), np.float32)
    # Each octave has the same contrast, so that amplitudes fall as 1/frequency. The finest one is
    # omitted: lenses blur it, and files would be twice as large as photos.
    for cells in (2**power for power in range(2, side.bit_length() - 1)):
        for channel in range(3):
            noise = Image.fromarray(rng.normal(size=(cells, cells)).astype(np.float32))
            total[..., channel] += noise.resize((side, side), Image.Resampling.BICUBIC)
    total *= 60 / total.std()
    grey = total.mean(axis=2, keepdims=True)  # colours of a photo differ less than its light
    return Image.fromarray((128 + grey * 1.4 + total * 0.3).clip(0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
