"""Which images are held out for validation."""

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.data.loaders import split_indices
from pyclassify.datamodule import CIFAR10DataModule


def test_cifar_10_is_split_into_45000_and_5000_images_that_share_none():
    parts = split_indices(50_000, CIFAR10DataModule().val_size, seed=0)

    assert {part: len(index) for part, index in parts.items()} == {"train": 45_000, "val": 5_000}
    assert torch.cat(list(parts.values())).unique().numel() == 50_000


def test_split_is_the_same_whatever_the_seed_of_the_run():
    seed_everything(1)
    first = split_indices(100, 10, seed=0)
    seed_everything(2)
    again = split_indices(100, 10, seed=0)

    assert first["val"].equal(again["val"])
    assert first["train"].equal(again["train"])


def test_split_is_that_of_runs_with_other_releases_of_torch():
    # A resumed run would otherwise validate with images that it was trained with.
    assert split_indices(50_000, 5_000, seed=0)["val"][:5].tolist() == [1, 11, 23, 39, 44]


def test_split_seed_decides_the_split():
    assert not split_indices(100, 10, seed=0)["val"].equal(split_indices(100, 10, seed=1)["val"])


@pytest.mark.parametrize("held_out", [0, 10, 11])
def test_split_without_images_on_a_side_is_an_error(held_out):
    with pytest.raises(MisconfigurationException, match=f"^{held_out} .* 10 .*val_size"):
        split_indices(10, held_out, seed=0)
