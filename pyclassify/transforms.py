"""Preprocessing: the one truth for training, evaluation and serving.

Images of sets in memory travel as bytes and become floats here, on the whole batch, on the device;
those of folders are resized by the same function where they are decoded. Pixels stay floats from
that resize on: rounding them back to bytes would make the two paths differ.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize(images: Tensor, size: int) -> Tensor:
    """Take the central square and scale it to `size` pixels.

    Bilinear with antialiasing, in float. The square is cut first, so that the output's size is
    known whatever the input's: `torch.export` takes it with dynamic sizes.

    Args:
        images: uint8 [batch, channels, height, width].
        size: The side of the square, in pixels.

    Returns:
        float [batch, channels, size, size], values 0 to 255.
    """
    height, width = images.shape[-2:]
    shorter = torch.sym_min(height, width)
    side = torch.arange(shorter, device=images.device)
    # Selecting instead of slicing: a slice's strides are a guard that export can't keep.
    images = images.index_select(-2, side + (height - shorter) // 2)
    images = images.index_select(-1, side + (width - shorter) // 2)
    return F.interpolate(
        images.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )


def center_crop(images: Tensor, size: int) -> Tensor:
    """Cut the central square of `size` pixels out of images [..., height, width]."""
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


def crop(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut a square out of each image at a place of its own and mirror those asked for.

    Args:
        images: float [batch, channels, height, width].
        top: The first row of each cut, int64 [batch].
        left: The first column of each cut, int64 [batch].
        flip: Which cuts to mirror left to right, bool [batch].
        size: The side of the square, in pixels.

    Returns:
        float [batch, channels, size, size].
    """
    batch, channels, _, width = images.shape
    side = torch.arange(size, device=images.device)
    rows = top[:, None] + side
    columns = left[:, None] + torch.where(flip[:, None], side.flip(0), side)
    # One gather over flattened pixels: 6 times faster than indexing by four broadcast tensors.
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, -1)
    cut = images.flatten(2).gather(2, pixels.expand(-1, channels, -1))
    return cut.view(batch, channels, size, size)


def draw(seed: int, epoch: int, index: Tensor, count: int) -> Tensor:
    """Draw random integers that depend on the seed, the epoch and the image alone.

    A counter-based generator (SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom
    number generators", OOPSLA 2014), so that neither the order of the images nor the number of
    workers or processes changes what an image gets.

    Args:
        seed: The run's seed.
        epoch: The epoch, from 0.
        index: Each image's place in its data set, int64 [batch].
        count: How many numbers each image gets.

    Returns:
        Uniform integers of 0 to 2^31 - 1, int64 [batch, count].
    """
    # Filled on the device, since copying a number to it would wait for all that runs there.
    key = _mix(torch.full((), seed, dtype=torch.int64, device=index.device))
    key = _mix(key + torch.full_like(key, epoch) * _GOLDEN)
    counter = index[:, None] * count + torch.arange(1, count + 1, device=index.device)
    return _mix(key + counter * _GOLDEN) & 0x7FFFFFFF


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as the signed integer that torch holds


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shift(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    # torch shifts arithmetically; SplitMix64 wants zeros from the left
    return (z >> bits) & ((1 << (64 - bits)) - 1)


class Preprocess(nn.Module):
    """From bytes to what a network takes: resize, crop, scale to 0..1 and normalise.

    Args:
        resize: The shorter side after the resize, in pixels.
        crop: The side of the square that is cut out, in pixels, at most `resize`.
        flip: Whether training mirrors half of the images.
        mean: The mean of each channel of the data, in 0..1.
        std: The standard deviation of each channel, likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        resize: int = 70,
        crop: int = 64,
        flip: bool = True,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        if not 1 <= crop <= resize:
            raise ValueError(
                f"crop is {crop} and resize is {resize}; crop takes 1 to resize pixels: "
                "lower crop or raise resize"
            )
        self.resize, self.crop, self.flip = resize, crop, flip
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Prepare a batch.

        Args:
            images: [batch, 1 or 3, height, width], values 0 to 255: uint8 of any size, or float
                that `resize` has made already; grey images become three equal channels.
            draws: For training, random integers of 0 to 2^31 - 1, int64 [batch, 3], that place
                the crop and decide the flip of each image; without them the crop is central.

        Returns:
            float [batch, 3, crop, crop], normalised.
        """
        if images.dtype == torch.uint8:
            images = resize(images, self.resize)
        if draws is None:
            images = center_crop(images, self.crop)
        else:
            places = self.resize - self.crop + 1
            flip = (draws[:, 2] % 2 == 1) & self.flip
            images = crop(images, draws[:, 0] % places, draws[:, 1] % places, flip, self.crop)
        return ((images - self.mean) / self.std).expand(-1, 3, -1, -1)


def random_draws(batch: int, device: torch.device) -> Tensor:
    """Ordinary draws of torch's own generator, int64 [batch, 3], for images with no index."""
    return torch.randint(2**31, (batch, 3), device=device)
