"""Image files as tensors: exactly as the served model decodes them, or quickly for training."""

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from pyclassify.data.images import to_rgb
from pyclassify.data.transforms import resize_quickly


def read_image(path: str) -> Tensor:
    """Decode an image file, turned as its EXIF orientation says.

    Returns:
        uint8 [3, height, width].

    Raises:
        MisconfigurationException: The file can't be read or is not a whole image.
    """
    try:
        with Image.open(path) as image:
            pixels = to_rgb(image)
    except Exception as error:  # a decoder raises whatever a broken file makes it stumble over
        reason = str(error) or repr(error)
        raise MisconfigurationException(
            f"{path} does not decode as an image ({reason}); repair it or remove it"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_scaled(path: str, size: int) -> Tensor:
    """Decode an image file and scale its central square, in less than half the time.

    A JPEG is decoded by torchvision, whose libjpeg-turbo gives Pillow's pixels without Pillow's
    copies, and all images are scaled as bytes, as Pillow does it: what comes out is about one of
    256 levels off `resize` of `read_image` at most.

    Returns:
        float [3, size, size], whole numbers of 0 to 255.

    Raises:
        MisconfigurationException: As `read_image`.
    """
    try:
        image = _read_jpeg(path)
    except Exception:  # whatever it was: `read_image` decodes it, or finds the words for it
        image = read_image(path)
    return resize_quickly(image[None], size)[0]


def _read_jpeg(path: str) -> Tensor:
    with Image.open(path, formats=["JPEG"]) as image:
        if image.mode == "CMYK":
            raise ValueError("each library makes colours of its own of CMYK")
        if b"tiff:Orientation" in image.info.get("xmp", b""):
            raise ValueError("torchvision follows no orientation that is told in XMP")
    content = torch.from_numpy(np.fromfile(path, np.uint8))
    return decode_jpeg(content, ImageReadMode.RGB, apply_exif_orientation=True)
