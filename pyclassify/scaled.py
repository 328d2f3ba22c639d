"""A folder's training images, decoded and scaled once, in one file for later epochs and runs."""

import os
from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from pyclassify import mapped
from pyclassify.datasets import ImageFiles, ImageTensors
from pyclassify.download import user_folder
from pyclassify.mapped import Images

_AT_ONCE = 64  # images that a worker hands over


def keep(
    files: ImageFiles, classes: Sequence[str], folder: Path, digest: str, workers: int
) -> ImageTensors:
    """Give what the files give, pixel by pixel, without reading them where that was done before.

    Args:
        files: The images, read quickly: their pixels are whole numbers, and fit in bytes.
        classes: The classes' names.
        folder: What the images are of; with their size it names the file.
        digest: Tells the files' content: of other content the file is made again.
        workers: Processes that decode.

    Raises:
        MisconfigurationException: They would not fit in memory, or one does not decode.
    """
    name = sha256(os.fsencode(folder.absolute())).hexdigest()[:12]
    path = user_folder() / "scaled" / f"{folder.name}-{name}-{files.size}.mapped"
    made_by = [f"{library} {version(library)}" for library in ("pillow", "torch", "torchvision")]
    content = mapped.share(
        path,
        f"{digest} {files.size} {', '.join(made_by)}",
        lambda: _read(files, classes, folder, workers),
    )
    return ImageTensors(content.images, content.labels, files.index)


def _read(files: ImageFiles, classes: Sequence[str], folder: Path, workers: int) -> Images:
    every = ImageFiles(files.files, files.labels, files.size, exact=False)
    needed, free = 3 * files.size**2 * len(every), psutil.virtual_memory().available
    if needed > free:
        raise MisconfigurationException(
            f"{len(every)} images of {files.size} pixels take {needed / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB of memory are free; lower data.resize, or leave data.cache out"
        )
    rank_zero_info(f"{folder}: scaling {len(every)} images, once ({needed / 1e9:.1f} GB)")
    images = torch.empty(len(every), 3, files.size, files.size, dtype=torch.uint8)
    for pixels, _, places in DataLoader(every, _AT_ONCE, num_workers=workers):
        images[places] = pixels.byte()
    return Images(images, every.labels, list(classes))
