"""Sets of images in memory and in files, and the folders that those lie in."""

import os

import pytest
import torch
from PIL import Image

from pyclassify.datasets import ImageFiles, ImageTensors, list_classes, list_images


def test_files_of_any_size_are_handed_out_as_squares_of_one(tmp_path):
    for number, size in enumerate([(40, 30), (8, 8), (5, 90)]):
        Image.new("RGB", size, (9 * number,) * 3).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    dataset = ImageFiles(files, [7, 8, 9], size=16, index=torch.tensor([0, 2]))

    items = [dataset[place] for place in range(len(dataset))]

    assert [(label, index) for _, label, index in items] == [(7, 0), (9, 2)]
    assert [image.shape for image, _, _ in items] == [(3, 16, 16)] * 2
    assert [image.mean().item() for image, _, _ in items] == pytest.approx([0, 18])


def test_batch_of_images_in_memory_is_that_of_single_ones():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    dataset = ImageTensors(images, torch.arange(10) * 2, index=torch.tensor([1, 5, 7]))

    batch = dataset.__getitems__([2, 0])

    assert [part.flatten().tolist() for part in batch] == [[7, 1], [14, 2], [7, 1]]
    for number, item in enumerate([2, 0]):
        assert all(a.equal(b[number]) for a, b in zip(dataset[item], batch, strict=True))


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


def test_hidden_files_and_folders_do_not_count(tmp_path):
    grow(tmp_path, "a/1.png", "a/._1.png", "a/.ipynb_checkpoints/1.png", ".ipynb_checkpoints/1.png")

    assert list_classes(tmp_path) == ["a"]
    assert list_images(tmp_path, ["a"]) == ([str(tmp_path / "a/1.png")], [0])


def test_linked_folder_is_a_class(tmp_path):
    grow(tmp_path, "store/1.png", "train/a/1.png")
    (tmp_path / "train/b").symlink_to(tmp_path / "store")

    files, labels = list_images(tmp_path / "train", list_classes(tmp_path / "train"))

    assert files == [str(tmp_path / "train/a/1.png"), str(tmp_path / "train/b/1.png")]
    assert labels == [0, 1]


def test_class_without_images_in_a_part_is_passed_over(tmp_path):
    grow(tmp_path, "b/1.png")

    assert list_images(tmp_path, ["a", "b"]) == ([str(tmp_path / "b/1.png")], [1])
