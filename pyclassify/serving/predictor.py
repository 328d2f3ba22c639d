"""Classify images in Python: files, folders, images of Pillow, arrays and tensors."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pyclassify.data.image_folder import list_all_images
from pyclassify.data.images import convert_to_rgb, read_rgb
from pyclassify.data.transforms import Preprocess
from pyclassify.serving.export import MAX_BATCH_PIXELS, group_by_size

_DECODED_TOGETHER = 16
_MAX_PENDING = 128  # decoded images that wait for others of the same size


class Predictor:
    """Classify images with a trained network; `pyclassify.load` returns one.

    Args:
        network: Maps uint8 [batch, 3, height, width] to probabilities, float32 [batch, classes].
        classes: The names of the classes, by label.
        preprocess: Maps uint8 [batch, 3, height, width] to the network's input; None if that is
            known to the network alone.

    Attributes:
        classes: The names of the classes, by label.
        preprocess: The preprocessing of images of any size, for your own evaluations.

    Example:
        >>> from pyclassify import load
        >>> network = load("models:/alexnet@champion")
        >>> network.predict("photos", top_k=1)[0]
        {'classes': ['cat'], 'probabilities': [0.93]}
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        classes: Sequence[str],
        preprocess: Preprocess | None = None,
    ) -> None:
        self._network = network
        self.classes, self.preprocess = [*classes], preprocess

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.classes)} classes)"

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Compute the probabilities of the classes.

        Args:
            images: uint8 [batch, 3, height, width] of any size, values 0 to 255.

        Returns:
            float32 [batch, classes].

        Raises:
            TypeError: The images are not uint8.
            ValueError: The images do not have this shape.
        """
        if images.dtype != torch.uint8:
            raise TypeError(
                f"invalid images of {images.dtype} (expected torch.uint8, values 0 to 255, which "
                "are preprocessed here)"
            )
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"invalid shape of images: {[*images.shape]} (expected [batch, 3, height, width])"
            )
        return self._network(images.contiguous())

    def predict(
        self, images: Any, top_k: int | None = None, progress: bool | None = None
    ) -> list[dict[str, list[Any]]]:
        """Classify images.

        Args:
            images: A file, a folder of images at any depth, an image of Pillow, uint8 pixels, or
                a list of these. Pixels are an array [height, width, 3] (or [height, width] in
                grayscale), or a tensor [3, height, width]; or several with one more dimension in
                front.
            top_k: The number of classes to return for each image; by default 5, or all if there
                are fewer.
            progress: Whether to show a progress bar; by default for more than 16 images.

        Returns:
            `classes` and `probabilities` of each image, the most probable class first. The files
            of a folder are in the order of `pyclassify predict`.

        Raises:
            UnreadableImageError: A file can't be decoded.
            MisconfigurationException: A folder has no images.
            TypeError: An image is none of these.
            ValueError: `top_k` is out of range, or pixels have another shape.
        """
        if top_k is None:
            top_k = min(5, len(self.classes))
        if not 1 <= top_k <= len(self.classes):
            raise ValueError(
                f"invalid top_k: {top_k} (expected 1 to {len(self.classes)}, the number of classes)"
            )
        found = [*_list_images(images)]
        predictions: list[Any] = [None] * len(found)
        for indices, batch in _make_batches(_show_progress(found, progress)):
            best = self(batch).topk(top_k)
            rows = zip(indices, best.values.tolist(), best.indices.tolist(), strict=True)
            for index, probabilities, labels in rows:
                names = [self.classes[label] for label in labels]
                predictions[index] = {"classes": names, "probabilities": probabilities}
        return predictions


def _list_images(images: Any) -> Iterator[Any]:
    """List images one by one: the files of folders, and the images of a batch."""
    if isinstance(images, str | Path):
        path = Path(images).expanduser()
        yield from list_all_images(path)[0] if path.is_dir() else [str(path)]
    elif isinstance(images, np.ndarray | Tensor) and images.ndim == 4:
        yield from images
    elif isinstance(images, Iterable) and not isinstance(images, np.ndarray | Tensor | Image.Image):
        for image in images:
            yield from _list_images(image)
    else:
        yield images


def _show_progress(images: list[Any], progress: bool | None) -> Iterable[Any]:
    if not (len(images) > _DECODED_TOGETHER if progress is None else progress):
        return images
    from tqdm.auto import tqdm

    return tqdm(images, desc="predict", unit=" images")


def _make_batches(images: Iterable[Any]) -> Iterator[tuple[list[int], Tensor]]:
    """Decode images, and stack those of one size; few enough of them wait for others."""
    pending: list[Tensor] = []
    start = pixels = 0
    rest = iter(images)
    with ThreadPoolExecutor() as pool:
        while chunk := [*islice(rest, _DECODED_TOGETHER)]:
            decoded = [*pool.map(_decode, chunk)]
            pending += decoded
            pixels += sum(image.shape[1:].numel() for image in decoded)
            if len(pending) >= _MAX_PENDING or pixels > MAX_BATCH_PIXELS:
                yield from _shift(group_by_size(pending), start)
                start, pixels = start + len(pending), 0
                pending = []
    yield from _shift(group_by_size(pending), start)


def _shift(
    groups: Iterable[tuple[list[int], Tensor]], start: int
) -> Iterator[tuple[list[int], Tensor]]:
    for indices, batch in groups:
        yield [start + index for index in indices], batch


def _decode(image: Any) -> Tensor:
    """Decode a file or an image to uint8 [1 or 3, height, width]."""
    if isinstance(image, str):
        image = read_rgb(image)
    elif isinstance(image, Image.Image):
        image = convert_to_rgb(image)
    if isinstance(image, np.ndarray):
        pixels = np.ascontiguousarray(image if image.ndim == 3 else image[..., None])
        if not pixels.flags.writeable:
            pixels = pixels.copy()  # torch warns of arrays that it can't write to
        image = torch.from_numpy(pixels).movedim(-1, 0)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"invalid image of type {type(image).__name__} (expected a path, an image of Pillow, "
            "an array or a tensor)"
        )
    if image.dtype != torch.uint8:
        raise TypeError(f"invalid image of {image.dtype} (expected uint8, values 0 to 255)")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.numel():
        raise ValueError(
            f"invalid shape of an image: {[*image.shape]} as [channels, height, width] (expected 1 "
            "or 3 channels: an array is [height, width, 3], a tensor [3, height, width])"
        )
    return image
