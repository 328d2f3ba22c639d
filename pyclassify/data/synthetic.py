"""Images of ten drawn shapes: something real to learn on a machine with no network."""

from collections.abc import Callable

import torch
from torch import Tensor

IMAGE_SIZE = 32

# Each tells, from coordinates [n, SIDE, SIDE] with the shape's middle at 0 (y down) and its
# radius [n, 1, 1], all in pixels, how far outside the shape a pixel lies; negative inside.
Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


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


SHAPES: dict[str, Distance] = {
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
CLASSES = list(SHAPES)


def generate_images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw shapes of random place, size, tilt and colours, with noise over all.

    Either of shape and ground may be the lighter, so that no pixel tells the class by itself.

    Args:
        count: How many images; the classes take turns.
        seed: Decides the drawings.

    Returns:
        Images, uint8 [count, 3, SIDE, SIDE], and labels, int64 [count].
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    labels = torch.arange(count) % len(SHAPES)
    radius = uniform(9, 14, 1, 1)
    tilt = uniform(-0.2, 0.2, 1, 1)  # radians
    middle = torch.arange(IMAGE_SIZE) - (IMAGE_SIZE - 1) / 2
    across, down = middle - uniform(-3, 3, 1, 1), middle[:, None] - uniform(-3, 3, 1, 1)
    x = across * tilt.cos() + down * tilt.sin()
    y = down * tilt.cos() - across * tilt.sin()

    outside = torch.empty(count, IMAGE_SIZE, IMAGE_SIZE)
    for label, distance in enumerate(SHAPES.values()):
        these = labels == label
        outside[these] = distance(x[these], y[these], radius[these])
    coverage = (0.5 - outside).clamp(0, 1)[:, None]

    ground = uniform(0, 255, 3, 1, 1)
    contrast = uniform(80, 140, 3, 1, 1) * torch.where(ground < 127.5, 1, -1)
    noise = torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator) * 12
    images = ground + contrast * coverage + noise
    return images.round().clamp(0, 255).to(torch.uint8), labels
