"""The data modules whose images are in memory: those of torchvision and the synthetic one."""

import shutil

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.datamodule import (
    CIFAR10DataModule,
    MNISTDataModule,
    SyntheticDataModule,
    TorchvisionDataModule,
)
from tests.support import servers

SPLIT = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"], "predict": ["test"]}


@pytest.fixture
def server():
    with servers.serve() as server:
        yield server


@pytest.mark.parametrize("name", TorchvisionDataModule.NUM_CLASSES)
def test_images_and_labels_equal_those_of_the_archive(name, server, monkeypatch, tmp_path):
    sources = servers.offer(monkeypatch, server, name)
    data = TorchvisionDataModule(name, str(tmp_path), val_size=5)

    data.prepare_data()
    data.setup("fit")
    data.setup("test")

    for split, source in (("train", "train"), ("val", "train"), ("test", "test")):
        dataset = getattr(data, split)
        images, labels, index = dataset.__getitems__(list(range(len(dataset))))
        assert images.dtype == torch.uint8
        assert images.equal(torch.from_numpy(sources[source][0])[index])
        assert labels.equal(torch.from_numpy(sources[source][1])[index])
    assert [len(data.train), len(data.val), len(data.test)] == [15, 5, servers.TEST]
    assert data.num_classes == (100 if name == "CIFAR100" else 10)


def test_classes_have_the_names_of_the_archive(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "CIFAR10")
    data = CIFAR10DataModule(str(tmp_path), val_size=5)

    data.prepare_data()

    assert data.classes == [f"class {n}" for n in range(10)]


def test_setup_uses_what_prepare_data_loaded(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "CIFAR10")
    data = CIFAR10DataModule(str(tmp_path), val_size=5)
    data.prepare_data()
    shutil.rmtree(tmp_path)
    server.bodies.clear()

    data.prepare_data()
    data.setup("fit")

    assert data.train.images.data_ptr() == data.val.images.data_ptr()  # one copy for both


def test_process_without_prepare_data_loads_the_same(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "CIFAR10")
    first, second = (CIFAR10DataModule(str(tmp_path), val_size=5) for _ in range(2))
    first.prepare_data()

    for each in (first, second):
        each.setup("fit")

    assert second.train.images.equal(first.train.images)
    assert second.val.index.equal(first.val.index)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(
        MisconfigurationException,
        # the form of this message
        match=r"^invalid name: 'CIFAR' \(expected one of CIFAR10, CIFAR100, FashionMNIST, KMNIST, "
        r"MNIST, SVHN\)\. Did you mean 'CIFAR10'\?$",
    ):
        TorchvisionDataModule("CIFAR")


def test_mnist_becomes_three_equal_channels_that_are_not_flipped(server, monkeypatch, tmp_path):
    servers.offer(monkeypatch, server, "MNIST")
    data = MNISTDataModule(str(tmp_path), val_size=5)
    data.setup("test")
    images = data.test.images
    even = torch.zeros(len(images), 3, dtype=torch.int64)
    mirrored = even + torch.tensor([0, 0, 1])

    prepared = data.preprocess(images, even)

    assert prepared.shape == (servers.TEST, 3, 64, 64)
    assert prepared.equal(prepared[:, :1].expand(-1, 3, -1, -1))
    assert data.preprocess(images, mirrored).equal(prepared)
    data.preprocess.horizontal_flip = True
    assert data.preprocess(images, mirrored).equal(prepared.flip(-1))


@pytest.mark.parametrize(
    ("xdg", "given", "expected"),
    [
        (None, None, ".cache/pyclassify"),
        ("", None, ".cache/pyclassify"),
        ("elsewhere", None, "elsewhere/pyclassify"),
        ("elsewhere", "~/data", "data"),
    ],
)
def test_data_is_in_the_users_cache_folder_by_default(xdg, given, expected, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg and str(tmp_path / xdg))

    assert CIFAR10DataModule(given).data_path == tmp_path / expected


@pytest.mark.parametrize("stage", SPLIT)
def test_synthetic_data_set_has_the_splits_of_the_stage(stage):
    sizes = {"train": 30, "val": 20, "test": 10}
    data = SyntheticDataModule(*sizes.values())

    data.prepare_data()
    data.setup(stage)

    parts = {part: getattr(data, part) for part in sizes if hasattr(data, part)}
    assert {part: len(dataset) for part, dataset in parts.items()} == {
        part: sizes[part] for part in SPLIT[stage]
    }


def test_synthetic_splits_differ_and_are_reproducible():
    first, second, other = (SyntheticDataModule(10, 10, 10, data_seed=seed) for seed in (0, 0, 1))
    for data in (first, second, other):
        data.setup("fit")

    assert first.train.images.equal(second.train.images)
    assert not first.train.images.equal(first.val.images)
    assert not first.train.images.equal(other.train.images)
