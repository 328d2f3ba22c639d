"""What a version of a registered model answers to the images that another was tested on."""

import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyclassify.data.datasets import ImageFiles, read_image
from pyclassify.serving.export import PIXELS, PROGRAM, load
from pyclassify.tracking.prediction_table import Answers

BATCH = 128  # images of one size that are classified together


def answer(
    client: Any,
    name: str,
    version: str,
    dataset: Dataset[Any],
    classes: Sequence[str],
    places: Collection[int] | None = None,
) -> Answers:
    """Classify images by a version, on the CPU.

    Args:
        client: An `MlflowClient`.
        name: The registered model.
        version: Its version.
        dataset: Gives (image, label, ...), the image uint8 [1 or 3, height, width].
        classes: The classes' names, by label.
        places: The places of the images in their set; all of them by default.

    Returns:
        For each place its label's name, and whether the version has it right.

    Raises:
        ValueError: The version was made for other classes, or the data set gives no bytes.
        mlflow.exceptions.MlflowException: The version's files can't be had.
    """
    program, names = _load(client, name, version)
    if sorted(names) != sorted(classes):
        raise ValueError(
            f"version {version} tells {len(names)} classes apart ({', '.join(names[:3])}, ...), "
            f"and the images are of {len(classes)} ({', '.join(classes[:3])}, ...)"
        )
    answers: Answers = {}
    for images, numbers, labels in _group(dataset, places):
        with torch.inference_mode():
            best = program(images).argmax(dim=1).tolist()
        for place, label, guess in zip(numbers, labels, best, strict=True):
            answers[place] = (classes[label], classes[label] == names[guess])
    return answers


def _load(client: Any, name: str, version: str) -> tuple[Any, list[str]]:
    import mlflow

    source = client.get_model_version_download_uri(name, version)
    with tempfile.TemporaryDirectory() as folder:
        path = mlflow.artifacts.download_artifacts(
            artifact_uri=f"{source}/{PROGRAM}",
            dst_path=folder,
            tracking_uri=client.tracking_uri,
        )
        program, names = load(path)
    return program.module(), names


def _group(
    dataset: Any, places: Collection[int] | None
) -> Iterator[tuple[Tensor, list[int], list[int]]]:
    """Images of one size together, with their places and labels."""
    groups: dict[torch.Size, list[tuple[Tensor, int, int]]] = defaultdict(list)
    index = getattr(dataset, "index", range(len(dataset)))
    pixels = 0
    for item, place in enumerate(map(int, index)):
        if places is not None and place not in places:
            continue
        if isinstance(dataset, ImageFiles):  # whole, as each version sees another part of it
            image, label = read_image(dataset.files[place]), int(dataset.labels[place])
        else:
            image, label, *_ = dataset[item]
        if image.dtype != torch.uint8:
            raise ValueError(f"the data set gives {image.dtype} and not the images' bytes")
        group = groups[image.shape]
        group.append((image.expand(3, -1, -1), place, int(label)))
        pixels += image.shape[1] * image.shape[2]
        if len(group) == BATCH or pixels > PIXELS:
            yield from map(_stack, groups.values())
            groups.clear()
            pixels = 0
    yield from map(_stack, groups.values())


def _stack(group: list[tuple[Tensor, int, int]]) -> tuple[Tensor, list[int], list[int]]:
    images, places, labels = zip(*group, strict=True)
    return torch.stack(images), list(places), list(labels)
