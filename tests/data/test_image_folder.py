"""The images and classes of a folder, and packed paths."""

import os
import pickle

import pytest

from pyclassify.data.datasets import PackedPaths
from pyclassify.data.image_folder import list_classes, list_images


def grow(folder, *files):
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    return folder


def test_images_are_listed_by_class_and_name(tmp_path):
    grow(tmp_path, "b/2.png", "b/10.JPEG", "a/z.jpg", "a/deep/er/y.webp", "a/b.txt", "notes.txt")

    assert list_classes(tmp_path) == ["a", "b"]
    files, labels = list_images(tmp_path, ["a", "b"])
    assert [os.path.relpath(file, tmp_path) for file in files] == [
        "a/deep/er/y.webp",
        "a/z.jpg",
        "b/10.JPEG",
        "b/2.png",
    ]
    assert labels == [0, 0, 1, 1]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    grow(tmp_path, "a/1.png", "a/._1.png", "a/.ipynb_checkpoints/1.png", ".ipynb_checkpoints/1.png")

    assert list_classes(tmp_path) == ["a"]
    assert list_images(tmp_path, ["a"]) == ([str(tmp_path / "a/1.png")], [0])


def test_linked_folder_is_a_class(tmp_path):
    grow(tmp_path, "store/1.png", "train/a/1.png")
    (tmp_path / "train/b").symlink_to(tmp_path / "store")

    files, labels = list_images(tmp_path / "train", list_classes(tmp_path / "train"))

    assert files == [str(tmp_path / "train/a/1.png"), str(tmp_path / "train/b/1.png")]
    assert labels == [0, 1]


def test_class_without_images_in_a_split_is_skipped(tmp_path):
    grow(tmp_path, "b/1.png")

    assert list_images(tmp_path, ["a", "b"]) == ([str(tmp_path / "b/1.png")], [1])


ODD = ["a/1.png", "", "b/é ü.jpg", os.fsdecode(b"c/\xff.webp")]


def test_packed_paths_return_the_paths():
    paths = PackedPaths(ODD)

    assert [paths[index] for index in range(len(ODD))] == list(paths) == ODD
    assert paths[-1] == ODD[-1]
    assert paths[1:] == ODD[1:]
    assert list(pickle.loads(pickle.dumps(paths))) == ODD  # to a worker that is not forked
    assert list(PackedPaths(paths)) == ODD
    assert list(PackedPaths([])) == []


@pytest.mark.parametrize("index", [4, -5])
def test_packed_paths_index_out_of_range_is_an_error(index):
    with pytest.raises(IndexError):
        PackedPaths(ODD)[index]
