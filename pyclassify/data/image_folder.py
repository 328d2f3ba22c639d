"""The data module of a folder of image files."""

import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from pyclassify.data import cache
from pyclassify.data.cache import LabeledImages, digest_files
from pyclassify.data.datasets import CachedImageFiles, ImageFiles
from pyclassify.data.loaders import init_worker
from pyclassify.utils.files import find_cache_folder

_BATCH_SIZE = 64  # images that a worker hands over
# To be raised with any change of the pixels that `datasets.read_resized` gives.
_FORMAT_VERSION = 1


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
    classes = [entry.name for entry in _list_visible(folder) if entry.is_dir()]
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
            files += _list_files(folder / name)
            labels += [label] * (len(files) - len(labels))
    if not files:
        raise MisconfigurationException(
            f"{folder} has no images in its folders; files that end in "
            f"{', '.join(IMG_EXTENSIONS)} count"
        )
    return files, labels


def list_all_images(folder: Path) -> list[str]:
    """List the images of a folder and of all folders in it, in an order as of `list_images`.

    Raises:
        MisconfigurationException: The folder is missing, or there is no image.
    """
    if not folder.is_dir():
        raise MisconfigurationException(
            f"{folder} is not a folder; to predict, data_path takes one with images in it, at any "
            "depth"
        )
    files = list(_list_files(folder))
    if not files:
        raise MisconfigurationException(
            f"{folder} has no images, nor have the folders in it; files that end in "
            f"{', '.join(IMG_EXTENSIONS)} count"
        )
    return files


def _list_files(folder: Path | str) -> Iterator[str]:
    for entry in _list_visible(folder):
        if entry.is_dir():
            yield from _list_files(entry.path)
        elif has_file_allowed_extension(entry.name, IMG_EXTENSIONS):
            yield entry.path


def _list_visible(folder: Path | str) -> list[os.DirEntry[str]]:
    # Hidden: .ipynb_checkpoints with copies of images, macOS's ._name beside each.
    entries = (entry for entry in os.scandir(folder) if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: entry.name)


def cache_images(files: ImageFiles, classes: Sequence[str], workers: int) -> CachedImageFiles:
    """Give what the files give, pixel by pixel, without reading them where that was done before.

    Of files with another content there is another cache file, as somebody may still train on this
    one.

    Args:
        files: The images, read quickly: their pixels are whole numbers, and fit in bytes.
        classes: The classes' names.
        workers: Processes that decode.

    Raises:
        MisconfigurationException: They would not fit in memory, or one does not decode.
    """
    made_by = [f"{library} {version(library)}" for library in ("pillow", "torch", "torchvision")]
    digest = digest_files(files.files, files.folder)
    source = f"{digest} {files.size} {', '.join(made_by)}, format {_FORMAT_VERSION}"
    name = f"{files.folder.absolute().name}-{files.size}-{sha256(source.encode()).hexdigest()[:12]}"
    content = cache.load_cached_images(
        find_cache_folder() / "scaled" / f"{name}.mapped",
        source,
        lambda: _decode_images(files, classes, workers),
    )
    return CachedImageFiles(content.images, files)


def _decode_images(files: ImageFiles, classes: Sequence[str], workers: int) -> LabeledImages:
    every = ImageFiles(files.folder, files.files, files.labels, files.size, exact=False)
    needed, free = 3 * files.size**2 * len(every), psutil.virtual_memory().available
    if needed > free:
        raise MisconfigurationException(
            f"{len(every)} images of {files.size} pixels take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free; lower data.resize, or leave data.cache out"
        )
    rank_zero_info(f"{files.folder}: scaling {len(every)} images, once ({needed / 1e9:.1f} GB)")
    images = torch.empty(len(every), 3, files.size, files.size, dtype=torch.uint8)
    loader = DataLoader(
        every,
        _BATCH_SIZE,
        num_workers=workers,
        worker_init_fn=init_worker,
        generator=torch.Generator(),  # the run's own numbers are as where the file is there
    )
    for pixels, _, places in loader:
        images[places] = pixels.byte()
    return LabeledImages(images, every.labels, list(classes))
