"""Preprocessing: the one truth for training, evaluation and serving.

Images of sets in memory travel as bytes and become floats here, on the whole batch, on the device;
those of folders are resized by the same functions where they are decoded. Where images are
classified, pixels stay floats from that resize on, so that whoever resizes them they are the same.
Training, which changes them anyway, rounds them back on a CPU, which is much faster.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# How bright red, green and blue look (ITU-R BT.601), by which grey is made of them.
_LUMA = (0.299, 0.587, 0.114)
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as the signed integer that torch holds


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


def resize_rounded(images: Tensor, size: int) -> Tensor:
    """Do as `resize`, on a CPU in a fraction of the time: pixels are rounded to whole numbers.

    Args:
        images: uint8 [batch, channels, height, width].
        size: The side of the square, in pixels.

    Returns:
        float [batch, channels, size, size], about one of 256 levels off `resize` at most.
    """
    if images.device.type != "cpu":  # where torch takes no bytes
        return resize(images, size)
    square = center_crop(images, min(images.shape[-2:]))
    if square.shape[-1] != size:
        # Of pixels whose channels are side by side torch makes bytes of bytes, as Pillow does.
        square = F.interpolate(
            square.contiguous(memory_format=torch.channels_last),
            size=(size, size),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
    return square.float().contiguous()


def center_crop(images: Tensor, size: int) -> Tensor:
    """Cut the central square of `size` pixels out of images [..., height, width]."""
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


class Preprocess(nn.Module):
    """From bytes to what a network takes: resize, crop, scale to 0..1 and normalise.

    Args:
        resize: The shorter side after the resize, in pixels.
        crop: The side of the square that is cut out, in pixels, at most `resize`.
        flip: Whether training mirrors half of the images.
        mean: The mean of each channel of the data, in 0..1.
        std: The standard deviation of each channel, likewise.
        pad: How far a crop in training may reach beyond the image, in pixels; what it finds there
            is the image mirrored at its edge.
        erase: The side of the square that training erases in each image, in pixels.
        color: By how much training changes brightness, contrast and saturation at most, 0 to 1.
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
        pad: int = 0,
        erase: int = 0,
        color: float = 0.0,
    ) -> None:
        super().__init__()
        if not 1 <= crop <= resize:
            raise ValueError(
                f"crop is {crop} and resize is {resize}; crop takes 1 to resize pixels: "
                "lower crop or raise resize"
            )
        if not (0 <= pad < resize and 0 <= erase <= crop and 0 <= color <= 1):
            raise ValueError(
                f"pad is {pad}, erase {erase} and color {color}; give 0 or more pixels of pad and "
                f"fewer than resize ({resize}), of erase at most crop ({crop}), and 0 to 1 of color"
            )
        self.resize, self.crop, self.flip = resize, crop, flip
        self.pad, self.erase, self.color = pad, erase, color
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)

    def generate_random_numbers(self, seed: int, epoch: int, index: Tensor) -> Tensor:
        """Draw what `forward` takes, by the seed, the epoch and the image alone.

        Args:
            seed: The run's seed.
            epoch: The epoch, from 0.
            index: Each image's place in its data set, int64 [batch].
        """
        draws = generate_integers(seed, epoch, index, count=3)
        if not (self.erase or self.color):
            return draws
        # A stream of their own, so that crops and flips are what they are without these.
        return torch.cat([draws, generate_integers(seed, epoch, index, count=5, stream=1)], dim=1)

    def forward(self, images: Tensor, draws: Tensor | None = None) -> Tensor:
        """Prepare a batch.

        Args:
            images: [batch, 1 or 3, height, width], values 0 to 255: uint8 of any size, or float
                that `resize` has made already; grey images become three equal channels.
            draws: For training, random integers of 0 to 2^31 - 1, int64 [batch, 3], that place
                the crop and decide the flip of each image; without them the crop is central.
                Five more, [batch, 8], place what is erased and change the colours.

        Returns:
            float [batch, 3, crop, crop], normalised.
        """
        scale = resize if draws is None else resize_rounded
        if images.dtype == torch.uint8:
            images = scale(images, self.resize)
        if draws is None:
            return self._normalise(center_crop(images, self.crop))
        images = self._normalise(self._augment(images, draws))
        if self.erase:
            images = cut_out(
                images, *_split_offsets(draws[:, 3:5], self.crop, self.erase), self.erase
            )
        return images

    def _normalise(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).expand(-1, 3, -1, -1)

    def _augment(self, images: Tensor, draws: Tensor) -> Tensor:
        top, left = _split_offsets(draws[:, :2], self.resize + 2 * self.pad, self.crop)
        flip = (draws[:, 2] % 2 == 1) & self.flip
        images = crop_and_flip(images, top - self.pad, left - self.pad, flip, self.crop)
        if self.color:
            factors = 1 + self.color * (draws[:, 5:8].to(images.dtype) / 2**30 - 1)
            images = jitter_colors(images, factors)
        return images


