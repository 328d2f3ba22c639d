"""Data sets of images in memory and in files, and their capabilities."""

import pytest
import torch
from PIL import Image

from pyclassify.data.datasets import (
    CachedImageFiles,
    ImageDataset,
    ImageFiles,
    ImageTensors,
    UnlabeledImageFiles,
)
from pyclassify.data.loaders import ImageDataModule


def test_image_files_of_any_size_become_squares_of_one_size(tmp_path):
    for number, size in enumerate([(40, 30), (8, 8), (5, 90)]):
        Image.new("RGB", size, (9 * number,) * 3).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    dataset = ImageFiles(tmp_path, files, [7, 8, 9], size=16, index=torch.tensor([0, 2]))

    items = [dataset[place] for place in range(len(dataset))]

    assert [(label, index) for _, label, index in items] == [(7, 0), (9, 2)]
    assert [image.shape for image, _, _ in items] == [(3, 16, 16)] * 2
    assert all(type(label) is int for _, label, _ in items)
    assert [image.mean().item() for image, _, _ in items] == pytest.approx([0, 18])


def test_batch_of_image_tensors_equals_single_items():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    dataset = ImageTensors(images, torch.arange(10) * 2, index=torch.tensor([1, 5, 7]))

    batch = dataset.__getitems__([2, 0])

    assert [part.flatten().tolist() for part in batch] == [[7, 1], [14, 2], [7, 1]]
    for number, item in enumerate([2, 0]):
        assert all(a.equal(b[number]) for a, b in zip(dataset[item], batch, strict=True))


class NewFormat(ImageDataset):
    """Ten images of a format that no module names."""

    can_skip = True

    def __len__(self):
        return 10

    def __getitem__(self, item):
        return torch.full((3, 8, 8), item, dtype=torch.uint8), item % 2, item

    def digest(self):
        return "0123"


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for number, path in enumerate(paths):
        Image.new("RGB", (30, 20), (number,) * 3).save(path)
    return ImageFiles(tmp_path, paths, [7, 8, 9], size=16, index=torch.tensor([0, 2]))


def test_image_dataset_states_no_capability_by_default():
    dataset = ImageDataset()

    capabilities = [dataset.in_memory, dataset.can_skip, dataset.has_unreadable]
    assert capabilities == [False, False, False]
    assert dataset.digest() is None
    assert dataset.names() is None


def test_data_module_asks_a_new_format_for_its_capabilities():
    data = ImageDataModule(batch_size=4)
    data.train = data.val = NewFormat()

    loader = data.train_dataloader()

    assert loader.sampler.can_skip
    assert [image.shape for image, _, _ in loader] == [(4, 3, 8, 8), (4, 3, 8, 8), (2, 3, 8, 8)]
    assert data.digest() == {"train": "0123", "val": "0123"}


def test_data_set_of_another_class_has_no_capability():
    data = ImageDataModule(batch_size=4)
    data.train = torch.utils.data.TensorDataset(torch.zeros(4, 3, 8, 8))

    assert not data.train_dataloader().sampler.can_skip
    assert data.digest() == {}


def test_read_original_gives_the_image_before_any_resize(files):
    for dataset in (files, CachedImageFiles(torch.zeros(3, 3, 16, 16), files)):
        image, label = dataset.read_original(1)

        assert image.equal(torch.full((3, 20, 30), 2, dtype=torch.uint8))
        assert label == 9
    image, label = NewFormat().read_original(3)
    assert (image.unique().tolist(), label) == ([3], 1)


def test_cached_image_files_have_the_digest_of_their_files(files):
    cached = CachedImageFiles(torch.zeros(3, 3, 16, 16, dtype=torch.uint8), files)

    assert cached.digest() == files.digest()
    assert cached.in_memory
    assert not files.in_memory


def test_unlabeled_image_files_mark_what_does_not_decode(files, tmp_path):
    (tmp_path / "0.png").write_bytes(b"no image")
    dataset = UnlabeledImageFiles(tmp_path, list(files.files), size=16)

    assert dataset.has_unreadable
    assert [label for _, label, _ in (dataset[0], dataset[1])] == [-1, 0]
    assert dataset.names() == ["0.png", "1.png", "2.png"]
