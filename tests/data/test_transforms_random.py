"""The random numbers behind augmentation: what they depend on, and that they are random."""

import pytest
import torch
from scipy.stats import chi2

from pyclassify.data.transforms import generate_integers

GOLDEN, MASK = 0x9E3779B97F4A7C15, 2**64 - 1
LARGEST_SEED = 2**32 - 1  # that seed_everything takes


def mix(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def splitmix64(state, skip, count):
    """SplitMix64 in Python's integers, as its authors have it in C: outputs after the first few."""
    return [mix(state + place * GOLDEN & MASK) for place in range(skip + 1, skip + count + 1)]


def test_reference_is_the_published_generator():
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]

    assert splitmix64(1234567, skip=0, count=3) == published


@pytest.mark.parametrize("seed", [0, 1, 1234567, LARGEST_SEED, 2**63 - 1])
@pytest.mark.parametrize("epoch", [0, 1, 2, 1_000_000])
def test_integers_are_splitmix64_of_seed_epoch_and_image(seed, epoch):
    index = torch.tensor([0, 1, 49_999, 2**40])

    numbers = generate_integers(seed, epoch, index, count=3)

    state = mix(mix(seed) + epoch * GOLDEN & MASK)
    expected = [splitmix64(state, skip=3 * i, count=3) for i in index.tolist()]
    assert numbers.tolist() == [[number % 2**31 for number in row] for row in expected]


def test_random_numbers_do_not_depend_on_order_or_batches():
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    together = generate_integers(5, 3, torch.arange(100), count=3)

    apart = torch.cat([generate_integers(5, 3, part, count=3) for part in order.split(7)])

    assert torch.equal(apart, together[order])


@pytest.mark.parametrize(("seed", "epoch"), [(1, 0), (0, 1)])
def test_another_seed_or_epoch_gives_other_integers(seed, epoch):
    index = torch.arange(1000)

    assert not (
        generate_integers(seed, epoch, index, count=3) == generate_integers(0, 0, index, count=3)
    ).any()


def test_seed_and_epoch_are_not_interchangeable():
    index = torch.arange(1000)

    assert not (
        generate_integers(1, 2, index, count=3) == generate_integers(2, 1, index, count=3)
    ).any()


@pytest.mark.parametrize("seed", [0, 1, LARGEST_SEED])
def test_crops_and_flips_are_uniform_and_independent(seed):
    """Pearson's chi-squared test of all 7 x 7 x 2 offsets and flips, over images and epochs."""
    numbers = torch.cat(
        [generate_integers(seed, epoch, torch.arange(7_000), count=3) for epoch in range(14)]
    )
    cells = numbers[:, 0] % 7 * 14 + numbers[:, 1] % 7 * 2 + numbers[:, 2] % 2

    observed = cells.bincount(minlength=98)

    expected = len(numbers) / 98  # 1000
    assert ((observed - expected) ** 2 / expected).sum() < chi2.ppf(0.999, df=97)


def test_neighboring_images_and_epochs_are_unrelated():
    """Correlation of neighbors, which is within 5 standard deviations for a true generator."""
    numbers = torch.stack(
        [generate_integers(0, epoch, torch.arange(1000), count=3) for epoch in range(30)]
    )
    numbers = numbers.double() - 2**30

    for dimension in range(3):  # epochs, images, numbers of an image
        count = numbers.shape[dimension] - 1
        one, other = numbers.narrow(dimension, 0, count), numbers.narrow(dimension, 1, count)
        correlation = (one * other).mean() / numbers.square().mean()
        assert correlation.abs() < 5 / one.numel() ** 0.5
