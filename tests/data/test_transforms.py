"""Preprocessing: resize, crop, flip and normalization."""

import pytest
import torch
from torch.export import Dim, export
from torchvision.transforms.v2 import functional as reference

from pyclassify.data.transforms import (
    Preprocess,
    center_crop,
    crop_and_flip,
    generate_global_integers,
    generate_integers,
    resize,
    resize_rounded,
)

# One that is smaller than the output, a square one, a wide one, a tall one.
SIZES = [(20, 24), (32, 32), (50, 200), (131, 77)]


def images_of(height, width, batch=2, channels=3):
    generator = torch.Generator().manual_seed(height * width)
    shape = (batch, channels, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def numbered(side):
    """An image whose pixels are their own indices, as `resize` returns it: float."""
    return torch.arange(side**2, dtype=torch.float32).view(1, 1, side, side)


def measure_crops(preprocess, numbers):
    """Return the first row and column of each crop, and whether it is flipped."""
    side = preprocess.resize
    crops = preprocess(numbered(side).expand(len(numbers), -1, -1, -1), numbers)
    crops = (crops[:, 0] * preprocess.std[0] + preprocess.mean[0]).round().long()
    corner = torch.minimum(crops[:, 0, 0], crops[:, 0, -1])
    return corner // side, corner % side, crops[:, 0, 0] > crops[:, 0, -1]


@pytest.mark.parametrize("size", SIZES)
def test_resize_equals_torchvisions_antialiased_resize_of_the_central_square(size):
    images = images_of(*size)
    square = reference.center_crop(images.float(), [min(size)])

    resized = resize(images, 30)

    expected = reference.resize(square, [30, 30], antialias=True)
    torch.testing.assert_close(resized, expected)


def test_resized_pixels_stay_floats():
    resized = resize(images_of(50, 201), 30)

    assert resized.dtype == torch.float32
    assert (resized != resized.round()).float().mean() > 0.9


def test_center_crop_of_an_odd_margin_is_a_pixel_nearer_the_top():
    images = images_of(35, 32)

    assert torch.equal(resize(images, 32), images[:, :, 1:33].float())


@pytest.fixture(scope="module")
def exported():
    """Preprocessing as it is served, exported from one size for all."""
    dynamic = {"images": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    return export(Preprocess(30, 24), (images_of(40, 50),), dynamic_shapes=dynamic).module()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [2, 5])
def test_exported_preprocessing_accepts_other_sizes_and_batches(exported, size, batch):
    images = images_of(*size, batch=batch)

    torch.testing.assert_close(exported(images), Preprocess(30, 24)(images))


def test_crop_and_flip_applies_the_offsets_and_flips():
    images = images_of(9, 11).float()
    top, left, flip = torch.tensor([0, 2]), torch.tensor([4, 1]), torch.tensor([False, True])

    cut = crop_and_flip(images, top, left, flip, size=7)

    assert torch.equal(cut[0], images[0, :, 0:7, 4:11])
    assert torch.equal(cut[1], images[1, :, 2:9, 1:8].flip(-1))


def test_crop_and_flip_are_separate_for_each_image():
    top, left, flip = measure_crops(
        Preprocess(10, 4), generate_integers(0, 0, torch.arange(500), count=3)
    )

    assert len(torch.stack([top, left, flip]).unique(dim=1).T) > 90  # of 7 * 7 * 2


def test_crops_reach_from_edge_to_edge_and_half_are_flipped():
    top, left, flip = measure_crops(
        Preprocess(10, 4), generate_integers(0, 0, torch.arange(2000), count=3)
    )

    assert top.unique().tolist() == left.unique().tolist() == list(range(7))
    assert 0.45 < flip.float().mean() < 0.55


def test_flip_off_flips_nothing():
    *_, flip = measure_crops(
        Preprocess(10, 4, horizontal_flip=False),
        generate_integers(0, 0, torch.arange(100), count=3),
    )

    assert not flip.any()


def test_crop_is_central_without_random_numbers():
    images = images_of(70, 70)
    expected = center_crop(resize(images, 70), 64) / 255 * 2 - 1

    torch.testing.assert_close(Preprocess(70, 64)(images), expected)
    assert torch.equal(center_crop(images, 64), images[:, :, 3:67, 3:67])


def test_each_channel_is_normalized_by_its_mean_and_std():
    mean, std = (0.1, 0.5, 0.9), (0.2, 0.3, 0.4)
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(-1, -1, 8, 8)

    prepared = Preprocess(8, 8, mean=mean, std=std)(images)

    expected = torch.tensor([-0.1 / 0.2, (0.2 - 0.5) / 0.3, 0.1 / 0.4])
    torch.testing.assert_close(prepared, expected.view(1, 3, 1, 1).expand(-1, -1, 8, 8))


@pytest.mark.parametrize("numbers", [None, torch.tensor([[1, 2, 3], [4, 5, 6]])])
def test_grayscale_images_become_three_channels(numbers):
    prepared = Preprocess(30, 24)(images_of(28, 28, channels=1), numbers)

    assert prepared.shape == (2, 3, 24, 24)
    assert torch.equal(prepared[:, 0], prepared[:, 1])
    assert torch.equal(prepared[:, 0], prepared[:, 2])


@pytest.mark.parametrize("numbers", [None, torch.tensor([[1, 2, 3], [4, 5, 6]])])
def test_resized_images_are_not_resized_again(numbers):
    images, preprocess = images_of(50, 41), Preprocess(30, 24)
    scaled = resize(images, 30) if numbers is None else resize_rounded(images, 30)

    assert torch.equal(preprocess(scaled, numbers), preprocess(images, numbers))


def test_unseeded_integers_differ_between_images_and_calls():
    one, other = (generate_global_integers(100, torch.device("cpu")) for _ in range(2))

    assert one.shape == (100, 3)
    assert one.min() >= 0
    assert one.max() < 2**31
    assert len(torch.cat([one, other]).unique()) > 590


@pytest.mark.parametrize(("size", "cut"), [(30, 31), (30, 0)])
def test_crop_larger_than_resize_is_an_error(size, cut):
    expected = rf"^invalid crop: {cut} \(expected 1 <= crop <= resize, which is {size}\)$"
    with pytest.raises(ValueError, match=expected):
        Preprocess(size, cut)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 70, 90), (3, 64, 64)])
def test_resize_rounded_gives_nearly_the_same_pixels(shape):
    images = torch.randint(256, (2, *shape), dtype=torch.uint8)

    quick = resize_rounded(images, 64)

    assert quick.dtype == torch.float32
    assert torch.equal(quick, quick.round())
    torch.testing.assert_close(quick, resize(images, 64), atol=1.1, rtol=0)
