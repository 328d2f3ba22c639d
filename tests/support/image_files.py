"""Image files of every kind, made on the spot: what each holds, and the RGB that it is read as."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.support.images import file_of

SIDE = 24
ORIENTATION = 0x0112  # EXIF
LOSSY = 12  # levels that a coder with loss may be off

_STEPS = np.arange(SIDE) * 255 // (SIDE - 1)
RGB = np.stack(
    [*np.broadcast_arrays(_STEPS[:, None], _STEPS[None]), 255 - (_STEPS[:, None] + _STEPS) // 2], -1
).astype(np.uint8)
GRAY = RGB[..., 0]
SIXTEEN = (_STEPS[:, None] * 257 - _STEPS // 4).clip(0, 65535).astype(np.uint16)


@dataclass(frozen=True)
class Sample:
    """A file's bytes, and the RGB uint8 [height, width, 3] that it is read as, or the refusal."""

    content: bytes
    rgb: np.ndarray | None = None
    tolerance: int = 0
    refusal: str = ""


def three(gray):
    """Grayscale of any type, as it is read: rounded and in three channels."""
    return np.repeat(np.asarray(gray).round().astype(np.uint8)[..., None], 3, axis=2)


def picture(mode="RGB"):
    return Image.fromarray(RGB).convert(mode)


def with_alpha(mode="RGBA"):
    """A picture whose alpha rises from 0 to 255."""
    image = picture("RGB" if mode == "RGBA" else "L")
    image.putalpha(Image.fromarray(GRAY.T.copy()))
    return image


def chunk(kind, data, crc=None):
    """A chunk of a PNG."""
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png_of(pixels, bits=8, color=2, *, before=b"", after=b""):
    """A PNG of rows of bytes, with chunks before and after those of its pixels."""
    head = struct.pack(">II5B", SIDE, SIDE, bits, color, 0, 0, 0)
    rows = b"".join(b"\0" + np.ascontiguousarray(row).tobytes() for row in pixels)
    data = chunk(b"IHDR", head) + before + chunk(b"IDAT", zlib.compress(rows)) + after
    return b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b"")


def packed_text(size, kind=b"zTXt"):
    """A text chunk of a PNG that unpacks to `size` bytes."""
    start = b"Comment\0\0" if kind == b"zTXt" else b"Comment\0\1\0\0\0"
    return chunk(kind, start + zlib.compress(bytes(size), 9))


def jpeg_of(*segments, image=None, **options):
    """A JPEG with segments (marker, data) behind its first one."""
    whole = file_of(image or picture(), "JPEG", **{"quality": 95, "subsampling": 0, **options})
    end = 4 + int.from_bytes(whole[4:6])
    packed = (
        b"\xff" + bytes([marker]) + (len(data) + 2).to_bytes(2) + data for marker, data in segments
    )
    return whole[:end] + b"".join(packed) + whole[end:]


