"""Images out of what files and requests hold, as RGB: the one truth for folders and for serving.

A served model takes a copy of this file along, so it needs nothing but Pillow and numpy.
"""

import binascii
import io
import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

# What cameras and browsers send. Pillow's other formats, some of which start programs, stay shut.
FORMATS = ("JPEG", "PNG", "WEBP")

_SHAPE = re.compile(r"([1-9]\d{0,8})x([1-9]\d{0,8})(?:x([13]))?")


def convert_to_rgb(image: Image.Image) -> Pixels:
    """Decode an opened image, turned as its EXIF orientation says.

    Returns:
        uint8 [height, width, 3].
    """
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(_convert_to_eight_bits(image).convert("RGB"))


def _convert_to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("pixels are floats of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip them
        return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    # Pillow warns of a palette with transparency unless it is looked up first.
    return image.convert("RGBA") if image.mode == "P" else image


def decode_image(text: Any, max_pixels: int) -> Pixels:
    """Read an image as a request holds it.

    Args:
        text: The base64 (RFC 4648) of a JPEG, PNG or WebP file, alone or in a data URI (RFC 2397);
            or raw pixels in a data URI that tells their shape,
            `data:application/octet-stream;shape=32x32x3;base64,...`: bytes, rows from the top,
            in each row pixel by pixel; of height x width x 3, or grey of height x width (x 1).
        max_pixels: What has more is refused before it is decoded.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: It is none of these. The message goes on where the image was named: "is ...".
    """
    if not isinstance(text, str):
        # A table's rows lack what is not a number.
        kind = "null" if text is None or text != text else f"of type {type(text).__name__}"
        raise ValueError(f"is {kind}; it takes a text, the base64 of a JPEG, PNG or WebP file")
    attributes: list[str] = []
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        attributes = [each.strip() for each in head.split(";")[1:]]
        if not comma or "base64" not in attributes:
            raise ValueError("is a data URI without base64; write it as data:image/png;base64,...")
    content = _decode_base64(text)
    shapes = [each.removeprefix("shape=") for each in attributes if each.startswith("shape=")]
    return (
        _decode_raw(content, shapes[0], max_pixels) if shapes else _decode_file(content, max_pixels)
    )


def _decode_base64(text: str) -> bytes:
    try:
        # As the command base64 writes it: with line breaks.
        content = binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError:
        raise ValueError(
            "is not base64 (letters, digits, + and /, padded by =); "
            "encode the file's bytes, as the command base64 does"
        ) from None
    if not content:
        raise ValueError("is empty; send the base64 of a JPEG, PNG or WebP file")
    return content


def _decode_raw(content: bytes, shape: str, max_pixels: int) -> Pixels:
    found = _SHAPE.fullmatch(shape)
    if not found:
        raise ValueError(
            f"has the shape {shape[:40]!r}; raw pixels take HEIGHTxWIDTHx3, or HEIGHTxWIDTH of grey"
        )
    height, width, channels = (int(each or 1) for each in found.groups())
    _check_size(height, width, max_pixels)
    needed = math.prod((height, width, channels))
    if len(content) != needed:
        raise ValueError(
            f"has {len(content)} bytes, and the shape {shape} takes {needed}; "
            "send uint8, a byte for each channel of each pixel"
        )
    pixels = np.frombuffer(content, np.uint8).reshape(height, width, channels)
    return np.broadcast_to(pixels, (height, width, 3))


def _decode_file(content: bytes, max_pixels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(image.height, image.width, max_pixels)
            return convert_to_rgb(image)
    except ImageTooLargeError:
        raise
    except UnidentifiedImageError:
        raise ValueError("is no JPEG, PNG or WebP file; send one, in base64") from None
    except Image.DecompressionBombError:
        raise ImageTooLargeError(
            f"has more pixels than the {max_pixels} that are decoded"
        ) from None
    except Exception as error:  # a decoder raises whatever a broken file makes it stumble over
        reason = " ".join((str(error) or repr(error)).split())[:100]
        raise ValueError(f"does not decode ({reason}); send the whole file") from None


class ImageTooLargeError(ValueError):
    """An image has too many pixels to be decoded."""


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageTooLargeError(
            f"has {width} x {height} pixels, and at most {max_pixels} are decoded; make it smaller"
        )
