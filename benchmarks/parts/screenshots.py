"""Screenshots that fit into a page of GitHub: 880 pixels wide there, twice as sharp, and small."""

import io

from PIL import Image

WIDTH = 880  # of a README on GitHub, in its pixels
SCALE = 2  # pixels of a picture for each of a page
MAX_BYTES = 150_000
_COLORS = (256, 128, 64, 32)


def shrink(png):
    """Encode a picture with as many colors as MAX_BYTES allows.

    Raises:
        ValueError: It is too large even with the fewest colors.
    """
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for count in _COLORS:
        buffer = io.BytesIO()
        # Without dithering areas of one color stay so, which compresses well.
        reduced = image.quantize(count, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        reduced.save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
    raise ValueError(f"a picture has {buffer.tell():,} bytes (expected at most {MAX_BYTES:,})")
