"""Random numbers for augmentation, by seed, epoch and image alone where it has an index."""

import torch
from torch import Tensor


def draw(seed: int, epoch: int, index: Tensor, count: int, stream: int = 0) -> Tensor:
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


_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # as the signed integer that torch holds


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    z = (z ^ _shift(z, 27)) * (0x94D049BB133111EB - 2**64)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    # torch shifts arithmetically; SplitMix64 wants zeros from the left
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def random_draws(batch: int, device: torch.device) -> Tensor:
    """Ordinary draws of torch's own generator, int64 [batch, 3], for images with no index."""
    return torch.randint(2**31, (batch, 3), device=device)
