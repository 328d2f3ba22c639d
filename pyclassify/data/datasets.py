"""Data sets of images in memory and of image files, and what each of them can do."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_jpeg

from pyclassify.data.cache import digest_files, digest_tensors
from pyclassify.data.images import convert_to_rgb
from pyclassify.data.transforms import center_crop, resize, resize_rounded

UNREADABLE = -1


class ImageDataset(Dataset[Any]):
    """A set of (image, label, index), and its capabilities, which loaders and tracking ask for.

    A reader of another format states its own here, in place of being named where they matter.

    Attributes:
        in_memory: Whether `__getitems__` fetches a whole batch in one go, without a worker.
        can_skip: Whether an item is the same though the items before it were not read, so that
            training can resume in the middle of an epoch without reading them.
        has_unreadable: Whether the label of an image that does not decode is `UNREADABLE`; then
            the set has the paths of its images as `files`.

    Example:
        >>> class Zeros(ImageDataset):
        ...     can_skip = True
        ...
        ...     def __len__(self):
        ...         return 4
        ...
        ...     def __getitem__(self, item):
        ...         return torch.zeros(3, 8, 8, dtype=torch.uint8), 0, item
        >>> Zeros().digest() is None
        True
    """

    in_memory: ClassVar[bool] = False
    can_skip: ClassVar[bool] = False
    has_unreadable: ClassVar[bool] = False

    def digest(self) -> str | None:
        """Digest the images and labels of the set; None where that is not supported."""
        return None

    def names(self) -> list[str] | None:
        """Name the images in the order of the set; None where they have only an index."""
        return None

    def read_original(self, item: int) -> tuple[Tensor, int]:
        """Read an image, uint8 [1 or 3, height, width] before any resize, and its label."""
        image, label, *_ = self[item]
        return image, int(label)


class ImageTensors(ImageDataset):
    """Images of one size in memory, fetched a batch at a time without copying the set.

    Args:
        images: uint8 [n, 1 or 3, height, width].
        labels: int64 [n].
        index: Which of the n images belong to this set, int64; all of them by default.
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
        """Fetch a batch in one go (the protocol of torch's map-style fetcher)."""
        index = self.index[items]
        return self.images[index], self.labels[index], index

    def digest(self) -> str:
        return digest_tensors(self.images, self.labels, self.index)


class ImageFiles(ImageDataset):
    """Image files of any size and mode, decoded and resized one by one.

    Args:
        folder: The folder that the digest's paths are relative to.
        files: The images' paths.
        labels: Their labels, as many.
        size: The side of the squares that are handed out, in pixels.
        index: Which of the files belong to this set; all of them by default.
        exact: Whether pixels are to the last bit those of the served model.
    """

    can_skip = True

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        labels: Sequence[int] | Tensor,
        size: int,
        index: Tensor | None = None,
        exact: bool = True,
    ) -> None:
        self.folder = folder
        self.files = files if isinstance(files, PackedPaths) else PackedPaths(files)
        self.labels = torch.as_tensor(labels)
        self.size, self.exact = size, exact
        self.index = torch.arange(len(files)) if index is None else index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        index = int(self.index[item])
        file, label = self.files[index], int(self.labels[index])
        if self.exact:
            return resize(read_image(file)[None], self.size)[0], label, index
        return read_resized(file, self.size), label, index

    def digest(self) -> str:
        return digest_files([self.files[index] for index in self.index.tolist()], self.folder)

    def read_original(self, item: int) -> tuple[Tensor, int]:
        index = int(self.index[item])
        return read_image(self.files[index]), int(self.labels[index])


class CachedImageFiles(ImageTensors):
    """The images of files, decoded and resized before; known by the content of the files.

    Args:
        images: uint8 [n, 3, size, size], one for each of the files.
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

    An item is the image, 0 (or `UNREADABLE` where it does not decode) and its index.

    Args:
        folder: The folder that the files' names are relative to.
        files: The images' paths.
        size: The side of the squares that are handed out, in pixels; without it, the bytes of the
            largest square in the middle of each image.
        skip: Whether a file that does not decode is handed out as a black image.
    """

    has_unreadable = True

    def __init__(self, folder: Path, files: list[str], size: int | None, skip: bool = True) -> None:
        self.folder, self.files, self.size, self.skip = folder, files, size, skip

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, item: int) -> tuple[Tensor, int, int]:
        state = 0
        try:
            image = read_image(self.files[item])
        except MisconfigurationException:
            if not self.skip:
                raise
            side = self.size or 8
            image, state = torch.zeros(3, side, side, dtype=torch.uint8), UNREADABLE
        if self.size is None:
            return center_crop(image, min(image.shape[1:])).contiguous(), state, item
        return resize(image[None], self.size)[0], state, item

    def names(self) -> list[str]:
        """The files' names in the folder, in order; what is not UTF-8 in them is escaped."""
        relative = (os.path.relpath(file, self.folder) for file in self.files)
        return [os.fsencode(name).decode(errors="backslashreplace") for name in relative]

    def mean_pixels(self, most: int = 100) -> float:
        """How many pixels an image has, by the headers of some of the files."""
        pixels = []
        for file in self.files[:: -(-len(self.files) // most)]:
            try:
                with Image.open(file) as image:
                    pixels.append(image.width * image.height)
            except Exception:  # as in `read_image`
                continue
        return sum(pixels) / max(len(pixels), 1)


class PackedPaths(Sequence[str]):
    """Paths in one array of bytes.

    Of a list, each process that reads an item gets a copy of the page that it is on, as Python
    counts references in the item itself: soon of the whole list, in each worker.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        encoded = [os.fsencode(path) for path in paths]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        place = range(len(self))[place]
        return os.fsdecode(self._bytes[self._ends[place] : self._ends[place + 1]].tobytes())


def read_image(path: str) -> Tensor:
    """Decode an image file, turned as its EXIF orientation says.

    Returns:
        uint8 [3, height, width].

    Raises:
        MisconfigurationException: The file can't be read or is not a whole image.
    """
    try:
        with Image.open(path) as image:
            pixels = convert_to_rgb(image)
    except Exception as error:  # a decoder raises whatever a broken file makes it stumble over
        reason = str(error) or repr(error)
        raise MisconfigurationException(
            f"{path} does not decode as an image ({reason}); repair it or remove it"
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_resized(path: str, size: int) -> Tensor:
    """Decode an image file and scale its central square, in less than half the time.

    A JPEG is decoded by torchvision, whose libjpeg-turbo gives Pillow's pixels without Pillow's
    copies, and all images are scaled as bytes, as Pillow does it: what comes out is about one of
    256 levels off `resize` of `read_image` at most.

    Returns:
        float [3, size, size], whole numbers of 0 to 255.

    Raises:
        MisconfigurationException: As `read_image`.
    """
    try:
        image = _read_jpeg(path)
    except Exception:  # whatever it was: `read_image` decodes it, or finds the words for it
        image = read_image(path)
    return resize_rounded(image[None], size)[0]


def _read_jpeg(path: str) -> Tensor:
    with Image.open(path, formats=["JPEG"]) as image:
        if image.mode == "CMYK":
            raise ValueError("each library makes colours of its own of CMYK")
        if b"tiff:Orientation" in image.info.get("xmp", b""):
            raise ValueError("torchvision follows no orientation that is told in XMP")
    content = torch.from_numpy(np.fromfile(path, np.uint8))
    return decode_jpeg(content, ImageReadMode.RGB, apply_exif_orientation=True)
