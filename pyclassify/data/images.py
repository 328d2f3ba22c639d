"""Decode images from files and requests to RGB, identically for folders and served models.

Training, validation, prediction and served models decode only with this file. A served model has a
copy of it, so the file imports nothing except Pillow and numpy. docs/images.md has the rules.
"""

import binascii
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

# The supported formats, by Pillow's names, and their extensions. A file is read by its content: the
# extension decides only whether the listing of a folder includes it. Not supported: formats that
# start a program (EPS), without pixels (BUFR, GRIB, HDF5, MPEG), of one operating system (WMF), and
# without a signature, which other content is mistaken for (IM).
_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "AVIF": (".avif", ".avifs"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "ICO": (".ico",),
    "CUR": (".cur",),
    "ICNS": (".icns",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "DDS": (".dds",),
    "BLP": (".blp",),
    "FTEX": (".ftc", ".ftu"),
    "FITS": (".fit", ".fits"),
    "FLI": (".fli", ".flc"),
    "SGI": (".sgi", ".rgb", ".rgba", ".bw"),
    "SUN": (".ras",),
    "PCX": (".pcx",),
    "DCX": (".dcx",),
    "MSP": (".msp",),
    "PIXAR": (".pxr",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "TGA": (".tga", ".icb", ".vda", ".vst"),  # last: recognized only by a plausible header
}
_FORMATS = tuple(_EXTENSIONS)

# In lower case.
READABLE_EXTENSIONS = frozenset(end for ends in _EXTENSIONS.values() for end in ends)

# Images with more pixels are refused: Pillow's limit, above which it suspects an attack.
MAX_PIXELS = 178_956_970

_SHAPE = re.compile(r"([1-9]\d{0,8})x([1-9]\d{0,8})(?:x([13]))?")

_ORIENTATION = 0x0112  # the tag of EXIF and TIFF
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF
# The tags of TIFF that decide the pixels.
_TIFF_NEEDED = {
    *(256, 257, _BITS, 259, _PHOTOMETRIC, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320),
    *(322, 323, 324, 325, 332, 338, _SAMPLE_FORMAT, 347, *range(512, 522), *range(529, 533)),
}
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_SIGNATURE = b"\xff\xd8\xff"
# The start of the first scan, and segments without a length.
_JPEG_LAST_SEGMENTS = (*range(0xD0, 0xDB), 0x00, 0x01, 0xFF)
# The application segments with the color space of the components, or with the orientation.
_JPEG_NEEDED = (b"JFIF\0", b"Adobe", b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_ORIENTATION_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
_MAX_TEXT_BYTES = 2**20  # of a decompressed text in a PNG; Pillow refuses files with more

_REFUSAL = "does not decode as an image"
_MAX_REASON_LENGTH = 120


class UnreadableImageError(ValueError):
    """A file can't be read or is not a supported image; the message has the reason."""


def digest_decoder() -> str:
    """Digest the code of this file, so that caches of pixels become invalid when it changes."""
    return sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def is_readable(name: str) -> bool:
    """Whether the name of a file has the extension of a supported format, in any case."""
    return os.path.splitext(name)[1].lower() in READABLE_EXTENSIONS


def read_rgb(path: str) -> Pixels:
    """Decode an image file to RGB.

    Returns:
        uint8 [height, width, 3].

    Raises:
        UnreadableImageError: The file can't be read or is not a complete image; the message names
            the file and the reason.
    """
    try:
        return decode_rgb(read_content(path))
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{path} {error}; repair it or remove it") from error


def read_content(path: str) -> bytes:
    """Read the content of a file.

    Raises:
        UnreadableImageError: The file can't be read. The message continues a sentence that begins
            with the name of the file.
    """
    with _refuse_with_reason(), open(path, "rb", buffering=0) as file:
        return file.read()


def decode_rgb(content: bytes, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode the content of an image file to RGB.

    Args:
        content: The content of the file; its extension does not matter.
        max_pixels: Images with more pixels are refused before they are decoded.

    Returns:
        uint8 [height, width, 3].

    Raises:
        UnreadableImageError: The content is not a complete image. The message continues a sentence
            that begins with the name of the file: "does not decode as an image (REASON)".
    """
    with _refuse_with_reason(content), _open(content, max_pixels) as image:
        return convert_to_rgb(image)


def convert_to_rgb(image: Image.Image) -> Pixels:
    """Convert an image of Pillow to upright RGB, uint8 [height, width, 3]."""
    image.load()
    pixels = np.asarray(_convert_to_eight_bits(image))
    # After the image is loaded, because Pillow then applies the orientation of a TIFF itself.
    return np.array(turn_upright(pixels, read_orientation(image)))


def open_image(content: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open the content of an image file, to read its header: `format`, `mode` and `size`.

    Raises:
        UnreadableImageError: The content has no header of a supported format.
    """
    with _refuse_with_reason(content):
        return _open(content, max_pixels)


def _open(content: bytes, max_pixels: int) -> Image.Image:
    if not content:
        raise ValueError("the file is empty")
    image = Image.open(io.BytesIO(_drop_metadata(content)), formats=_FORMATS)
    if image.height * image.width > max_pixels:
        size = f"{image.width} x {image.height} pixels"
        raise ValueError(f"{size}, expected at most {max_pixels}: reduce the image")
    return image


@contextmanager
def _refuse_with_reason(content: bytes = b"") -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise UnreadableImageError(f"{_REFUSAL} ({_describe_start(content)})") from error
    except Image.DecompressionBombError as error:
        reason = "more pixels than Pillow allows, possibly a decompression bomb"
        raise UnreadableImageError(f"{_REFUSAL} ({reason})") from error
    except Exception as error:  # decoders raise anything for a damaged file
        reason = " ".join((str(error) or repr(error)).split())[:_MAX_REASON_LENGTH]
        raise UnreadableImageError(f"{_REFUSAL} ({reason})") from error


def _describe_start(content: bytes) -> str:
    for name in _FORMATS:
        accept = Image.OPEN[name][1]
        if accept and accept(content[:16].ljust(16, b"\0")) is True:
            return f"a damaged {name} file, or a variant of {name} that Pillow can't read"
    return f"not a supported image format: the content begins with {content[:12]!r}"


def read_orientation(image: Image.Image) -> int:
    """Read the orientation in EXIF or XMP: 1 to 8; 1 if it is missing or damaged."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # parsers raise anything for damaged metadata, which viewers ignore
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an orientation of EXIF, 1 to 8, on pixels [height, width, ...]."""
    if orientation >= 5:  # 5 to 8: rows and columns are swapped
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _convert_to_eight_bits(image: Image.Image) -> Image.Image:
    """Convert to RGB by the rules of docs/images.md for each mode."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_scale_to_bytes(image)).convert("RGB")
    if image.mode == "LAB":
        return _make_lab_transform().apply(image)
    # Pillow converts premultiplied colors only to straight ones. It warns of a palette with
    # transparency that is not converted to RGBA first.
    straight = {"La": "LA", "RGBa": "RGBA", "P": "RGBA"}.get(image.mode)
    return (image.convert(straight) if straight else image).convert("RGB")


@cache
def _make_lab_transform() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def _scale_to_bytes(image: Image.Image) -> Pixels:
    """Scale pixels of 12, 16 or 32 bits, or floats, which Pillow would clip.

    The range is 0 to 1 for floats and 16 bits for integers. If a pixel is outside, the range is
    that of the image's finite pixels.
    """
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})  # of a TIFF
    values = np.asarray(image)
    if image.mode == "I" and tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow reads them as signed
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    top = 1 if image.mode == "F" else 4095 if tags.get(_BITS) == (12,) else 65535
    if low >= 0 and high <= top:
        low, high = 0.0, float(top)
    clipped = np.nan_to_num(values.astype(np.float64), nan=low).clip(low, high)
    scaled = (clipped - low) / (((high - low) or 1) / 255)
    if tags.get(_PHOTOMETRIC) == 0:  # white is zero, which Pillow inverts only up to 8 bits
        scaled = 255 - scaled
    return scaled.round().astype(np.uint8)


def _drop_metadata(content: bytes) -> bytes:
    """Drop everything except pixels and orientation from a PNG, JPEG or TIFF.

    Pillow refuses a file with a large text or color profile, or with damaged metadata.
    """
    if content.startswith(_PNG_SIGNATURE):
        return _drop_png_metadata(content)
    if content.startswith(_JPEG_SIGNATURE):
        return _drop_jpeg_metadata(content)
    if content.startswith(_TIFF_SIGNATURES):
        with suppress(struct.error):  # the file is truncated, which Pillow reports
            return _drop_tiff_metadata(content)
    return content


def _drop_jpeg_metadata(content: bytes) -> bytes:
    segments, start = [content[:2]], 2
    while content[start : start + 1] == b"\xff" and start + 4 <= len(content):
        if content[start + 1] in _JPEG_LAST_SEGMENTS:
            break
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4])
        marker, data = content[start + 1], content[start + 4 : end]
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or (data.startswith(_JPEG_NEEDED) and len(data) >= 12):
            segments.append(content[start:end])
        start = end
    return b"".join([*segments, content[start:]])


def _drop_tiff_metadata(content: bytes) -> bytes:
    """Drop all tags except the needed ones of the first page; the data they point to stay."""
    order = "<" if content.startswith(b"II") else ">"
    is_big = b"+" in content[:4]  # BigTIFF
    count, word, entry_size, offset = ("Q", "Q", 20, 8) if is_big else ("H", "L", 12, 4)
    (start,) = struct.unpack_from(order + word, content, offset)
    (length,) = struct.unpack_from(order + count, content, start)
    first = start + struct.calcsize(order + count)
    orientations = tuple(struct.pack(f"{order}HH{word}", _ORIENTATION, kind, 1) for kind in (3, 4))
    entries = []
    for position in range(first, first + length * entry_size, entry_size):
        (tag,) = struct.unpack_from(order + "H", content, position)
        entry = content[position : position + entry_size]
        if tag in _TIFF_NEEDED or entry.startswith(orientations):
            entries.append(entry)
    directory = struct.pack(order + count, len(entries)) + b"".join(entries)
    directory += bytes(struct.calcsize(order + word))  # no next page
    return content[:start] + directory + content[start + len(directory) :]


def _drop_png_metadata(content: bytes) -> bytes:
    chunks, start = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while start + 8 <= len(content):
        kind = content[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(content[start : start + 4])
        chunk = content[start:end]
        if kind[:1].isupper() or _may_hold_orientation(kind, chunk):
            chunks.append(chunk)
        start = end
    return b"".join(chunks)


def _may_hold_orientation(kind: bytes, chunk: bytes) -> bool:
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
        return False
    if kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return kind == b"eXIf"
    keyword, _, rest = chunk[8:-4].partition(b"\0")
    if keyword not in _PNG_ORIENTATION_TEXTS or len(rest) > _MAX_TEXT_BYTES:
        return False
    packed = b""
    if kind == b"zTXt":
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    try:
        unpacked = zlib.decompressobj().decompress(packed, _MAX_TEXT_BYTES + 1)
    except zlib.error:
        return False
    return len(unpacked) <= _MAX_TEXT_BYTES


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
        ValueError: The text is none of these. The message continues a sentence that begins with
            the name of the image, such as "image 3".
    """
    if not isinstance(text, str):
        # MLflow's table has NaN where a row has no image.
        kind = "null" if text is None or text != text else f"of type {type(text).__name__}"
        raise ValueError(f"is {kind} (expected a string: the base64 of a JPEG, PNG or WebP file)")
    attributes: list[str] = []
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        attributes = [attribute.strip() for attribute in head.split(";")[1:]]
        if not comma or "base64" not in attributes:
            raise ValueError("is a data URI without base64; write it as data:image/png;base64,...")
    content = _decode_base64(text)
    shapes = [name.removeprefix("shape=") for name in attributes if name.startswith("shape=")]
    if shapes:
        return _decode_raw(content, shapes[0], max_pixels)
    try:
        return decode_rgb(content, max_pixels)
    except UnreadableImageError as error:
        raise ValueError(f"{error}; send a complete JPEG, PNG or WebP file") from None


def _decode_base64(text: str) -> bytes:
    try:
        # The command `base64` writes line breaks.
        content = binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError:
        raise ValueError(
            "is not base64 (letters, digits, + and /, padded by =); "
            "encode the bytes of the file with base64"
        ) from None
    if not content:
        raise ValueError("is empty; send the base64 of a JPEG, PNG or WebP file")
    return content


def _decode_raw(content: bytes, shape: str, max_pixels: int) -> Pixels:
    match = _SHAPE.fullmatch(shape)
    if not match:
        raise ValueError(
            f"has the shape {shape[:40]!r} (expected HEIGHTxWIDTHx3, or HEIGHTxWIDTH for grayscale)"
        )
    height, width, channels = (int(size or 1) for size in match.groups())
    if height * width > max_pixels:
        raise ValueError(
            f"has {width} x {height} pixels (expected at most {max_pixels}); reduce the image"
        )
    expected = math.prod((height, width, channels))
    if len(content) != expected:
        raise ValueError(
            f"has {len(content)} bytes (expected {expected} for the shape {shape}); "
            "send uint8, one byte per channel of each pixel"
        )
    pixels = np.frombuffer(content, np.uint8).reshape(height, width, channels)
    return np.broadcast_to(pixels, (height, width, 3))
