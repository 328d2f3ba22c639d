"""The data module of a folder of images."""

import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import seed_everything

from pyclassify import datamodule
from pyclassify.datamodule import ImageFolderDataModule
from tests.support.images import grow

REAL = Path(__file__).parents[2] / "shared/data/cifar10-test-half.tar.xz"


def module(folder, **options):
    return ImageFolderDataModule(
        str(folder), **{"batch_size": 3, "resize": 8, "crop": 8, "num_workers": 0, **options}
    )


def test_fraction_of_train_is_held_out_without_val(tmp_path):
    grow(tmp_path, "train/cat", "train/dog", count=10)
    seeds = [(1, 0), (2, 0), (1, 1)]  # of the run, of the split
    modules = []
    for run, split in seeds:
        seed_everything(run)
        modules.append(module(tmp_path, val_size=0.25, split_seed=split))
        modules[-1].setup("fit")
    first, second, other = modules

    assert (first.classes, first.num_classes) == (["cat", "dog"], 2)
    assert [len(first.train), len(first.val)] == [15, 5]
    assert torch.cat([first.train.index, first.val.index]).unique().numel() == 20
    assert first.val.index.equal(second.val.index)
    assert not first.val.index.equal(other.val.index)


def test_one_image_at_least_is_held_out(tmp_path):
    data = module(grow(tmp_path, "train/cat"), val_size=0.01)

    data.setup("fit")

    assert [len(data.train), len(data.val)] == [3, 1]


def test_val_and_test_folders_are_used_whole(tmp_path):
    grow(tmp_path, "train/cat", "train/dog", "val/dog", "test/cat", "test/dog")
    data = module(tmp_path)

    for stage in ("fit", "test"):
        data.setup(stage)

    assert [len(data.train), len(data.val), len(data.test)] == [8, 4, 8]
    assert [data.val[n][1] for n in range(4)] == [1] * 4
    assert data.test.files[0] == str(tmp_path / "test/cat/0.png")


def test_folder_is_listed_once(tmp_path):
    data = module(grow(tmp_path, "train/cat", "train/dog"))
    data.setup("fit")
    shutil.rmtree(tmp_path / "train/cat")

    data.setup("fit")

    assert len(data.train) + len(data.val) == 8


def test_training_images_are_exact_only_if_asked_for(tmp_path):
    grow(tmp_path, "train/cat", "test/cat")
    sets = []
    for options in ({}, {"float_resize": True}):
        data = module(tmp_path, **options)
        for stage in ("fit", "test"):
            data.setup(stage)
        sets.append((data.train.float_resize, data.val.float_resize, data.test.float_resize))

    assert sets == [(False, True, True), (True, True, True)]


@pytest.mark.parametrize(("given", "expected"), [(None, 3), (0, 0), (5, 5)])
def test_num_workers_follows_the_processors_by_default(given, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(datamodule, "count_workers", lambda processes: 2 + processes)
    data = ImageFolderDataModule(str(grow(tmp_path, "train/cat")), num_workers=given)
    data.setup("fit")

    assert data.train_dataloader().num_workers == expected


def test_tilde_in_data_path_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(grow(tmp_path, "train/cat")))

    assert module("~").data_path == tmp_path


def test_workers_load_the_same_batches_as_one_process(tmp_path):
    grow(tmp_path, "train/cat", "train/dog")
    alone, helped = (module(tmp_path, num_workers=number) for number in (0, 2))
    for data in (alone, helped):
        data.setup("fit")

    batches = zip(alone.train_dataloader(), helped.train_dataloader(), strict=True)

    compared = [a.equal(b) for one, two in batches for a, b in zip(one, two, strict=True)]
    assert compared == [True] * 9  # three batches of images, labels and places


def test_real_photographs_are_normalized(tmp_path):
    if not REAL.exists():
        pytest.skip(f"the real images are not beside the checkout: {REAL.name}")
    with tarfile.open(REAL, "r|xz") as archive:
        for member in archive:
            if member.name.endswith(("/0000.jpg", "/0001.jpg")):
                path = tmp_path / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.extractfile(member).read())
    shutil.copytree(tmp_path / "test", tmp_path / "train")
    data = module(tmp_path, batch_size=20, resize=70, crop=64)
    data.setup("test")

    (batch,) = data.test_dataloader()
    images, labels = data.on_after_batch_transfer(batch, 0)

    assert data.classes[:3] == ["airplane", "automobile", "bird"]
    assert labels.bincount().tolist() == [2] * 10
    assert images.shape == (20, 3, 64, 64)
    assert images.mean().abs() < 0.5
    assert 0.7 < images.std() < 1.3
