"""Digests of images by their content."""

import json
import os

import pytest
import torch

from pyclassify.data import cache
from pyclassify.datamodule import ImageFolderDataModule, SyntheticDataModule
from tests.support.images import grow

IMAGES = torch.arange(6 * 3 * 4 * 4, dtype=torch.uint8).reshape(6, 3, 4, 4)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
ALL = torch.arange(6)


@pytest.fixture(autouse=True)
def digest_file(tmp_path, monkeypatch):
    """The file of saved digests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pyclassify" / "digests.json"


def digests(folder):
    data = ImageFolderDataModule(str(folder), val_size=0.5)
    data.setup("fit")
    return data.digest()


@pytest.mark.parametrize(
    "changed",
    [
        (IMAGES + (ALL == 5).byte()[:, None, None, None], LABELS, ALL),
        (IMAGES, LABELS.flip(0), ALL),
        (IMAGES, LABELS, ALL[:5]),
        (IMAGES, LABELS, ALL.flip(0)),
        (IMAGES.view(6, 3, 2, 8), LABELS, ALL),
        (IMAGES.view(torch.int8), LABELS, ALL),
    ],
    ids=["pixel", "labels", "fewer", "order", "shape", "type"],
)
def test_digest_tensors_changes_with_every_change(changed):
    assert cache.digest_tensors(*changed) != cache.digest_tensors(IMAGES, LABELS, ALL)


def test_digest_tensors_does_not_depend_on_chunks_or_storage_order(monkeypatch):
    at_once = cache.digest_tensors(IMAGES, LABELS, ALL)
    monkeypatch.setattr(cache, "_IMAGES_PER_CHUNK", 4)

    assert cache.digest_tensors(IMAGES[[5, *range(5)]], LABELS[[5, *range(5)]], ALL.roll(-1)) == (
        at_once
    )


def test_each_split_in_memory_has_a_digest():
    data = SyntheticDataModule(train_size=20, val_size=10, test_size=10)
    data.setup("fit")
    assert data.digest().keys() == {"train", "val"}

    data.setup("test")
    assert len(set(data.digest().values())) == 3


def test_digest_of_a_moved_folder_is_the_same(tmp_path):
    grow(tmp_path / "one", "train/cat", "train/dog")
    before = digests(tmp_path / "one")
    (tmp_path / "one").rename(tmp_path / "two")

    assert digests(tmp_path / "two") == before
    assert before.keys() == {"train", "val"}


@pytest.mark.parametrize("change", ["content", "class"])
def test_digest_of_a_changed_folder_differs(change, tmp_path):
    grow(tmp_path, "train/cat", "train/dog")
    before = digests(tmp_path)
    image = tmp_path / "train" / "cat" / "0.png"
    if change == "content":
        image.write_bytes(image.read_bytes() + b"\0")
    else:
        image.rename(tmp_path / "train" / "dog" / "more.png")

    assert digests(tmp_path) != before


def test_files_with_the_same_stat_are_not_read_again(tmp_path, digest_file, monkeypatch):
    grow(tmp_path, "train/cat", "train/dog")
    before = digests(tmp_path)
    monkeypatch.setattr(cache, "_digest_contents", lambda files, folder: "reread")

    assert digests(tmp_path) == before
    assert set(json.loads(digest_file.read_text()).values()) == set(before.values())
    os.utime(tmp_path / "train" / "cat" / "0.png")
    assert "reread" in digests(tmp_path).values()


@pytest.mark.parametrize("broken", ["[", "[1]"])
def test_damaged_digest_file_is_written_again(broken, tmp_path, digest_file):
    grow(tmp_path, "train/cat", "train/dog")
    digest_file.parent.mkdir(parents=True)
    digest_file.write_text(broken)

    assert set(digests(tmp_path).values()) == set(json.loads(digest_file.read_text()).values())


def test_digest_file_that_can_not_be_written_is_ignored(tmp_path, digest_file):
    grow(tmp_path, "train/cat", "train/dog")
    digest_file.parent.parent.write_text("a file where a folder should be")

    assert digests(tmp_path).keys() == {"train", "val"}
