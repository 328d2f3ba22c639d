"""Cutout, color jitter and padded crops, and what their random numbers depend on."""

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from pyclassify.data import transforms
from pyclassify.data.datasets import ImageTensors
from pyclassify.data.loaders import ImageDataModule
from pyclassify.data.transforms import Preprocess, generate_integers
from pyclassify.module import Classifier
from tests.support import networks

STRONG = {"random_crop_padding": 4, "cutout": 8, "color_jitter": 0.3}


def bytes_of(count, channels=3, side=32):
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, side, side)
    return torch.randint(1, 255, shape, dtype=torch.uint8, generator=generator)


def prepare(images, index, seed=0, epoch=0, **options):
    preprocess = Preprocess(32, 32, **{**STRONG, **options})
    return preprocess(images, preprocess.generate_random_numbers(seed, epoch, index))


def test_random_numbers_do_not_depend_on_order_or_batches():
    images, order = bytes_of(40), torch.randperm(40, generator=torch.Generator().manual_seed(1))
    together = prepare(images, torch.arange(40))

    apart = torch.cat([prepare(images[part], part) for part in order.split(7)])

    assert torch.equal(apart, together[order])


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
@pytest.mark.parametrize("kind", STRONG)
def test_augmentation_depends_on_seed_and_epoch(kind, other):
    images, index = bytes_of(40), torch.arange(40)
    alone = {
        "random_crop_padding": 0,
        "cutout": 0,
        "color_jitter": 0.0,
        "horizontal_flip": False,
        kind: STRONG[kind],
    }

    changed = prepare(images, index, **alone) != prepare(images, index, **alone, **other)

    assert changed.flatten(1).any(dim=1).sum() > 35


def test_crops_and_flips_are_the_same_with_other_augmentations():
    index = torch.arange(50)

    assert torch.equal(
        Preprocess().generate_random_numbers(3, 2, index), generate_integers(3, 2, index, count=3)
    )
    assert torch.equal(
        Preprocess(**STRONG).generate_random_numbers(3, 2, index)[:, :3],
        generate_integers(3, 2, index, count=3),
    )


def test_streams_are_unrelated():
    one, other = (
        generate_integers(0, 0, torch.arange(10_000), count=1, stream=each) for each in (0, 1)
    )

    correlation = ((one.double() - 2**30) * (other.double() - 2**30)).mean() / 2**60 * 3
    assert correlation.abs() < 5 / 10_000**0.5


def test_evaluation_is_not_augmented():
    images = bytes_of(5)

    assert torch.equal(Preprocess(32, 32, **STRONG)(images), Preprocess(32, 32)(images))


def test_cutout_squares_are_whole_and_reach_each_edge():
    is_cut = (
        prepare(bytes_of(2000), torch.arange(2000), random_crop_padding=0, color_jitter=0.0) == 0
    )

    assert is_cut.all(dim=1).sum(dim=(1, 2)).eq(8 * 8).all()
    assert is_cut.any(dim=3).sum(dim=2).eq(8).all()
    corner = is_cut[:, 0].flatten(1).int().argmax(dim=1)
    assert (corner // 32).unique().tolist() == (corner % 32).unique().tolist() == list(range(25))


def test_padded_crop_contains_the_reflected_image():
    images = bytes_of(300)
    preprocess = Preprocess(32, 32, random_crop_padding=4, horizontal_flip=False)
    padded = torch.nn.functional.pad(images.float(), (4, 4, 4, 4), mode="reflect")
    every = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # [batch, channels, top, left, 32, 32]
    cuts = preprocess(images, preprocess.generate_random_numbers(0, 0, torch.arange(300)))
    cuts = (cuts * preprocess.std + preprocess.mean).round()

    found = (every == cuts[:, :, None, None]).flatten(4).all(dim=4).all(dim=1)

    assert found.any(dim=2).any(dim=1).all()
    assert found.any(dim=0).sum() > 70  # of 9 x 9 places


@pytest.mark.parametrize(("place", "name"), [(0, "brightness"), (1, "contrast"), (2, "saturation")])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.7, 1.0, 1.3])
def test_color_jitter_equals_that_of_torchvision(place, name, channels, factor):
    images = bytes_of(4, channels).float()
    factors = torch.ones(4, 3)
    factors[:, place] = factor

    changed = transforms.jitter_colors(images, factors)

    change = getattr(reference, f"adjust_{name}")
    expected = torch.stack([change(image / 255, factor) * 255 for image in images])
    # torchvision rounds the weights of grayscale.
    torch.testing.assert_close(changed, expected, atol=0.2, rtol=0)


def test_color_jitter_keeps_grayscale_images_gray():
    prepared = prepare(bytes_of(20, channels=1), torch.arange(20))

    assert prepared.shape == (20, 3, 32, 32)
    assert torch.equal(prepared[:, 0], prepared[:, 1])
    assert torch.equal(prepared[:, 0], prepared[:, 2])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("random_crop_padding", -1, r"0 <= random_crop_padding < resize, which is 32"),
        ("random_crop_padding", 32, r"0 <= random_crop_padding < resize, which is 32"),
        ("cutout", -1, r"0 <= cutout <= crop, which is 28"),
        ("cutout", 29, r"0 <= cutout <= crop, which is 28"),
        ("color_jitter", 1.1, r"0 <= color_jitter <= 1"),
    ],
)
def test_augmentation_out_of_range_is_an_error(name, value, expected):
    with pytest.raises(ValueError, match=rf"^invalid {name}: {value} \(expected {expected}\)$"):
        Preprocess(32, 28, **{name: value})


class InMemory(ImageDataModule):
    classes = ("a", "b", "c", "d")

    def setup(self, stage):
        images, labels = networks.byte_images(12)[:]
        self.train = self.val = ImageTensors(images, labels)


def test_data_module_augments_in_training_alone(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    recorder = networks.Recorder()
    trainer = networks.trainer(max_epochs=2, callbacks=[recorder])
    trainer.fit(Classifier(networks.network, 4), InMemory(12, 32, 32, **STRONG))

    images, _ = networks.byte_images(12)[:]
    for epoch, batch in enumerate(recorder.training):
        expected = prepare(images[batch.indices], batch.indices, 7, epoch, mean=(0.5,) * 3)
        assert torch.equal(batch[0], expected)
    for batch in recorder.validation:
        assert torch.equal(batch[0], Preprocess(32, 32)(images))
