"""Decoding image files of every kind, complete and damaged."""

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image, ImageOps, TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from pyclassify.data.datasets import read_image, read_quickly, read_resized
from pyclassify.data.transforms import resize

ORIENTATION = 0x0112  # the EXIF tag
NOISE = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)


def solid(mode, color):
    return Image.new(mode, (6, 4), color)


def palette(**transparency):
    image = solid("P", 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.info.update(transparency)
    return image


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("image", "file", "color"),
    [
        (solid("RGB", (200, 100, 50)), "rgb.png", (200, 100, 50)),
        (solid("RGB", (200, 100, 50)), "rgb.jpg", (200, 100, 50)),
        (solid("RGB", (200, 100, 50)), "rgb.webp", (200, 100, 50)),
        (solid("L", 77), "gray.png", (77, 77, 77)),
        (solid("L", 77), "gray.jpg", (77, 77, 77)),
        (solid("LA", (77, 255)), "gray-alpha.png", (77, 77, 77)),
        (solid("1", 1), "bits.png", (255, 255, 255)),
        (palette(), "palette.png", (200, 100, 50)),
        (palette(transparency=1), "palette-hole.png", (200, 100, 50)),
        (palette(transparency=b"\x00\x80"), "palette-alpha.png", (200, 100, 50)),
        (solid("RGBA", (200, 100, 50, 128)), "rgba.png", (200, 100, 50)),
        (solid("CMYK", (55, 155, 205, 0)), "cmyk.jpg", (200, 100, 50)),
        (solid("I;16", 0x8080), "16-bits.png", (128, 128, 128)),
        (solid("I;16", 0xFFFF), "16-bits.tif", (255, 255, 255)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_image_of_any_mode_is_read_as_rgb(image, file, color, tmp_path):
    image.save(tmp_path / file)

    pixels = read_image(str(tmp_path / file))

    assert pixels.dtype == torch.uint8
    assert pixels.shape == (3, 4, 6)
    expected = torch.tensor(color).view(3, 1, 1)
    assert (pixels - expected).abs().max() <= (4 if file.endswith(("jpg", "webp")) else 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{"progressive": True, "subsampling": 0}, {}])
def test_resized_jpeg_differs_by_one_level_at_most(mode, orientation, options, tmp_path):
    path = str(tmp_path / "turned.jpg")
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    blocks = Image.fromarray(NOISE).resize((96, 70), Image.Resampling.NEAREST)
    blocks.convert(mode).save(path, exif=exif, **options)

    quick, exact = read_resized(path, 40), resize(read_image(path)[None], 40)[0]

    assert quick.shape == exact.shape == (3, 40, 40)
    assert quick.dtype == exact.dtype
    assert (quick - exact).abs().max() < 1


def test_orientation_in_xmp_alone_is_applied(tmp_path):
    path = str(tmp_path / "turned.jpg")
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(NOISE).resize((96, 70), Image.Resampling.NEAREST).save(path, xmp=xmp)

    quick, exact = read_resized(path, 40), resize(read_image(path)[None], 40)[0]

    assert read_image(path).shape == (3, 96, 70)
    assert (quick - exact).abs().max() < 1


def test_jpeg_of_too_many_pixels_is_named(tmp_path, monkeypatch):
    path = tmp_path / "bomb.jpg"
    Image.fromarray(NOISE).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)

    with pytest.raises(MisconfigurationException, match=f"^{path} .*decompression bomb"):
        read_resized(str(path), 40)


@pytest.mark.parametrize("file", ["photo.png", "photo.webp"])
def test_resized_image_of_another_format_differs_by_one_level_at_most(file, tmp_path):
    Image.fromarray(NOISE).save(tmp_path / file)
    path = str(tmp_path / file)

    assert (read_resized(path, 40) - resize(read_image(path)[None], 40)[0]).abs().max() < 1


@pytest.mark.parametrize("length", [0, 3, 200, -2])
def test_broken_jpeg_raises_the_same_message_by_either_reader(length, tmp_path):
    path = tmp_path / "cut.jpg"
    Image.fromarray(NOISE).save(path)
    path.write_bytes(path.read_bytes()[:length])
    words = []
    for read in (read_image, lambda path: read_resized(path, 40)):
        with pytest.raises(MisconfigurationException, match="decode") as caught:
            read(str(path))
        words.append(str(caught.value))

    assert words[0] == words[1]


def test_16_bit_pixels_are_scaled_over_their_whole_range(tmp_path):
    values = np.array([[0, 128, 129, 257, 0x7FFF, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "ramp.png")

    assert read_image(str(tmp_path / "ramp.png"))[0].tolist() == [[0, 0, 1, 1, 127, 255]]


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, NOISE), (2, NOISE[:, ::-1]), (3, NOISE[::-1, ::-1]), (6, np.rot90(NOISE, -1))],
)
def test_exif_orientation_is_applied(orientation, turned, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(NOISE).save(tmp_path / "photo.png", exif=exif)

    assert read_image(str(tmp_path / "photo.png")).permute(1, 2, 0).numpy().tolist() == (
        turned.tolist()
    )


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("suffix", ["bmp", "jpg", "png", "ppm", "tif", "webp"])
@pytest.mark.parametrize("part", [0, 0.02, 0.5, 0.9])
def test_truncated_image_is_named(suffix, part, tmp_path):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(NOISE).save(path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])

    with pytest.raises(
        MisconfigurationException,
        # the form of this message
        match=f"^{path} does not decode as an image \\(.+\\); repair it or remove it\\b",
    ):
        read_image(str(path))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_as_pillow_does(orientation, suffix, tmp_path):
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(NOISE).save(path, exif=exif)

    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))

    for read in (read_image, read_quickly):
        assert np.array_equal(read(str(path)).permute(1, 2, 0), upright)


@pytest.mark.parametrize("tag_type", [TiffTags.SHORT, TiffTags.LONG])
def test_orientation_of_a_tiff_is_applied_in_either_type(tag_type, tmp_path):
    tags = ImageFileDirectory_v2()
    tags.tagtype[ORIENTATION] = tag_type
    tags[ORIENTATION] = 6
    path = tmp_path / "photo.tif"
    Image.fromarray(NOISE).save(path, tiffinfo=tags)

    pixels = read_image(str(path)).permute(1, 2, 0).numpy()

    assert np.array_equal(pixels, np.rot90(NOISE, -1))
