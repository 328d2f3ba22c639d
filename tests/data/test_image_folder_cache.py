"""Training images that are decoded once into a cache file."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from pyclassify.data import image_folder
from pyclassify.data.datasets import ImageTensors
from pyclassify.datamodule import ImageFolderDataModule
from pyclassify.module import Classifier
from tests.support import networks
from tests.support.images import grow


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pyclassify/scaled"


@pytest.fixture
def folder(tmp_path):
    """PNGs and JPEGs of several sizes."""
    grow(tmp_path / "photos", "train/cat", "train/dog", "test/cat", count=6)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos/train/dog/large.jpg")
    return tmp_path / "photos"


def module(folder, **options):
    sizes = {
        "batch_size": 4,
        "resize": 10,
        "crop": 8,
        "random_crop_padding": 1,
        "color_jitter": 0.2,
    }
    return ImageFolderDataModule(str(folder), num_workers=1, **{**sizes, **options})


def steps(data):
    """Return the batches of two epochs of training, and the digests of the data."""
    torch.manual_seed(0)
    recorder = networks.Recorder()
    networks.trainer(max_epochs=2, callbacks=[recorder]).fit(Classifier(networks.network, 2), data)
    return recorder.training, data.digest()


def refuse(*args):
    pytest.fail("an image file was decoded")


def test_cache_changes_neither_batches_nor_digest(folder):
    (read, digest), (cached, cached_digest) = (
        steps(module(folder, cache=on)) for on in (False, True)
    )

    assert len(read) == len(cached) == 6
    for one, other in zip(read, cached, strict=True):
        assert one[0].equal(other[0])
        assert one[1].equal(other[1])
        assert one.indices.equal(other.indices)
    assert cached_digest == digest


def test_later_runs_decode_no_cached_image_and_start_no_workers(folder, monkeypatch):
    module(folder, cache=True).prepare_data()
    monkeypatch.setattr("pyclassify.data.datasets.read_resized", refuse)
    later = module(folder, cache=True)

    later.prepare_data()
    later.setup("fit")

    assert isinstance(later.train, ImageTensors)
    assert [later.train_dataloader().num_workers, later.val_dataloader().num_workers] == [0, 1]


def test_writing_the_cache_does_not_advance_random_numbers(folder):
    before = torch.get_rng_state()

    module(folder, cache=True).prepare_data()

    assert torch.get_rng_state().equal(before)


def test_changed_images_are_read_again(folder):
    first, second = module(folder, cache=True), module(folder, cache=True)
    first.setup("fit")
    Image.new("RGB", (9, 9), "white").save(folder / "train/cat/0.png")
    second.setup("fit")

    changed = (first.train.images != second.train.images).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [0]
    assert second.train.images[0].eq(255).all()


def test_each_size_has_a_cache_file_which_only_training_writes(folder, cache):
    scoring = module(folder, cache=True)
    networks.trainer().test(Classifier(networks.network, 2), scoring, verbose=False)
    assert not cache.exists()

    for size in (10, 12):
        module(folder, cache=True, resize=size).setup("fit")

    made = sorted(path.name.split("-")[:2] for path in cache.glob("*.mapped"))
    assert made == [["photos", "10"], ["photos", "12"]]


def test_cache_larger_than_memory_is_an_error(folder, monkeypatch):
    little = SimpleNamespace(available=1000)
    monkeypatch.setattr(image_folder.psutil, "virtual_memory", lambda: little)

    with pytest.raises(
        MisconfigurationException, match=r"13 images of 10 x 10 pixels.* data\.resize"
    ):
        module(folder, cache=True).setup("fit")


def test_cache_of_exact_pixels_is_an_error(folder):
    with pytest.raises(
        MisconfigurationException, match=r"data\.cache.*data\.float_resize.* one of the two"
    ):
        module(folder, cache=True, float_resize=True)


def test_changed_decoder_decodes_cached_images_again(folder, cache, monkeypatch):
    module(folder, cache=True).setup("fit")
    monkeypatch.setattr(image_folder, "digest_decoder", lambda: "of another version")

    module(folder, cache=True).setup("fit")

    assert len(list(cache.glob("*.mapped"))) == 2
