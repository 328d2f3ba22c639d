"""The pictures of README and docs: the files that pages embed, and the command that makes them."""

import io
import os
import re

import pytest
from PIL import Image

from benchmarks import pictures
from benchmarks.parts import screenshots, terminal
from benchmarks.pictures import PICTURES, ROOT
from tests.support.browser import find_chromium, visit
from tests.support.phrases import mentions

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EMBEDDED = {
    (page.relative_to(ROOT).as_posix(), (page.parent / path).resolve())
    for page in PAGES
    for path in re.findall(r"!\[[^\]]*\]\(([^)\s:]+)\)", page.read_text())
}


def encode(pixels):
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    return buffer.getvalue()


def test_pages_embed_the_pictures_of_the_command_and_no_others():
    made = {(page, ROOT / "docs" / f"{name}.png") for name, (page, _) in PICTURES.items()}

    assert made <= EMBEDDED  # another page may show the same picture
    assert {path for _, path in EMBEDDED} == {path for _, path in made}
    assert {path for _, path in made} == set((ROOT / "docs").glob("*.png"))


@pytest.mark.parametrize("name", PICTURES)
def test_picture_is_wide_enough_to_read_and_small(name):
    path = ROOT / "docs" / f"{name}.png"

    assert path.stat().st_size <= screenshots.MAX_BYTES
    assert Image.open(path).width >= screenshots.WIDTH


def test_shrunk_picture_keeps_its_size_and_its_few_colors():
    image = Image.new("RGB", (60, 40), (29, 36, 48))
    image.paste((215, 221, 230), (10, 10, 20, 20))

    shrunk = Image.open(io.BytesIO(screenshots.shrink(encode(image)))).convert("RGB")

    assert shrunk.size == image.size
    assert shrunk.tobytes() == image.tobytes()


def test_picture_that_stays_too_large_is_an_error():
    noise = Image.frombytes("RGB", (500, 500), os.urandom(3 * 500 * 500))

    with pytest.raises(ValueError, match="150,000"):
        screenshots.shrink(encode(noise))


def test_terminal_shows_commands_and_output_as_they_are():
    page = terminal.render_terminal([("echo '<b>'", "<b>\n\n"), ("true", "")])

    assert "<b>echo &#x27;&lt;b&gt;&#x27;</b>\n&lt;b&gt;\n\n<b>true</b>\n" in page


@pytest.mark.browser
def test_terminal_is_as_wide_as_a_page_of_github():
    find_chromium()
    with visit("", device_scale_factor=screenshots.SCALE) as visitor:
        png = pictures.take_terminal(visitor.page, [("pyclassify --version", "x" * 100)])

    picture = Image.open(io.BytesIO(png))
    assert abs(picture.width / screenshots.SCALE - screenshots.WIDTH) < 10
    assert len(screenshots.shrink(png)) < 20_000


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ("--only run walk", "'walk'"),
        ("--only curves", "--runs RUN_ID"),
        ("--data {folder}", "train/ and test/"),
    ],
)
def test_invalid_option_of_the_command_is_a_usage_error(options, phrase, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        pictures.main(options.format(folder=tmp_path).split())

    assert ended.value.code == 2
    assert mentions(capsys.readouterr().err, phrase)
