"""Generate a synthetic data set of ten shapes, for a machine without network."""

from collections.abc import Callable

import torch
from torch import Tensor

_SIZE = 32  # pixels

# The signed distance of each pixel from a shape, positive outside: of coordinates x and y
# [n, _SIZE, _SIZE] with the center of the shape at 0 (y down) and its radius [n, 1, 1], in pixels.
_Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


def _disc(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return torch.hypot(x, y) - radius


def _triangle(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    slope = (2 * x.abs() - y - radius) / 5**0.5
    return torch.maximum(slope, y - 0.7 * radius)


def _plus(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    long, short = torch.maximum(x.abs(), y.abs()), torch.minimum(x.abs(), y.abs())
    return torch.maximum(long - radius, short - 0.3 * radius)


def _saltire(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    return _plus((x + y) / 2**0.5, (x - y) / 2**0.5, radius)


def _stripes(along: Tensor, radius: Tensor) -> Tensor:
    period = 0.8 * radius
    return (along.remainder(period) - period / 2).abs() - period / 4


def _dots(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    period = 0.9 * radius
    middle = period / 2
    return torch.hypot(x.remainder(period) - middle, y.remainder(period) - middle) - period / 3


def _checkers(x: Tensor, y: Tensor, radius: Tensor) -> Tensor:
    across, down = _stripes(x, radius), _stripes(y, radius)
    return torch.maximum(torch.minimum(across, down), -torch.maximum(across, down))


def _outline(outside: Tensor, radius: Tensor) -> Tensor:
    return (outside + 0.15 * radius).abs() - 0.15 * radius


_SHAPES: dict[str, _Distance] = {
    "disc": _disc,
    "ring": lambda x, y, radius: _outline(_disc(x, y, radius), radius),
    "triangle": _triangle,
    "hollow triangle": lambda x, y, radius: _outline(_triangle(x, y, radius), radius),
    "plus": _plus,
    "saltire": _saltire,
    "horizontal stripes": lambda x, y, radius: _stripes(y, radius),
    "vertical stripes": lambda x, y, radius: _stripes(x, radius),
    "checkers": _checkers,
    "dots": _dots,
}
CLASSES = list(_SHAPES)


def generate_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Generate noisy images of shapes with random position, size, rotation and colors.

    The shape is lighter or darker than the background at random, so that no single pixel predicts
    the class.

    Args:
        count: The number of images; labels cycle through `CLASSES`.
        seed: The seed of all random numbers.

    Returns:
        Images, uint8 [count, 3, 32, 32], and labels, int64 [count].
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    labels = torch.arange(count) % len(_SHAPES)
    radius = uniform(9, 14, 1, 1)
    angle = uniform(-0.2, 0.2, 1, 1)  # radians
    center = torch.arange(_SIZE) - (_SIZE - 1) / 2
    columns, rows = center - uniform(-3, 3, 1, 1), center[:, None] - uniform(-3, 3, 1, 1)
    x = columns * angle.cos() + rows * angle.sin()
    y = rows * angle.cos() - columns * angle.sin()

    outside = torch.empty(count, _SIZE, _SIZE)
    for label, distance in enumerate(_SHAPES.values()):
        mask = labels == label
        outside[mask] = distance(x[mask], y[mask], radius[mask])
    coverage = (0.5 - outside).clamp(0, 1)[:, None]

    background = uniform(0, 255, 3, 1, 1)
    contrast = uniform(80, 140, 3, 1, 1) * torch.where(background < 127.5, 1, -1)
    noise = torch.randn(count, 3, _SIZE, _SIZE, generator=generator) * 12
    images = background + contrast * coverage + noise
    return images.round().clamp(0, 255).to(torch.uint8), labels
