"""Preprocess and augment images: one implementation for training, evaluation and serving.

Images in memory move to the device as bytes, and are preprocessed there as a batch. Images of
folders are resized by the same functions in the workers that decode them. Evaluation and serving
resize in floats, so that pixels are identical on every device. Training on a CPU resizes bytes,
which is much faster and changes pixels less than augmentation does.

The random numbers of augmentation depend only on the seed of the run, the epoch and the image
(per-sample seeds): neither the order of the images nor the number of workers or processes changes
them.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in grayscale (ITU-R BT.601)
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as a signed integer, which torch's int64 is


def resize(images: Tensor, size: int) -> Tensor:
    """Crop the central square and resize it in floats, bilinear with antialiasing.

    The crop comes first, so that the size of the output does not depend on the size of the input:
    `torch.export` accepts the function with dynamic sizes.

    Args:
        images: uint8 [batch, channels, height, width].
        size: The side of the square, in pixels.

    Returns:
        float [batch, channels, size, size], values 0 to 255.
    """
    height, width = images.shape[-2:]
    shorter = torch.sym_min(height, width)
    side = torch.arange(shorter, device=images.device)
    # Slicing adds a guard on strides that torch.export rejects; index_select adds none.
    images = images.index_select(-2, side + (height - shorter) // 2)
    images = images.index_select(-1, side + (width - shorter) // 2)
    return F.interpolate(
        images.float(), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )


def resize_rounded(images: Tensor, size: int) -> Tensor:
    """Crop and resize like `resize`, but on a CPU in bytes, which is much faster.

    Args:
        images: uint8 [batch, channels, height, width].
        size: The side of the square, in pixels.

    Returns:
        float [batch, channels, size, size]: whole numbers on a CPU, which differ from the pixels of
        `resize` by at most about one of 256 levels.
    """
    if images.device.type != "cpu":  # torch interpolates bytes only on a CPU
        return resize(images, size)
    square = center_crop(images, min(images.shape[-2:]))
    if square.shape[-1] != size:
        # In channels-last format torch interpolates bytes without floats, as Pillow does.
        square = F.interpolate(
            square.contiguous(memory_format=torch.channels_last),
            size=(size, size),
            mode="bilinear",
            antialias=True,
            align_corners=False,
        )
    return square.float().contiguous()


def center_crop(images: Tensor, size: int) -> Tensor:
    """Crop the central square of `size` pixels from images [..., height, width]."""
    top, left = (images.shape[-2] - size) // 2, (images.shape[-1] - size) // 2
    return images[..., top : top + size, left : left + size]


class Preprocess(nn.Module):
    """Preprocess images for the network: resize, crop and normalize; in training, augment.

    Augmentation is a random crop, with padding if given, a horizontal flip, cutout and color
    jitter.

    Args:
        resize: The side of the square that images are resized to, in pixels.
        crop: The side of the square that is cropped from the resized image, in pixels, at most
            `resize`. The crop is random in training, and central otherwise.
        horizontal_flip: Whether training flips each image horizontally with a probability of 0.5.
        mean: The mean of each channel, in 0..1, that normalization subtracts.
        std: The standard deviation of each channel, in 0..1, that normalization divides by.
        random_crop_padding: The width of the reflection padding around an image before the random
            crop of training, in pixels, less than `resize`; 0 turns it off.
        cutout: The side of the random square that training sets to the mean, in pixels, at most
            `crop`; 0 turns it off.
        color_jitter: The maximum relative change of brightness, contrast and saturation in
            training, 0 to 1; 0 turns it off.

    Raises:
        ValueError: `crop`, `random_crop_padding`, `cutout` or `color_jitter` is out of range.

    Attributes:
        settings: `resize`, `crop`, `mean` and `std`, which an evaluation needs.

    Example:
        >>> import torch
        >>> from pyclassify import Preprocess
        >>> preprocess = Preprocess(resize=32, crop=32, random_crop_padding=4)
        >>> images = torch.zeros(2, 3, 48, 64, dtype=torch.uint8)
        >>> numbers = preprocess.generate_random_numbers(seed=1, epoch=0, index=torch.arange(2))
        >>> preprocess(images, numbers).shape
        torch.Size([2, 3, 32, 32])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        resize: int = 70,
        crop: int = 64,
        horizontal_flip: bool = True,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        random_crop_padding: int = 0,
        cutout: int = 0,
        color_jitter: float = 0.0,
    ) -> None:
        super().__init__()
        _check("crop", crop, 1 <= crop <= resize, f"1 <= crop <= resize, which is {resize}")
        _check(
            "random_crop_padding",
            random_crop_padding,
            0 <= random_crop_padding < resize,
            f"0 <= random_crop_padding < resize, which is {resize}",
        )
        _check("cutout", cutout, 0 <= cutout <= crop, f"0 <= cutout <= crop, which is {crop}")
        _check("color_jitter", color_jitter, 0 <= color_jitter <= 1, "0 <= color_jitter <= 1")
        self.resize, self.crop = resize, crop
        self.settings: dict[str, Any] = {
            "resize": resize,
            "crop": crop,
            "mean": [*mean],
            "std": [*std],
        }
        self.horizontal_flip, self.random_crop_padding = horizontal_flip, random_crop_padding
        self.cutout, self.color_jitter = cutout, color_jitter
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1) * 255, persistent=False)

    def generate_random_numbers(self, seed: int, epoch: int, index: Tensor) -> Tensor:
        """Generate the random numbers that augment a batch.

        Args:
            seed: The seed of the run.
            epoch: The epoch, from 0.
            index: The index of each image in its data set, int64 [batch].

        Returns:
            Integers of 0 to 2^31 - 1, int64 [batch, 3 or 8], for `forward`.
        """
        numbers = generate_integers(seed, epoch, index, count=3)
        if not (self.cutout or self.color_jitter):
            return numbers
        # A separate stream, so that crops and flips do not depend on cutout and color jitter.
        more = generate_integers(seed, epoch, index, count=5, stream=1)
        return torch.cat([numbers, more], dim=1)

    def forward(self, images: Tensor, random_numbers: Tensor | None = None) -> Tensor:
        """Preprocess a batch.

        Args:
            images: [batch, 1 or 3, height, width], values 0 to 255: uint8 of any size, or the
                floats that `resize` returned. Grayscale images become three equal channels.
            random_numbers: For training, integers of 0 to 2^31 - 1, int64 [batch, 3]: the row and
                column of the crop, and the flip. With cutout or color jitter, int64 [batch, 8]:
                also the row and column of the cutout, brightness, contrast and saturation. For
                evaluation, None: a central crop and no augmentation.

        Returns:
            float [batch, 3, crop, crop], normalized.
        """
        if images.dtype == torch.uint8:
            scale = resize if random_numbers is None else resize_rounded
            images = scale(images, self.resize)
        if random_numbers is None:
            return self._normalize(center_crop(images, self.crop))
        images = self._normalize(self._augment(images, random_numbers))
        if self.cutout:
            top, left = _compute_offsets(random_numbers[:, 3:5], self.crop, self.cutout)
            images = _cut_out(images, top, left, self.cutout)
        return images

    def _normalize(self, images: Tensor) -> Tensor:
        return ((images - self.mean) / self.std).expand(-1, 3, -1, -1)

    def _augment(self, images: Tensor, random_numbers: Tensor) -> Tensor:
        padding = self.random_crop_padding
        top, left = _compute_offsets(random_numbers[:, :2], self.resize + 2 * padding, self.crop)
        flip = (random_numbers[:, 2] % 2 == 1) & self.horizontal_flip
        images = crop_and_flip(images, top - padding, left - padding, flip, self.crop)
        if self.color_jitter:
            factors = 1 + self.color_jitter * (random_numbers[:, 5:8].to(images.dtype) / 2**30 - 1)
            images = jitter_colors(images, factors)
        return images


