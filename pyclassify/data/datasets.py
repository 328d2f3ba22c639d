"""Data sets of images in memory and of image files, and what each of them supports."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from pyclassify.data.cache import digest_files, digest_tensors
from pyclassify.data.images import (
    UnreadableImageError,
    open_image,
    read_content,
    read_orientation,
    read_rgb,
    turn_upright,
)
from pyclassify.data.transforms import center_crop, resize, resize_rounded

UNREADABLE = -1  # the label of an image that does not decode


class ImageDataset(Dataset[Any]):
    """The base class of data sets of (image, label, index), which declare what they support.

    To read a new format, write a subclass. Loaders and tracking use the attributes and methods.

    Attributes:
        in_memory: Whether `__getitems__` returns a whole batch, which is then loaded without worker
            processes. False by default.
        can_skip: Whether an item does not depend on the items that were read before it, so that
            training resumes in the middle of an epoch without reading them. False by default.
        has_unreadable: Whether an image that does not decode has the label `UNREADABLE`. The data
            set must then have the paths of its images as `files`. False by default.

    Example:
        >>> class BlackImages(ImageDataset):
        ...     can_skip = True
        ...
        ...     def __len__(self):
        ...         return 4
        ...
        ...     def __getitem__(self, item):
        ...         return torch.zeros(3, 8, 8, dtype=torch.uint8), 0, item
        >>> image, label, index = BlackImages()[2]
        >>> image.shape, label, index
        (torch.Size([3, 8, 8]), 0, 2)
    """

    in_memory: ClassVar[bool] = False
    can_skip: ClassVar[bool] = False
    has_unreadable: ClassVar[bool] = False

    def digest(self) -> str | None:
        """Digest the images and labels; None if the content is not known."""
        return None

    def names(self) -> list[str] | None:
        """Return the name of each image, in order; None if images have only an index."""
        return None

    def list_labels(self) -> Tensor | None:
        """Return the label of each image, in order, int64 [n]; None if reading them takes long."""
        return None

    def read_original(self, item: int) -> tuple[Tensor, int]:
        """Read an image in its original size, uint8 [1 or 3, height, width], and its label."""
        image, label, *_ = self[item]
        return image, int(label)


class ImageTensors(ImageDataset):
    """Images of equal size in memory, read a batch at a time without a copy of the data set.

    Args:
        images: uint8 [n, 1 or 3, height, width].
        labels: int64 [n].
        index: The indices of the images that belong to this data set, int64 [up to n]; all of them
            by default.

    Example:
        >>> images = torch.zeros(10, 3, 32, 32, dtype=torch.uint8)
        >>> dataset = ImageTensors(images, torch.arange(10), index=torch.tensor([4, 7]))
        >>> len(dataset), int(dataset[1][1])
        (2, 7)
    """

    in_memory = True
    can_skip = True

    def __init__(self, images: Tensor, labels: Tensor, index: Tensor | None = None) -> None:
        self.images, self.labels = images, labels
        self.index = torch.arange(len(images)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor, Tensor]:
        index = self.index[item]
        return self.images[index], self.labels[index], index

    def __getitems__(self, items: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Read a whole batch: torch's DataLoader calls this method if a data set has it."""
        index = self.index[items]
        return self.images[index], self.labels[index], index

    def list_labels(self) -> Tensor:
        return self.labels[self.index]

    def digest(self) -> str:
        return digest_tensors(self.images, self.labels, self.index)


