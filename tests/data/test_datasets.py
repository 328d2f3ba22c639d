"""Sets of images in memory and in files."""

import pytest
import torch
from PIL import Image

from pyclassify.data.datasets import ImageFiles, ImageTensors


def test_files_of_any_size_are_handed_out_as_squares_of_one(tmp_path):
    for number, size in enumerate([(40, 30), (8, 8), (5, 90)]):
        Image.new("RGB", size, (9 * number,) * 3).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(3)]
    dataset = ImageFiles(tmp_path, files, [7, 8, 9], size=16, index=torch.tensor([0, 2]))

    items = [dataset[place] for place in range(len(dataset))]

    assert [(label, index) for _, label, index in items] == [(7, 0), (9, 2)]
    assert [image.shape for image, _, _ in items] == [(3, 16, 16)] * 2
    assert all(type(label) is int for _, label, _ in items)
    assert [image.mean().item() for image, _, _ in items] == pytest.approx([0, 18])


def test_batch_of_images_in_memory_is_that_of_single_ones():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    dataset = ImageTensors(images, torch.arange(10) * 2, index=torch.tensor([1, 5, 7]))

    batch = dataset.__getitems__([2, 0])

    assert [part.flatten().tolist() for part in batch] == [[7, 1], [14, 2], [7, 1]]
    for number, item in enumerate([2, 0]):
        assert all(a.equal(b[number]) for a, b in zip(dataset[item], batch, strict=True))