def _check(name: str, value: float, is_valid: bool, expected: str) -> None:
    if not is_valid:
        raise ValueError(f"invalid {name}: {value} (expected {expected})")


def _compute_offsets(random_numbers: Tensor, side: int, size: int) -> tuple[Tensor, Tensor]:
    """Compute the first row and column of a square in each image, each int64 [batch]."""
    choices = side - size + 1
    return random_numbers[:, 0] % choices, random_numbers[:, 1] % choices


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop a square from each image at its own offset, and flip some of them horizontally.

    A crop may extend beyond the image by less than the size of the image; pixels are reflected at
    its edge.

    Args:
        images: float [batch, channels, height, width].
        top: The first row of each crop, int64 [batch]; negative above the image.
        left: The first column of each crop, int64 [batch]; negative left of the image.
        flip: Which crops to flip horizontally, bool [batch].
        size: The side of the square, in pixels.

    Returns:
        float [batch, channels, size, size].
    """
    batch, channels, height, width = images.shape
    side = torch.arange(size, device=images.device)
    rows = _reflect(top[:, None] + side, height)
    columns = _reflect(left[:, None] + torch.where(flip[:, None], side.flip(0), side), width)
    # One gather over flattened pixels is 6 times as fast as indexing by four broadcast tensors.
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, -1)
    crops = images.flatten(2).gather(2, pixels.expand(-1, channels, -1))
    return crops.view(batch, channels, size, size)


def _reflect(indices: Tensor, size: int) -> Tensor:
    last = size - 1
    return last - (last - indices.abs()).abs()


def _cut_out(images: Tensor, top: Tensor, left: Tensor, size: int) -> Tensor:
    """Set a square in each image to 0, the mean of normalized images (cutout).

    DeVries and Taylor, "Improved regularization of convolutional neural networks with cutout",
    arXiv:1708.04552. Here the whole square is inside the image.

    Args:
        images: float [batch, channels, height, width].
        top: The first row of each square, int64 [batch].
        left: The first column of each square, int64 [batch].
        size: The side of the square, in pixels.

    Returns:
        float [batch, channels, height, width].
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device) - top[:, None]
    columns = torch.arange(width, device=images.device) - left[:, None]
    rows, columns = (rows >= 0) & (rows < size), (columns >= 0) & (columns < size)
    inside = rows[:, None, :, None] & columns[:, None, None, :]
    return images.masked_fill(inside, 0)