class ImageFiles(ImageDataset):
    """Image files of any size and mode, decoded and resized one by one.

    An item is the central square of the image, float [3, size, size] with values 0 to 255, its
    label and its index among the files.

    Args:
        folder: The folder that the paths in the digest are relative to.
        files: The paths of n images.
        labels: Their labels, int64 [n].
        size: The side of the squares, in pixels.
        index: The indices of the files that belong to this data set, int64 [up to n]; all of them
            by default.
        float_resize: Whether images are resized in floats, to pixels that are bitwise identical to
            those of the served model. Otherwise they are resized as bytes, in half the time.

    Example:
        >>> folder = Path("photos/train")
        >>> files = [str(folder / "cat/1.png"), str(folder / "dog/1.png")]
        >>> dataset = ImageFiles(folder, files, labels=[0, 1], size=70)
        >>> image, label, index = dataset[1]
        >>> image.shape, label, index
        (torch.Size([3, 70, 70]), 1, 1)
    """

    can_skip = True

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        labels: Sequence[int] | Tensor,
        size: int,
        index: Tensor | None = None,
        float_resize: bool = True,
    ) -> None:
        self.folder = folder
        self.files = files if isinstance(files, PackedPaths) else PackedPaths(files)
        self.labels = torch.as_tensor(labels)
        self.size, self.float_resize = size, float_resize
        self.index = torch.arange(len(files)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        index = int(self.index[item])
        file, label = self.files[index], int(self.labels[index])
        if self.float_resize:
            return resize(read_image(file)[None], self.size)[0], label, index
        return read_resized(file, self.size), label, index

    def list_labels(self) -> Tensor:
        return self.labels[self.index]

    def digest(self) -> str:
        return digest_files([self.files[index] for index in self.index.tolist()], self.folder)

    def read_original(self, item: int) -> tuple[Tensor, int]:
        index = int(self.index[item])
        return read_image(self.files[index]), int(self.labels[index])


class CachedImageFiles(ImageTensors):
    """Image files in a cache, decoded and resized; the digest is that of the files.

    Args:
        images: uint8 [n, 3, size, size], one for each file of `source`.
        source: The files.
    """

    def __init__(self, images: Tensor, source: ImageFiles) -> None:
        super().__init__(images, source.labels, source.index)
        self.source = source

    def digest(self) -> str:
        return self.source.digest()

    def read_original(self, item: int) -> tuple[Tensor, int]:
        return self.source.read_original(item)


class UnlabeledImageFiles(ImageDataset):
    """Image files of any size and mode, without labels.

    An item is the image, 0 as its label (`UNREADABLE` if it does not decode), and its index.

    Args:
        folder: The folder that `names` are relative to.
        files: The paths of the images.
        size: The side of the squares, in pixels; images are float [3, size, size]. With None,
            images are the largest central square in the original size, uint8 [3, side, side].
        skip: Whether a file that does not decode becomes a black image; otherwise it is an error.
    """

    has_unreadable = True

    def __init__(self, folder: Path, files: list[str], size: int | None, skip: bool = True) -> None:
        self.folder, self.files, self.size, self.skip = folder, files, size, skip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        label = 0
        try:
            image = read_image(self.files[item])
        except MisconfigurationException:
            if not self.skip:
                raise
            side = self.size or 8
            image, label = torch.zeros(3, side, side, dtype=torch.uint8), UNREADABLE
        if self.size is None:
            return center_crop(image, min(image.shape[1:])).contiguous(), label, item
        return resize(image[None], self.size)[0], label, item

    def names(self) -> list[str]:
        """Return the paths in the folder, in order; bytes that are not UTF-8 are escaped."""
        relative = (os.path.relpath(file, self.folder) for file in self.files)
        return [os.fsencode(name).decode(errors="backslashreplace") for name in relative]

    def estimate_mean_pixels(self, max_files: int = 100) -> float:
        """Estimate the mean number of pixels per image, from the headers of some files."""
        pixels = []
        for file in self.files[:: -(-len(self.files) // max_files)]:
            try:
                with open_image(read_content(file)) as image:
                    pixels.append(image.width * image.height)
            except UnreadableImageError:
                continue
        return sum(pixels) / max(len(pixels), 1)


class PackedPaths(Sequence[str]):
    """Paths in one array of bytes, which worker processes share.

    In a list, reading an item changes its reference count: each worker would soon have its own copy
    of the whole list (copy-on-write).
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, item: Any) -> Any:
        if isinstance(item, slice):
            return [self[index] for index in range(*item.indices(len(self)))]
        index = range(len(self))[item]
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


def read_image(path: str) -> Tensor:
    """Decode an image file to RGB, to the pixels that the served model gets.

    Returns:
        uint8 [3, height, width].

    Raises:
        MisconfigurationException: The file can't be read or is not a complete image.
    """
    try:
        pixels = read_rgb(path)
    except UnreadableImageError as error:
        raise MisconfigurationException(
            f"{error}, or skip files that do not decode by --data.unreadable=skip; `pyclassify "
            "prepare` checks every file"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_resized(path: str, size: int) -> Tensor:
    """Decode an image file and resize its central square as bytes, twice as fast as in floats.

    JPEGs are decoded by torchvision: its libjpeg-turbo gives the same pixels as Pillow, without
    Pillow's copies. Pixels differ from those of `resize(read_image(path))` by at most about one of
    256 levels.

    Returns:
        float [3, size, size], whole numbers of 0 to 255.

    Raises:
        MisconfigurationException: The file can't be read or is not a complete image.
    """
    return resize_rounded(read_quickly(path)[None], size)[0]


def read_quickly(path: str) -> Tensor:
    """Decode an image file to the pixels of `read_image`; JPEGs are decoded faster."""
    try:
        return _decode_jpeg(read_content(path))
    except Exception:  # `read_image` decodes it, or raises the error that names the file
        return read_image(path)


def _decode_jpeg(content: bytes) -> Tensor:
    if not content.startswith(b"\xff\xd8"):
        raise ValueError("not a JPEG")
    with open_image(content) as header:
        if header.mode not in ("L", "RGB"):
            raise ValueError("torchvision and Pillow convert CMYK to different colors")
        orientation = read_orientation(header)
    # A copy: torch warns of memory that can't be written.
    pixels = decode_jpeg(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    if orientation == 1:
        return pixels
    upright = turn_upright(pixels.permute(1, 2, 0).numpy(), orientation)
    return torch.from_numpy(np.ascontiguousarray(upright)).permute(2, 0, 1)
