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
    second = split_indices(100, 10, seed=0)

    assert first["val"].equal(second["val"])
    assert first["train"].equal(second["train"])


def test_split_is_that_of_runs_with_other_releases_of_torch():
    # A resumed run would otherwise validate with images that it was trained with.
    assert split_indices(50_000, 5_000, seed=0)["val"][:5].tolist() == [1, 11, 23, 39, 44]


def test_split_seed_decides_the_split():
    assert not split_indices(100, 10, seed=0)["val"].equal(split_indices(100, 10, seed=1)["val"])


@pytest.mark.parametrize("held_out", [0, 10, 11])
def test_split_without_images_on_a_side_is_an_error(held_out):
    with pytest.raises(MisconfigurationException, match=f"hold out {held_out} of 10 .*val_size"):
        split_indices(10, held_out, seed=0)


def test_split_leaves_every_class_a_training_image():
    labels = torch.tensor([0] * 10 + [1, 2, 2, 3])
    for seed in range(20):
        for held_out in range(1, 11):
            parts = split_indices(14, held_out, seed, labels)

            assert labels[parts["train"]].unique().tolist() == [0, 1, 2, 3]
            assert len(parts["val"]) == held_out
            assert torch.cat([*parts.values()]).sort().values.equal(torch.arange(14))
            second = split_indices(14, held_out, seed, labels)
            assert second["val"].equal(parts["val"])


def test_split_that_empties_no_class_is_that_of_earlier_releases():
    labels = torch.arange(1000) % 10
    for seed in range(20):
        before, now = split_indices(1000, 100, seed), split_indices(1000, 100, seed, labels)

        assert now["val"].equal(before["val"])
        assert now["train"].equal(before["train"])


def test_split_holds_out_fewer_where_every_class_has_to_keep_one():
    parts = split_indices(6, 5, 0, torch.tensor([0, 0, 1, 1, 2, 2]))

    assert [len(parts["train"]), len(parts["val"])] == [3, 3]


def test_split_of_classes_of_one_image_is_an_error():
    with pytest.raises(MisconfigurationException, match=r"no class has a second image.* val/"):
        split_indices(3, 1, 0, torch.tensor([0, 1, 2]))
