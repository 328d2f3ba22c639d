"""Decode images from files and requests to RGB, identically for folders and served models.

A served model holds a copy of this file, so that this file imports nothing but Pillow and numpy.
"""

import binascii
import io
import math
import os
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

# What Pillow itself decodes, by the ends of files' names in lower case. Not here: formats that only
# name their content (BUFR, GRIB, HDF5, IPTC, MPEG), those of one system (WMF, EMF), and EPS, which
# starts a program.
READABLE_EXTENSIONS = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".avifs"),
        *(".bmp", ".dib", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".qoi"),
        *(".jp2", ".j2c", ".j2k", ".jpc", ".jpf", ".jpx", ".tga", ".icb", ".vda", ".vst"),
        *(".sgi", ".rgb", ".rgba", ".bw", ".ras", ".im", ".pcx", ".dcx", ".psd", ".pcd", ".pxr"),
        *(".ico", ".icns", ".cur", ".dds", ".blp", ".ftc", ".ftu", ".flc", ".fli", ".fit", ".fits"),
        *(".gbr", ".msp", ".xbm", ".xpm"),
    )
)

# Requests can't choose Pillow's other formats, of which some start programs.
_REQUEST_FORMATS = ("JPEG", "PNG", "WEBP")

_SHAPE = re.compile(r"([1-9]\d{0,8})x([1-9]\d{0,8})(?:x([13]))?")


def is_readable(name: str) -> bool:
    """Return whether a file's name ends as that of an image which is decoded, in any case."""
    return os.path.splitext(name)[1].lower() in READABLE_EXTENSIONS


def convert_to_rgb(image: Image.Image) -> Pixels:
    """Convert an opened image to RGB and apply its EXIF orientation.

    Args:
        image: Any mode except floats; 16 bits a channel are rounded to 8.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: The pixels are floats.
    """
    ImageOps.exif_transpose(image, in_place=True)
    return np.array(_convert_to_eight_bits(image).convert("RGB"))


def _convert_to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("pixels are floats of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip
        return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    # Pillow warns of a palette with transparency that is not converted to RGBA first.
    return image.convert("RGBA") if image.mode == "P" else image


def decode_image(text: Any, max_pixels: int) -> Pixels:
    """Decode an image of a request.

    Args:
        text: The base64 (RFC 4648) of a JPEG, PNG or WebP file, alone or in a data URI (RFC 2397);
            or raw pixels in a data URI with their shape,
            `data:application/octet-stream;shape=32x32x3;base64,...`: bytes in row-major order
            from the top left, height x width x 3, or grayscale height x width (x 1).
        max_pixels: Images with more pixels are refused before they are decoded.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: It is none of these. The message continues a sentence that names the image:
            "is ...".
    """
    if not isinstance(text, str):
        # MLflow's table has NaN where a row has no image.
        kind = "null" if text is None or text != text else f"of type {type(text).__name__}"
        raise ValueError(f"is {kind}; it takes a text, the base64 of a JPEG, PNG or WebP file")
    attributes: list[str] = []
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        attributes = [attribute.strip() for attribute in head.split(";")[1:]]
        if not comma or "base64" not in attributes:
            raise ValueError("is a data URI without base64; write it as data:image/png;base64,...")
    content = _decode_base64(text)
    shapes = [name.removeprefix("shape=") for name in attributes if name.startswith("shape=")]
    return (
        _decode_raw(content, shapes[0], max_pixels) if shapes else _decode_file(content, max_pixels)
    )


def _decode_base64(text: str) -> bytes:
    try:
        # The command base64 writes line breaks.
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
    match = _SHAPE.fullmatch(shape)
    if not match:
        raise ValueError(
            f"has the shape {shape[:40]!r}; raw pixels take HEIGHTxWIDTHx3, or HEIGHTxWIDTH of gray"
        )
    height, width, channels = (int(size or 1) for size in match.groups())
    _check_size(height, width, max_pixels)
    expected = math.prod((height, width, channels))
    if len(content) != expected:
        raise ValueError(
            f"has {len(content)} bytes, and the shape {shape} takes {expected}; "
            "send uint8, a byte for each channel of each pixel"
        )
    pixels = np.frombuffer(content, np.uint8).reshape(height, width, channels)
    return np.broadcast_to(pixels, (height, width, 3))


def _decode_file(content: bytes, max_pixels: int) -> Pixels:
    try:
        with Image.open(io.BytesIO(content), formats=_REQUEST_FORMATS) as image:
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
    except Exception as error:  # decoders raise anything for a damaged file
        reason = " ".join((str(error) or repr(error)).split())[:100]
        raise ValueError(f"does not decode ({reason}); send the whole file") from None


class ImageTooLargeError(ValueError):
    """An image has more pixels than a request may decode."""


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageTooLargeError(
            f"has {width} x {height} pixels, and at most {max_pixels} are decoded; make it smaller"
        )