def jitter_colors(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, contrast and saturation of each image, in this order.

    Like torchvision's ColorJitter, but on a batch with separate factors for each image.

    Args:
        images: float [batch, 1 or 3, height, width], values 0 to 255.
        factors: float [batch, 3]; 1 changes nothing.

    Returns:
        float [batch, 1 or 3, height, width], values 0 to 255.
    """
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    images = (images * brightness).clamp_(0, 255)
    mean = _to_grayscale(images).mean(dim=(2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast).clamp_(0, 255)
    return torch.lerp(_to_grayscale(images), images, saturation).clamp_(0, 255)


def _to_grayscale(images: Tensor) -> Tensor:
    """Convert to float [batch, 1, height, width]; images of one channel stay as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = (images[:, channel, None] for channel in range(3))
    grayscale: Tensor = red * _LUMA[0]
    return grayscale.add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def generate_integers(seed: int, epoch: int, index: Tensor, count: int, stream: int = 0) -> Tensor:
    """Generate random integers that depend only on the seed, the epoch and the image.

    A counter-based generator: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
    number generators", OOPSLA 2014).

    Args:
        seed: The seed of the run.
        epoch: The epoch, from 0.
        index: The index of each image in its data set, int64 [batch].
        count: The number of integers for each image.
        stream: Selects one of several independent sequences, from 0.

    Returns:
        Uniform integers of 0 to 2^31 - 1, int64 [batch, count].
    """
    # The stream uses the bits above the 32 bits of a seed that seed_everything accepts.
    start = seed ^ (stream << 32)
    # Filled on the device: copying a number to the device would wait for the work queued there.
    key = _mix(torch.full((), start, dtype=torch.int64, device=index.device))
    key = _mix(key + torch.full_like(key, epoch) * _GOLDEN)
    counter = index[:, None] * count + torch.arange(1, count + 1, device=index.device)
    return _mix(key + counter * _GOLDEN) & 0x7FFFFFFF


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shift_right(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch shifts arithmetically; SplitMix64 shifts zeros in.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def generate_global_integers(batch: int, device: torch.device) -> Tensor:
    """Generate int64 [batch, 3] with torch's global generator, for images without an index."""
    return torch.randint(2**31, (batch, 3), device=device)
