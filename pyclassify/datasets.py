"""Data sets that hand out bytes: images in memory, and folders of image files."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from pyclassify.transforms import resize


class ImageTensors(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images of one size in memory, fetched a batch at a time without copying the set.

    Args:
        images: uint8 [n, 1 or 3, height, width].
        labels: int64 [n].
        index: Which of the n images belong to this set, int64; all of them by default.
    """

    def __init__(self, images: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        self.images, self.labels = images, labels
        self.index = torch.arange(len(images)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, Tensor]:
        index = self.index[item]
        return self.images[index], self.labels[index], index

    def __getitems__(self, items: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Fetch a batch in one go (the protocol of torch's map-style fetcher)."""
        index = self.index[items]
        return self.images[index], self.labels[index], index


class ImageFiles(Dataset[tuple[Tensor, int, int]]):
    """Image files of any size and mode, decoded and resized one by one.

    Args:
        files: The images' paths.
        labels: Their labels, as many.
        size: The side of the squares that are handed out, in pixels.
        index: Which of the files belong to this set; all of them by default.
    """

    def __init__(
        self, files: list[str], labels: list[int], size: int, index: Tensor | None = None
    ) -> None:
        self.files, self.labels, self.size = files, labels, size
        self.index = torch.arange(len(files)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        index = int(self.index[item])
        image = read_image(self.files[index])
        return resize(image[None], self.size)[0], self.labels[index], index


def read_image(path: str) -> Tensor:
    """Decode an image file, turned as its EXIF orientation says.

    Returns:
        uint8 [3, height, width].

    Raises:
        MisconfigurationException: The file can't be read or is not a whole image.
    """
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.array(_eight_bits(image).convert("RGB"))
    except Exception as error:  # a decoder raises whatever a broken file makes it stumble over
        reason = str(error) or repr(error)
        raise MisconfigurationException(
            f"{path} does not decode as an image ({reason}); repair it or remove it"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("pixels are floats of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow would clip them
        return Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
    # Pillow warns of a palette with transparency unless it is looked up first.
    return image.convert("RGBA") if image.mode == "P" else image


def list_classes(folder: Path) -> list[str]:
    """Name the classes of a folder: its subfolders, sorted, without hidden ones.

    Raises:
        MisconfigurationException: The folder is missing or has no subfolders.
    """
    if not folder.is_dir():
        raise MisconfigurationException(
            f"{folder} is not a folder; data_path takes a folder with train/<class>/<image> "
            "(and test/, and val/ or none) in it"
        )
    classes = [entry.name for entry in _visible(folder) if entry.is_dir()]
    if not classes:
        raise MisconfigurationException(
            f"{folder} has no folders in it; put the images of each class in a folder of its own, "
            f"{folder}/<class>/<image>"
        )
    return classes


def list_images(folder: Path, classes: Sequence[str]) -> tuple[list[str], list[int]]:
    """List a folder's images by class, in an order that every machine agrees on.

    Raises:
        MisconfigurationException: There is no image, or a class that is not among `classes`.
    """
    unknown = sorted(set(list_classes(folder)) - set(classes))
    if unknown:
        raise MisconfigurationException(
            f"{folder} has the class {unknown[0]!r}, which train/ has not; train/ has "
            f"{', '.join(classes)}"
        )
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            files += _walk(folder / name)
            labels += [label] * (len(files) - len(labels))
    if not files:
        raise MisconfigurationException(
            f"{folder} has no images in its folders; files that end in "
            f"{', '.join(IMG_EXTENSIONS)} count"
        )
    return files, labels


def _walk(folder: Path | str) -> Iterator[str]:
    for entry in _visible(folder):
        if entry.is_dir():
            yield from _walk(entry.path)
        elif has_file_allowed_extension(entry.name, IMG_EXTENSIONS):
            yield entry.path


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    # Hidden: .ipynb_checkpoints with copies of images, macOS's ._name beside each.
    entries = (entry for entry in os.scandir(folder) if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: entry.name)
