"""Data sets that hand out bytes: images in memory, and folders of image files."""

import os
import tarfile
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
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
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith(("I", "F")):  # 16 bits a pixel; Pillow would clip them
                image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
            pixels = np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MisconfigurationException(
            f"{path} does not decode as an image ({error}); repair it or remove it"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def list_classes(folder: Path) -> list[str]:
    """Name the classes of a folder: its subfolders, sorted.

    Raises:
        MisconfigurationException: The folder is missing or has no subfolders.
    """
    if not folder.is_dir():
        raise MisconfigurationException(
            f"{folder} is not a folder; data_path takes a folder with train/<class>/<image> "
            "(and test/, and val/ or none) in it"
        )
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
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
    files, labels = [], []
    for label, name in enumerate(classes):
        for root, _, names in sorted(os.walk(folder / name, followlinks=True)):
            images = sorted(n for n in names if has_file_allowed_extension(n, IMG_EXTENSIONS))
            files += [os.path.join(root, n) for n in images]
            labels += [label] * len(images)
    if not files:
        raise MisconfigurationException(
            f"{folder} has no images in its folders; files that end in "
            f"{', '.join(IMG_EXTENSIONS)} count"
        )
    return files, labels


def download(build: Callable[..., Any], name: str, root: Path) -> None:
    """Fetch a torchvision data set unless it is there, and fetch it once more if it is corrupt.

    Processes that share the folder wait for each other.

    Args:
        build: Makes the data set; takes `download=True` or `False`.
        name: The set's name, for messages.
        root: The folder it goes to.

    Raises:
        MisconfigurationException: The folder can't be written, the set can't be reached, or it
            arrived corrupt twice.
    """
    # torchvision's word for "not there or not whole" is RuntimeError, here and below.
    with suppress(RuntimeError):
        return build(download=False)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(root / ".lock")
        lock.acquire()
    except OSError as error:
        raise MisconfigurationException(
            f"data_path {root} can't be written ({error.strerror}); give a folder of your own: "
            "--data_path FOLDER"
        ) from error
    with lock:
        _fetch(build, name, root)


def _fetch(build: Callable[..., Any], name: str, root: Path, attempts: int = 2) -> None:
    started = time.time()
    try:
        build(download=True)
    except (RuntimeError, EOFError, OSError, tarfile.TarError, zlib.error) as error:
        reason = str(getattr(error, "reason", error)).strip().splitlines()[-1]
        if isinstance(error, URLError) or "urlopen error" in reason or attempts == 1:
            raise MisconfigurationException(
                f"{name} can't be fetched ({reason}); on a machine with network run `pyclassify "
                f"prepare --data_path {root}`, or name a folder of images "
                "(--data=ImageFolderDataModule --data_path FOLDER), or the set drawn on the spot "
                "(--config configs/synthetic.yaml)"
            ) from error
        rank_zero_warn(f"{name} arrived corrupt ({reason}); removed, fetching it once more")
        for path in root.rglob("*"):
            if path.is_file() and path.stat().st_mtime >= started and path.name != ".lock":
                path.unlink()
        _fetch(build, name, root, attempts - 1)
