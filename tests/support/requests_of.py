"""Images as a request to the served model holds them."""

import base64
import io

from PIL import Image


def encode(content):
    return base64.b64encode(content).decode()


def file_of(image, kind="PNG", **options):
    """A picture, or pixels uint8 [height, width, 3], as a file's bytes."""
    content = io.BytesIO()
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    image.save(content, kind, **options)
    return content.getvalue()


def raw(pixels, shape=None):
    """Pixels, uint8 of any shape, as a data URI that tells it."""
    shape = shape or "x".join(map(str, pixels.shape))
    return f"data:application/octet-stream;shape={shape};base64,{encode(pixels.tobytes())}"
