"""Images of requests: base64 of files, data URIs, and raw pixels."""

import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from pyclassify.data.datasets import read_image
from pyclassify.data.images import READABLE_EXTENSIONS, decode_image, is_readable
from tests.support.images import encode, file_of, raw

NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
PNG, JPEG = file_of(NOISE), file_of(NOISE, "JPEG", quality=90)
MANY = 10**6  # pixels

ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # the orientation

FILES = {
    "rgb.png": PNG,
    "rgb.jpg": JPEG,
    "rgb.webp": file_of(NOISE, "WEBP"),
    "rotated.jpg": file_of(NOISE, "JPEG", exif=ROTATED),
    "rotated.png": file_of(NOISE, exif=ROTATED),
    **{
        f"{mode}.png": file_of(Image.fromarray(NOISE).convert(mode))
        for mode in ("1", "L", "LA", "P", "RGBA")
    },
    "cmyk.jpg": file_of(Image.fromarray(NOISE).convert("CMYK"), "JPEG"),
    "gray.jpg": file_of(Image.fromarray(NOISE).convert("L"), "JPEG"),
    "hole.png": file_of(Image.fromarray(NOISE).convert("P"), transparency=3),
    "16-bits.png": file_of(NOISE[:, :, 0].astype(np.uint16) * 257 + 100),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FILES)
def test_request_is_decoded_as_training_decodes_a_file(name, tmp_path):
    (tmp_path / name).write_bytes(FILES[name])

    pixels = decode_image(encode(FILES[name]), MANY)

    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, read_image(str(tmp_path / name)).permute(1, 2, 0))


def test_request_exif_orientation_is_applied():
    assert np.array_equal(decode_image(encode(FILES["rotated.png"]), MANY), np.rot90(NOISE, -1))


@pytest.mark.parametrize(
    "text",
    [
        f"data:image/png;base64,{encode(PNG)}",
        f"data:;base64,{encode(PNG)}",
        "\n".join(encode(PNG)[start : start + 76] for start in range(0, 5000, 76)),
        f" {encode(PNG)}\r\n",
    ],
    ids=["data URI", "no type", "lines", "blanks"],
)
def test_base64_is_accepted_in_every_common_form(text):
    assert np.array_equal(decode_image(text, MANY), NOISE)


@pytest.mark.parametrize("shape", [(24, 32), (24, 32, 1), (24, 32, 3)])
def test_raw_pixels_are_decoded_by_their_shape(shape):
    pixels = NOISE[..., 0].reshape(shape) if shape[-1] != 3 else NOISE

    expected = np.broadcast_to(pixels.reshape(24, 32, -1), (24, 32, 3))
    assert np.array_equal(decode_image(raw(pixels), MANY), expected)


def claim(width, height):
    """A PNG file with a size in its header and no pixels."""
    size = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    chunks = [b"IHDR" + size, b"IDAT" + zlib.compress(b""), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each))
        for each in chunks
    )


NO_FILE = "decode.*not a supported image format.*begins with"
# the form of this message
NO_BASE64 = (
    r"^is not base64 \(letters, digits, \+ and /, padded by =\); encode the bytes of the file"
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "null.* base64 .*JPEG, PNG or WebP"),
        (float("nan"), "null .*string"),
        (7, "int .*string"),
        ({"b64": ""}, "dict .*string"),
        ("", "empty.*base64"),
        ("data:image/png;base64,", "empty.*base64"),
        ("cat.png", NO_BASE64),
        (encode(PNG)[:-1], NO_BASE64),
        ("é" * 8, NO_BASE64),
        ("\ud800" * 4, NO_BASE64),
        (encode(PNG) + "====", NO_BASE64),
        ("data:image/png," + encode(PNG), "data URI .*base64.*data:image"),
        ("data:base64", "data URI .*base64"),
        (encode(b"no image at all"), NO_FILE),
        (encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), NO_FILE),
        (encode(PNG[: len(PNG) // 2]), r"decode .*(.+).*complete JPEG"),
        (encode(JPEG[: len(JPEG) // 2]), r"decode .*(.+).*complete JPEG"),
        (encode(PNG[:20]), "not decode"),
        (encode(claim(1001, 1000)), "1001 x 1000 pixels.* at most 1000000:"),
        (encode(claim(40_000, 40_000)), "(40000 x 40000|more) pixels"),
        (encode(claim(2**31 - 1, 2**31 - 1)), "pixels|not decode"),
        (raw(NOISE, "24x32x4"), "shape '24x32x4'.*HEIGHTxWIDTHx3"),
        (raw(NOISE, "0x32x3"), "shape '0x32x3'"),
        (raw(NOISE, "-1x32"), "shape '-1x32'"),
        (raw(NOISE, "9" * 5000), "shape '9{40}'"),
        (raw(NOISE, "24x31x3"), "2304 bytes .*2232.* 24x31x3.*uint8"),
        (raw(NOISE.astype(float)), "18432 bytes .*2304.* 24x32x3.*uint8"),
        (raw(NOISE, "999999999x999999999x3"), "999999999 x 999999999 pixels.*at most"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_invalid_image_is_a_short_error(text, message):
    with pytest.raises(ValueError, match=message) as refused:
        decode_image(text, MANY)

    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_bytes_raise_nothing_but_value_error(kind):
    whole = file_of(NOISE, kind)
    draw = np.random.default_rng(1)
    for _ in range(300):
        changed = bytearray(whole[: draw.integers(1, len(whole))])
        changed[draw.integers(len(changed))] = draw.integers(256)
        with suppress(ValueError):
            assert decode_image(encode(changed), MANY).shape[2] == 3


def test_readable_extensions_are_of_formats_that_pillow_decodes():
    registered = Image.registered_extensions()

    formats = {registered[end] for end in READABLE_EXTENSIONS & registered.keys()}

    assert len(READABLE_EXTENSIONS - registered.keys()) == 4  # browsers' names of JPEG
    assert formats - {"MPO"} <= Image.OPEN.keys()
    assert {".jpg", ".jpe", ".jfif", ".gif", ".avif", ".tif"} <= READABLE_EXTENSIONS
    assert not {".eps", ".ps", ".pdf", ".mpg", ".txt", ""} & READABLE_EXTENSIONS


@pytest.mark.parametrize(
    ("name", "readable"), [("a.JFIF", True), ("a.jpg.txt", False), ("jpg", False)]
)
def test_extension_is_recognized_in_any_case(name, readable):
    assert is_readable(name) is readable
