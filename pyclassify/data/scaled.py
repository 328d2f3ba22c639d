"""A folder's training images, decoded and scaled once, in one file for later epochs and runs."""

from collections.abc import Sequence
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import psutil
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.utils.data import DataLoader

from pyclassify.data import cache
from pyclassify.data.cache import Images
from pyclassify.data.datasets import ImageFiles, ImageTensors
from pyclassify.data.loaders import start_worker
from pyclassify.utils.files import user_folder

_AT_ONCE = 64  # images that a worker hands over

# To be raised with any change of the pixels that `decoding.read_scaled` gives.
_FORMAT = 1


def keep(
    files: ImageFiles, classes: Sequence[str], folder: Path, digest: str, workers: int
) -> ImageTensors:
    """Give what the files give, pixel by pixel, without reading them where that was done before.

    Args:
        files: The images, read quickly: their pixels are whole numbers, and fit in bytes.
        classes: The classes' names.
        folder: What the images are of.
        digest: Tells the files' content; of other content there is another file, as somebody may
            still train on this one.
        workers: Processes that decode.

    Raises:
        MisconfigurationException: They would not fit in memory, or one does not decode.
    """
    made_by = [f"{library} {version(library)}" for library in ("pillow", "torch", "torchvision")]
    source = f"{digest} {files.size} {', '.join(made_by)}, format {_FORMAT}"
    name = f"{folder.absolute().name}-{files.size}-{sha256(source.encode()).hexdigest()[:12]}"
    content = cache.share(
        user_folder() / "scaled" / f"{name}.mapped",
        source,
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
    loader = DataLoader(
        every,
        _AT_ONCE,
        num_workers=workers,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # the run's own numbers are as where the file is there
    )
    for pixels, _, places in loader:
        images[places] = pixels.byte()
    return Images(images, every.labels, list(classes))
