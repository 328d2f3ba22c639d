"""Data sets of images in memory and in files, with the capabilities that each of them has."""

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
    """A data set of (image, label, index), with the capabilities that loaders and tracking ask for.

    The reader of a new format is a subclass, which states here what it can do.

    Attributes:
        in_memory: Whether `__getitems__` returns a whole batch; it is then loaded without workers.
        can_skip: Whether an item is the same when the items before it were not read, so that
            training resumes in the middle of an epoch without reading them.
        has_unreadable: Whether an image that does not decode has the label `UNREADABLE`; the
            data set then has the paths of its images as `files`.

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
        """Digest the images and labels; None where the content is not known."""
        return None

    def names(self) -> list[str] | None:
        """Name each image, in order; None where images have an index alone."""
        return None

    def list_labels(self) -> Tensor | None:
        """List the label of each image, in order, int64 [n]; None where reading them takes long."""
        return None

    def read_original(self, item: int) -> tuple[Tensor, int]:
        """Read an image before any resize, uint8 [1 or 3, height, width], and its label."""
        image, label, *_ = self[item]
        return image, int(label)


class ImageTensors(ImageDataset):
    """Images of one size in memory, fetched a batch at a time without copying the data set.

    Args:
        images: uint8 [n, 1 or 3, height, width].
        labels: int64 [n].
        index: Which of the n images belong to this data set, int64; all of them by default.

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
        """Fetch a batch at once (the protocol of torch's map-style fetcher)."""
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
        index: Which of the files belong to this data set, int64; all of them by default.
        float_resize: Whether images are resized in floats, to pixels that are bitwise identical to
            those of the served model. Otherwise they are resized as bytes, in half the time.

    Example:
        >>> folder = Path("photos/train")
        >>> files = [str(folder / "cat/1.jpg"), str(folder / "dog/1.jpg")]
        >>> dataset = ImageFiles(folder, files, labels=[0, 1], size=70)
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
    """Image files that were decoded and resized before; their digest is that of the files.

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

    An item is the image, 0 (`UNREADABLE` where it does not decode), and its index.

    Args:
        folder: The folder that `names` are relative to.
        files: The paths of the images.
        size: The side of the squares, in pixels: float [3, size, size]. None gives the largest
            central square of each image in its own size, uint8 [3, side, side].
        skip: Whether a file that does not decode becomes a black image; otherwise it raises.
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
        """List the paths in the folder, in order, with bytes that are not UTF-8 escaped."""
        relative = (os.path.relpath(file, self.folder) for file in self.files)
        return [os.fsencode(name).decode(errors="backslashreplace") for name in relative]

    def estimate_mean_pixels(self, max_files: int = 100) -> float:
        """Estimate the mean number of pixels an image from the headers of at most `max_files`."""
        pixels = []
        for file in self.files[:: -(-len(self.files) // max_files)]:
            try:
                with open_image(read_content(file)) as image:
                    pixels.append(image.width * image.height)
            except UnreadableImageError:
                continue
        return sum(pixels) / max(len(pixels), 1)


class PackedPaths(Sequence[str]):
    """Paths in one array of bytes, which workers share.

    Reading an item of a list changes its reference count, so that each worker would soon have its
    own copy of the whole list (copy-on-write).
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
    """Decode an image file to RGB, as a served model decodes it.

    Returns:
        uint8 [3, height, width].

    Raises:
        MisconfigurationException: The file can't be read or is not a complete image.
    """
    try:
        pixels = read_rgb(path)
    except UnreadableImageError as error:
        raise MisconfigurationException(
            f"{error}, or leave out what does not decode by --data.unreadable skip; `pyclassify "
            "prepare` looks at every file"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_resized(path: str, size: int) -> Tensor:
    """Decode an image file and resize its central square, in less than half the time of `resize`.

    JPEGs are decoded by torchvision: its libjpeg-turbo gives the same pixels as Pillow without
    Pillow's copies. Images are resized as bytes. Pixels differ from `resize` of `read_image` by
    about one of 256 levels at most.

    Returns:
        float [3, size, size], whole numbers of 0 to 255.

    Raises:
        MisconfigurationException: The file can't be read or is not a complete image.
    """
    return resize_rounded(read_quickly(path)[None], size)[0]


def read_quickly(path: str) -> Tensor:
    """Decode an image file to the pixels of `read_image`, JPEGs in less time."""
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