def tiff_of(pixels, photometric=1, sample_format=1, extra=(), order="<", tags=()):
    """A TIFF of one strip, of pixels [height, width] or [height, width, samples] of any type."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, samples = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    bits = pixels.dtype.itemsize * 8
    entries = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * samples),
        259: (3, [1]),
        262: (3, [photometric]),
        273: (4, [8]),
        277: (3, [samples]),
        278: (4, [height]),
        279: (4, [len(data)]),
        339: (3, [sample_format] * samples),
        **({338: (3, list(extra))} if extra else {}),
        **dict(tags),
    }
    entries = dict(sorted(entries.items()))
    start = 8 + len(data) + len(data) % 2
    after = start + 2 + 12 * len(entries) + 4
    fields, values = b"", b""
    for tag, (kind, numbers) in entries.items():
        packed = struct.pack(f"{order}{len(numbers)}{'HL'[kind == 4]}", *numbers)
        if len(packed) > 4:
            place, values = after + len(values), values + packed
            packed = struct.pack(f"{order}L", place)
        fields += struct.pack(f"{order}HHL", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    body = data + bytes(len(data) % 2) + struct.pack(f"{order}H", len(entries)) + fields
    return mark + struct.pack(f"{order}L", start) + body + bytes(4) + values


def _turned(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
UPRIGHT = np.rot90(RGB, -1)  # what orientation 6 asks for
EXIF = b"Exif\0\0" + _turned(6).tobytes().removeprefix(b"Exif\0\0")


def _list_pngs():
    rows = RGB.reshape(SIDE, -1)
    palette = picture().quantize(64)
    listed = np.asarray(palette.convert("RGB"))
    hole = file_of(palette, transparency=3)
    exif, profile = _turned(6).tobytes(), b"\nexif\n%8d\n" % len(EXIF) + EXIF.hex().encode()
    yield "rgb.png", Sample(png_of(rows), RGB)
    yield "rgb-interlaced.png", Sample(_interlaced(), RGB)
    yield "rgb-16-bits.png", Sample(png_of((RGB.astype(">u2") * 257).reshape(SIDE, -1), 16), RGB)
    yield "rgb-key.png", Sample(png_of(rows, before=chunk(b"tRNS", bytes(6))), RGB)
    yield "rgba.png", Sample(file_of(with_alpha()), RGB)
    yield "gray.png", Sample(file_of(GRAY), three(GRAY))
    yield "gray-alpha.png", Sample(file_of(with_alpha("LA")), three(picture("L")))
    yield "gray-16-bits.png", Sample(file_of(SIXTEEN), three(SIXTEEN / 257))
    for bits in (2, 4):
        levels = GRAY >> (8 - bits)
        packed = np.packbits(np.unpackbits(levels[..., None], 2)[..., -bits:].reshape(SIDE, -1), 1)
        gray = three(levels * (255 // (2**bits - 1)))
        yield f"gray-{bits}-bits.png", Sample(png_of(packed, bits, 0), gray)
    yield "bits.png", Sample(file_of(picture("1")), three(np.asarray(picture("1")) * 255))
    yield "palette.png", Sample(file_of(palette), listed)
    yield "palette-hole.png", Sample(hole, listed)
    yield "palette-alpha.png", Sample(file_of(palette, transparency=bytes(range(64))), listed)
    yield "animated.png", Sample(_animated("PNG"), RGB)
    yield "turned-exif.png", Sample(png_of(rows, before=chunk(b"eXIf", exif)), UPRIGHT)
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    yield "turned-xmp.png", Sample(png_of(rows, before=xmp), UPRIGHT)
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP))
    yield "turned-packed-xmp.png", Sample(png_of(rows, after=xmp), UPRIGHT)
    old = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile))
    yield "turned-old-exif.png", Sample(png_of(rows, before=old), UPRIGHT)
    for name, metadata in {
        "text-2-mb": chunk(b"tEXt", b"Comment\0" + b"x" * 2**21),
        "text-packed": packed_text(2**21),
        "text-international": packed_text(2**21, b"iTXt"),
        "text-100-mb": packed_text(10**6) * 100,
        "text-xmp-bomb": chunk(
            b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(2**21))
        ),
        "text-damaged": chunk(b"zTXt", b"Comment\0\0no zlib"),
        "text-bad-checksum": chunk(b"tEXt", b"Comment\0x", crc=1),
        "profile-2-mb": chunk(b"iCCP", b"sRGB\0\0" + zlib.compress(bytes(2**21))),
        "profile-damaged": chunk(b"iCCP", b"sRGB\0\0no zlib"),
        "exif-damaged": chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"),
        "exif-bad-checksum": chunk(b"eXIf", exif, crc=1),
        "chunks-unknown": chunk(b"abCd", b"?") + chunk(b"pHYs", b"") + chunk(b"gAMA", b""),
    }.items():
        yield f"{name}.png", Sample(png_of(rows, before=metadata), RGB)
        yield f"{name}-at-end.png", Sample(png_of(rows, after=metadata), RGB)


def _interlaced():
    """A PNG in the seven passes of Adam7."""
    rows = b""
    for top, left, down, right in (
        *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
        *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
    ):
        rows += b"".join(b"\0" + row.tobytes() for row in RGB[top::down, left::right])
    head = struct.pack(">II5B", SIDE, SIDE, 8, 2, 0, 0, 1)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


def _animated(kind, **options):
    """A picture, then a black one."""
    black = Image.new("RGB", (SIDE, SIDE))
    return file_of(picture(), kind, save_all=True, append_images=[black], **options)


def _list_jpegs():
    def sample(*segments, rgb=RGB, **options):
        return Sample(jpeg_of(*segments, **options), rgb, LOSSY)

    yield "rgb.jpg", sample()
    yield "progressive.jpg", sample(progressive=True)
    yield "subsampled.jpg", Sample(jpeg_of(subsampling=2), RGB, 20)
    yield "restarts.jpg", sample(restart_marker_blocks=1)
    yield "not-ycc.jpg", sample(keep_rgb=True)
    yield "gray.jpg", sample(image=picture("L"), rgb=three(picture("L")))
    yield "cmyk.jpg", sample(image=picture("CMYK"))
    yield "turned.jpg", sample((0xE1, EXIF), rgb=UPRIGHT)
    yield "turned-xmp.jpg", sample((0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP), rgb=UPRIGHT)
    yield "turned-cmyk.jpg", sample((0xE1, EXIF), image=picture("CMYK"), rgb=UPRIGHT)
    yield "turned-not.jpg", sample((0xE1, b"Exif\0\0" + _turned(9).tobytes()[6:]))
    yield "exif-damaged.jpg", sample((0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    yield "exif-noise.jpg", sample((0xE1, b"Exif\0\0" + bytes(range(256)) * 9))
    profile = [(0xE2, b"ICC_PROFILE\0" + bytes([n, 20]) + bytes(60_000)) for n in range(1, 21)]
    yield "profile-1-mb.jpg", sample(*profile)
    yield "profile-damaged.jpg", sample((0xE2, b"ICC_PROFILE\0"), (0xE2, b"ICC_PROFILE\0\7\1x"))
    yield "comments.jpg", sample(*[(0xFE, b"x" * 65_000)] * 40)
    yield "mpf-damaged.jpg", sample((0xE2, b"MPF\0MM\0*\0\0\0\x08\0\1" + b"\xb0\1" * 6))
    yield "starts-damaged.jpg", sample((0xE0, b"JFIF\0"), (0xEE, b"Adobe"))
    yield "photoshop-damaged.jpg", sample((0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\xff"))
    yield "behind-the-end.jpg", Sample(jpeg_of() + b"a video" * 999, RGB, LOSSY)
    options = {"quality": 95, "subsampling": 0}
    yield "stereo.mpo", Sample(_animated("MPO", **options), RGB, LOSSY)
    yield "really-a-png.jpg", Sample(file_of(RGB), RGB)
    yield "really-a-jpeg.png", Sample(jpeg_of(), RGB, LOSSY)
    yield "capitals.JFIF", Sample(jpeg_of(), RGB, LOSSY)


# Of wrong types and beyond the end: EXIF, XMP, ICC profile, description, further pages.
_DAMAGED_TAGS = [
    (tag, (4, [10**7])) for tag in (254, 270, 282, 330, 700, 33723, 34377, 34665, 34675)
]


def _list_tiffs():
    wide = SIXTEEN.astype(np.float64)
    yield "rgb.tif", Sample(file_of(RGB, "TIFF"), RGB)
    yield "rgb-lzw.tif", Sample(file_of(RGB, "TIFF", compression="tiff_lzw"), RGB)
    yield "rgb-jpeg.tif", Sample(file_of(RGB, "TIFF", compression="jpeg", quality=95), RGB, LOSSY)
    yield "rgb-16-bits.tif", Sample(tiff_of(RGB.astype(np.uint16) * 257, 2, order=">"), RGB)
    yield "rgba.tif", Sample(file_of(with_alpha(), "TIFF"), RGB)
    half = np.dstack([RGB // 2, np.full_like(GRAY, 128)])
    yield "rgba-premultiplied.tif", Sample(tiff_of(half, 2, extra=[1]), RGB, 3)
    half = np.dstack([GRAY // 2, np.full_like(GRAY, 128)])
    yield "gray-premultiplied.tif", Sample(tiff_of(half, extra=[1]), three(GRAY), 3)
    yield "cmyk.tif", Sample(file_of(picture("CMYK"), "TIFF"), RGB)
    yield "ycbcr.tif", Sample(file_of(picture("YCbCr"), "TIFF"), RGB, LOSSY)
    lab = np.dstack([GRAY, np.zeros_like(GRAY), np.zeros_like(GRAY)])
    yield "lab.tif", Sample(tiff_of(lab, 8), three(_lightness_to_gray(GRAY)), 2)
    yield (
        "palette.tif",
        Sample(
            file_of(picture().quantize(64), "TIFF"),
            np.asarray(picture().quantize(64).convert("RGB")),
        ),
    )
    yield "bits.tif", Sample(file_of(picture("1"), "TIFF"), three(np.asarray(picture("1")) * 255))
    yield "large-file.tif", Sample(file_of(RGB, "TIFF", big_tiff=True), RGB)
    yield "metadata-damaged.tif", Sample(tiff_of(RGB, 2, tags=_DAMAGED_TAGS), RGB)
    yield "pages.tif", Sample(_animated("TIFF"), RGB)
    yield "turned.tif", Sample(tiff_of(RGB, 2, tags=[(ORIENTATION, (3, [6]))]), UPRIGHT)
    for order, name in (("<", "little"), (">", "big")):
        yield f"16-bits-{name}-endian.tif", Sample(tiff_of(SIXTEEN, order=order), three(wide / 257))
        floats = (wide / 65535).astype(np.float32)
        yield (
            f"floats-{name}-endian.tif",
            Sample(tiff_of(floats, 1, 3, order=order), three(wide / 257)),
        )
    yield "16-bits-white-is-zero.tif", Sample(tiff_of(SIXTEEN, 0), three(255 - wide / 257), 1)
    low, high = wide.min(), wide.max()
    stretched = three((wide - low) / (high - low) * 255)
    signed = (wide / 4 - 1000).astype(np.int16)
    yield "16-bits-signed.tif", Sample(tiff_of(signed, 1, 2), stretched, 1)
    yield "32-bits-small.tif", Sample(tiff_of(SIXTEEN.astype(np.int32), 1, 2), three(wide / 257))
    yield "32-bits.tif", Sample(tiff_of((wide * 65_000).astype(np.uint32)), stretched, 1)
    signed = (wide * 900 - 10**6).astype(np.int32)
    yield "32-bits-signed.tif", Sample(tiff_of(signed, 1, 2), stretched, 1)
    floats = (wide * 7 - 3e4).astype(np.float32)
    yield "floats-of-any-range.tif", Sample(tiff_of(floats, 1, 3), stretched, 1)
    holes = floats.copy()
    holes[0, :3] = np.nan, np.inf, -np.inf
    expected = stretched.copy()
    expected[0, :3] = [[0] * 3, [255] * 3, [0] * 3]
    yield "floats-not-finite.tif", Sample(tiff_of(holes, 1, 3), expected, 1)
    yield "floats-all-nan.tif", Sample(tiff_of(np.full_like(holes, np.nan), 1, 3), three(GRAY * 0))
    yield "half-floats.tif", Sample(tiff_of(GRAY.astype(np.float16), 1, 3), refusal="TIFF")
    yield "five-bands.tif", Sample(tiff_of(np.zeros((SIDE, SIDE, 5), np.uint16)), refusal="TIFF")


def _lightness_to_gray(lightness):
    """sRGB of CIELAB's L* of 0 to 255 levels, without color."""
    light = lightness / 255 * 100
    linear = np.where(light > 8, ((light + 16) / 116) ** 3, light / 903.3)
    return 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def _list_others():
    gif = picture().quantize(64)
    listed = np.asarray(gif.convert("RGB"))
    lossless = {"lossless": True, "exact": True}
    yield "rgb.webp", Sample(file_of(RGB, "WEBP", quality=100), RGB, 40)
    yield "lossless.webp", Sample(file_of(RGB, "WEBP", **lossless), RGB)
    yield "alpha.webp", Sample(file_of(with_alpha(), "WEBP", **lossless), RGB)
    yield "animated.webp", Sample(_animated("WEBP", **lossless), RGB)
    yield "turned.webp", Sample(file_of(RGB, "WEBP", exif=_turned(6), **lossless), UPRIGHT)
    yield "profile.webp", Sample(file_of(RGB, "WEBP", icc_profile=bytes(2**21), **lossless), RGB)
    yield "palette.gif", Sample(file_of(gif, "GIF"), listed)
    yield "hole.gif", Sample(file_of(gif, "GIF", transparency=3), listed)
    yield "comment.gif", Sample(file_of(gif, "GIF", comment=b"x" * 2**21), listed)
    yield (
        "animated.gif",
        Sample(
            file_of(gif, "GIF", save_all=True, append_images=[Image.new("P", gif.size)]), listed
        ),
    )
    yield "rgb.bmp", Sample(file_of(RGB, "BMP"), RGB)
    yield "alpha.bmp", Sample(file_of(with_alpha(), "BMP"), RGB)
    yield "palette.bmp", Sample(file_of(gif, "BMP"), listed)
    yield "rgb.dib", Sample(file_of(RGB, "DIB"), RGB)
    yield "rgb.ppm", Sample(file_of(RGB, "PPM"), RGB)
    yield (
        "16-bits.pgm",
        Sample(b"P5 24 24 65535\n" + SIXTEEN.astype(">u2").tobytes(), three(SIXTEEN / 257)),
    )
    ten = SIXTEEN // 64
    yield (
        "10-bits.pgm",
        Sample(b"P5 24 24 1023\n" + ten.astype(">u2").tobytes(), three(ten / 1023 * 255), 1),
    )
    yield "bits.pbm", Sample(file_of(picture("1"), "PPM"), three(np.asarray(picture("1")) * 255))
    floats = (SIXTEEN[::-1] / 65535).astype("<f4")
    yield "floats.pfm", Sample(b"Pf\n24 24\n-1.0\n" + floats.tobytes(), three(SIXTEEN / 257))
    lossless = {"irreversible": False}
    yield "rgb.jp2", Sample(file_of(RGB, "JPEG2000", **lossless), RGB)
    yield "alpha.jp2", Sample(file_of(with_alpha(), "JPEG2000", **lossless), RGB)
    yield (
        "16-bits.jp2",
        Sample(file_of(Image.fromarray(SIXTEEN), "JPEG2000", **lossless), three(SIXTEEN / 257)),
    )
    yield "rgb.avif", Sample(file_of(RGB, "AVIF", quality=100, subsampling="4:4:4"), RGB, LOSSY)
    yield (
        "turned.avif",
        Sample(
            file_of(RGB, "AVIF", quality=100, subsampling="4:4:4", exif=_turned(6)), UPRIGHT, LOSSY
        ),
    )
    yield "icon.ico", Sample(file_of(with_alpha(), "ICO", sizes=[(16, 16), (24, 24)]), RGB)
    yield "rgb.tga", Sample(file_of(RGB, "TGA"), RGB)
    yield "packed.tga", Sample(file_of(RGB, "TGA", compression="tga_rle"), RGB)
    yield "rgb.sgi", Sample(file_of(RGB, "SGI"), RGB)
    yield "rgb.pcx", Sample(file_of(RGB, "PCX"), RGB)
    yield "rgba.dds", Sample(file_of(with_alpha(), "DDS"), RGB)
    yield "rgb.qoi", Sample(file_of(RGB, "QOI"), RGB)


