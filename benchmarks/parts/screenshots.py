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
    colors = sorted(image.getcolors(image.width * image.height), reverse=True)
    for count in _COLORS:
        palette = Image.new("P", (1, 1))
        # Areas of one color keep it, as those of a method that averages colors do not.
        palette.putpalette([value for _, color in colors[:count] for value in color])
        buffer = io.BytesIO()
        image.quantize(palette=palette, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= MAX_BYTES:
            return buffer.getvalue()
    raise ValueError(f"a picture has {buffer.tell():,} bytes (expected at most {MAX_BYTES:,})")
