"""List the classes and images of a folder, and cache its images decoded and resized."""

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

from pyclassify.data.cache import LabeledImages, digest_files, load_cached_images
from pyclassify.data.datasets import CachedImageFiles, ImageFiles
from pyclassify.data.loaders import init_worker
from pyclassify.utils.files import find_cache_folder

_BATCH_SIZE = 64  # images that a worker returns at once
_FORMAT_VERSION = 1  # raise it with any change of the pixels of `datasets.read_resized`


def list_classes(folder: Path) -> list[str]:
    """List the classes of a folder: the names of its subfolders, sorted, without hidden ones.

    Args:
        folder: The folder of a split, such as train/.

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
    """List the images of a folder by class, in the same order on every machine.

    Args:
        folder: The folder of a split, with <class>/<image> at any depth below each class.
        classes: The names of the classes, by label; a class may be missing from the folder.

    Returns:
        The paths, and as many labels.

    Raises:
        MisconfigurationException: There is no image, or a class that is not in `classes`.
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
    """List the images of a folder at any depth, in the same order on every machine.

    Args:
        folder: Any folder; hidden files and folders are left out.

    Raises:
        MisconfigurationException: The folder is missing or has no images.
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


def cache_images(files: ImageFiles, classes: Sequence[str], num_workers: int) -> CachedImageFiles:
    """Decode and resize all images once, into a cache file that later epochs and runs map.

    The pixels are those of `files`. The cache file's name depends on the content of the files:
    another process may still train on the cache of what the folder held before.

    Args:
        files: The images, with `exact=False`: their pixels are whole numbers, which fit in bytes.
        classes: The names of the classes, by label.
        num_workers: Processes that decode.

    Raises:
        MisconfigurationException: The images do not fit in memory, or one does not decode.
    """
    made_by = [f"{library} {version(library)}" for library in ("pillow", "torch", "torchvision")]
    digest = digest_files(files.files, files.folder)
    source = f"{digest} {files.size} {', '.join(made_by)}, format {_FORMAT_VERSION}"
    name = f"{files.folder.absolute().name}-{files.size}-{sha256(source.encode()).hexdigest()[:12]}"
    content = load_cached_images(
        find_cache_folder() / "scaled" / f"{name}.mapped",
        source,
        lambda: _decode_images(files, classes, num_workers),
    )
    return CachedImageFiles(content.images, files)


def _decode_images(files: ImageFiles, classes: Sequence[str], num_workers: int) -> LabeledImages:
    dataset = ImageFiles(files.folder, files.files, files.labels, files.size, exact=False)
    needed, free = 3 * files.size**2 * len(dataset), psutil.virtual_memory().available
    if needed > free:
        raise MisconfigurationException(
            f"{len(dataset)} images of {files.size} pixels take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free; lower data.resize, or leave data.cache out"
        )
    rank_zero_info(f"{files.folder}: scaling {len(dataset)} images, once ({needed / 1e9:.1f} GB)")
    images = torch.empty(len(dataset), 3, files.size, files.size, dtype=torch.uint8)
    loader = DataLoader(
        dataset,
        _BATCH_SIZE,
        num_workers=num_workers,
        worker_init_fn=init_worker,
        # The default generator would advance in the run that writes the cache alone.
        generator=torch.Generator(),
    )
    for pixels, _, indices in loader:
        images[indices] = pixels.byte()
    return LabeledImages(images, dataset.labels, list(classes))


def _list_files(folder: Path | str) -> Iterator[str]:
    for entry in _list_visible(folder):
        if entry.is_dir():
            yield from _list_files(entry.path)
        elif has_file_allowed_extension(entry.name, IMG_EXTENSIONS):
            yield entry.path


def _list_visible(folder: Path | str) -> list[os.DirEntry[str]]:
    # Hidden files are no images of the set: copies in .ipynb_checkpoints, macOS's ._name files.
    entries = (entry for entry in os.scandir(folder) if not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: entry.name)