def _split_offsets(draws: Tensor, side: int, cut: int) -> tuple[Tensor, Tensor]:
    """The first row and column of a cut out of each image of that side, each int64 [batch]."""
    return draws[:, 0] % (side - cut + 1), draws[:, 1] % (side - cut + 1)


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int) -> Tensor:
    """Cut a square out of each image at a place of its own and mirror those asked for.

    Args:
        images: float [batch, channels, height, width].
        top: The first row of each cut, int64 [batch]; what lies outside of the image, by less than
            its height, is the image mirrored at its edge.
        left: The first column of each cut, likewise.
        flip: Which cuts to mirror left to right, bool [batch].
        size: The side of the square, in pixels.

    Returns:
        float [batch, channels, size, size].
    """
    batch, channels, height, width = images.shape
    side = torch.arange(size, device=images.device)
    rows = _reflect(top[:, None] + side, height)
    columns = _reflect(left[:, None] + torch.where(flip[:, None], side.flip(0), side), width)
    # One gather over flattened pixels: 6 times faster than indexing by four broadcast tensors.
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, -1)
    cut = images.flatten(2).gather(2, pixels.expand(-1, channels, -1))
    return cut.view(batch, channels, size, size)


def _reflect(places: Tensor, size: int) -> Tensor:
    last = size - 1
    return last - (last - places.abs()).abs()


def cut_out(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Set a square in each image to 0, which is the mean once images are normalised.

    That is cutout (DeVries and Taylor, "Improved regularization of convolutional neural networks
    with cutout", arXiv:1708.04552), but with the whole of the square in the image.

    Args:
        images: float [batch, channels, height, width].
        top: The first row of each square, int64 [batch].
        left: The first column of each square, int64 [batch].
        size: The side of the square, in pixels.

    Returns:
        The same shape.
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - top[:, None]
    columns = torch.arange(width, device=images.device) - left[:, None]
    rows, columns = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return images.masked_fill(inside, 0)


def jitter_colors(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and saturation, in this order.

    As torchvision's ColorJitter does, but each image by factors of its own, on the whole batch.

    Args:
        images: float [batch, 1 or 3, height, width], values 0 to 255.
        factors: float [batch, 3], of 1 each to leave an image as it is.

    Returns:
        The same shape, values 0 to 255.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp_(0, 255)
    middle = _to_grayscale(images).mean(dim=(2, 3), keepdim=True)
    images = torch.lerp(middle, images, contrast).clamp_(0, 255)
    return torch.lerp(_to_grayscale(images), images, saturation).clamp_(0, 255)


def _to_grayscale(images: Tensor) -> Tensor:
    """float [batch, 1, height, width]; an image of one channel as it is."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, each, None] for each in range(3))
    grey: Tensor = red * _LUMA[0]
    return grey.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def generate_integers(seed: int, epoch: int, index: Tensor, count: int, stream: int = 0) -> Tensor:
    """Draw random integers that depend on the seed, the epoch and the image alone.

    A counter-based generator (SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom
    number generators", OOPSLA 2014), so that neither the order of the images nor the number of
    workers or processes changes what an image gets.

    Args:
        seed: The run's seed.
        epoch: The epoch, from 0.
        index: Each image's place in its data set, int64 [batch].
        count: How many numbers each image gets.
        stream: Numbers of another one, from 0, are others, and unrelated.

    Returns:
        Uniform integers of 0 to 2^31 - 1, int64 [batch, count].
    """
    # Filled on the device, since copying a number to it would wait for all that runs there.
    # A stream is told by the bits above those of a seed that seed_everything takes.
    start = seed ^ (stream << 32)
    key = _mix(torch.full((), start, dtype=torch.int64, device=index.device))
    key = _mix(key + torch.full_like(key, epoch) * _GOLDEN)
    counter = index[:, None] * count + torch.arange(1, count + 1, device=index.device)
    return _mix(key + counter * _GOLDEN) & 0x7FFFFFFF


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shift_right(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch shifts arithmetically; SplitMix64 wants zeros from the left
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def generate_unseeded_integers(batch: int, device: torch.device) -> Tensor:
    """Ordinary draws of torch's own generator, int64 [batch, 3], for images with no index."""
    return torch.randint(2**31, (batch, 3), device=device)
