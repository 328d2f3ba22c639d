"""MNIST's files, with few digits in them."""

import numpy as np


def write_idx(path, array):
    """Write bytes as MNIST's files hold them: a magic number, the sizes, the data."""
    header = [0x800 + array.ndim, *array.shape]
    path.write_bytes(np.array(header, ">i4").tobytes() + array.astype(np.uint8).tobytes())


def make_mnist(folder, count=20):
    """Digits of random pixels, where torchvision looks for MNIST."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28))
    for part in ("train", "t10k"):
        write_idx(raw / f"{part}-images-idx3-ubyte", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(count) % 10)
    return folder
