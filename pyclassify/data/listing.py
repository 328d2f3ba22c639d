"""The images and classes of a folder, and what keeps many paths in little memory."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension


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
    files = list(_walk(folder))
    if not files:
        raise MisconfigurationException(
            f"{folder} has no images, nor have the folders in it; files that end in "
            f"{', '.join(IMG_EXTENSIONS)} count"
        )
    return files


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