def _list_refused():
    for name in ("rgb.png", "rgb.jpg", "rgb.webp", "palette.gif", "rgb.tif", "rgb.bmp", "rgb.jp2"):
        content = READ[name].content
        yield f"cut-{name}", Sample(content[: len(content) // 2])  # in the decoder's own words
    unknown = "not a supported image format"
    yield "empty.jpg", Sample(b"", refusal="empty")
    yield "page.jpg", Sample(b"<!DOCTYPE html><html><body>404", refusal=unknown)
    yield "text.png", Sample(b"a note\n" * 99, refusal=unknown)
    yield "drawing.png", Sample(b'<svg xmlns="http://www.w3.org/2000/svg"/>', refusal=unknown)
    yield "document.tif", Sample(b"%PDF-1.4\n" * 9, refusal=unknown)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"
    yield "script.jpg", Sample(script, refusal=unknown)
    yield "zeros.bmp", Sample(bytes(4096), refusal=unknown)
    head = struct.pack(">II5B", 40_000, 40_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b""))
    yield "bomb.png", Sample(bomb + chunk(b"IEND", b""), refusal="pixels")
    yield (
        "damaged.png",
        Sample(png_of(RGB.reshape(SIDE, -1)).replace(b"IDAT", b"IDAX"), refusal="PNG"),
    )


# By the file's name.
READ = dict((*_list_pngs(), *_list_jpegs(), *_list_tiffs(), *_list_others()))
REFUSED = {name: READ.pop(name) for name in list(READ) if READ[name].refusal} | dict(
    _list_refused()
)
