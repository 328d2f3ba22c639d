"""Images as files, as folders of them, and as requests to a served model hold them."""

import base64
import io

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


def encode(content):
    return base64.b64encode(content).decode()


def file_of(image, kind="PNG", **options):
    """A picture, or pixels uint8 [height, width, 3], as a file's bytes."""
    content = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(content, kind, **options)
    return content.getvalue()


def raw(pixels, shape=None):
    """Pixels, uint8 of any shape, as a data URI that tells it."""
    shape = shape or "x".join(map(str, pixels.shape))
    return f"data:application/octet-stream;shape={shape};base64,{encode(pixels.tobytes())}"
