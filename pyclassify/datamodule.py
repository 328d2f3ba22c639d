"""Data modules: where images and labels come from, named on the command line by --data."""

import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from pyclassify import shapes
from pyclassify.datasets import ImageFiles, ImageTensors, list_classes, list_images
from pyclassify.digest import digest_files
from pyclassify.download import fetch
from pyclassify.loading import ImageDataModule

# What each stage of Lightning's asks for; predicting takes the test images as well.
PARTS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


class TorchvisionDataModule(ImageDataModule):
    """One of torchvision's data sets, kept in memory as bytes.

    Args:
        name: Which: CIFAR10, CIFAR100, FashionMNIST, KMNIST, MNIST or SVHN.
        data_path: The folder of the downloaded files; `pyclassify` in the user's cache folder by
            default.
        val_size: How many training images are held out for validation.
        split_seed: Decides which are; the run's seed does not, so that runs with other seeds are
            judged on the same images.
    """

    NUM_CLASSES: ClassVar = {
        "CIFAR10": 10,
        "CIFAR100": 100,
        "FashionMNIST": 10,
        "KMNIST": 10,
        "MNIST": 10,
        "SVHN": 10,
    }

    def __init__(
        self,
        name: str,
        data_path: str | None = None,
        val_size: int = 5000,
        split_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if name not in self.NUM_CLASSES:
            raise MisconfigurationException(
                f"name is {name!r}; the data sets here are {', '.join(self.NUM_CLASSES)}"
            )
        self.set_name, self.val_size, self.split_seed = name, val_size, split_seed
        self.data_path = Path(data_path).expanduser() if data_path else user_folder()
        self._halves: dict[bool, tuple[Tensor, Tensor]] = {}

    @property
    def num_classes(self) -> int:
        return self.NUM_CLASSES[self.set_name]

    def prepare_data(self) -> None:
        for train in (True, False):
            self._half(train)

    def setup(self, stage: str) -> None:
        for part in PARTS[stage]:
            images, labels = self._half(train=part != "test")
            index = None
            if part != "test":
                index = split(len(images), self.val_size, self.split_seed)[part]
            setattr(self, part, ImageTensors(images, labels, index))

    def _half(self, train: bool) -> tuple[Tensor, Tensor]:
        # Kept, since to read a half is to hash all of its files.
        if train not in self._halves:
            dataset = fetch(self.set_name, self.data_path, train)
            self.classes = getattr(dataset, "classes", [str(n) for n in range(self.num_classes)])
            images = torch.as_tensor(dataset.data)
            if images.ndim == 3:  # grey: [n, height, width]
                images = images[:, None]
            elif images.shape[-1] == 3:
                images = images.permute(0, 3, 1, 2)
            labels = dataset.labels if self.set_name == "SVHN" else dataset.targets
            self._halves[train] = images.contiguous(), torch.as_tensor(labels, dtype=torch.int64)
        return self._halves[train]


class CIFAR10DataModule(TorchvisionDataModule):
    """CIFAR-10 (Krizhevsky, 2009): 45,000 training, 5,000 validation and 10,000 test images.

    Args:
        data_path: The folder of the downloaded files; `pyclassify` in the user's cache folder by
            default.
        mean: Each channel's mean, in 0..1, that normalisation takes off.
        std: Each channel's standard deviation that it divides by.
    """

    def __init__(
        self,
        data_path: str | None = None,
        mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465),
        std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616),
        **kwargs: Any,
    ) -> None:
        super().__init__("CIFAR10", data_path, mean=mean, std=std, **kwargs)


class MNISTDataModule(TorchvisionDataModule):
    """MNIST (LeCun et al., 1998) as grey images in three channels, never mirrored by default.

    Args:
        data_path: The folder of the downloaded files; `pyclassify` in the user's cache folder by
            default.
        flip: Whether training mirrors half of the images.
    """

    def __init__(self, data_path: str | None = None, flip: bool = False, **kwargs: Any) -> None:
        super().__init__("MNIST", data_path, flip=flip, **kwargs)


class SyntheticDataModule(ImageDataModule):
    """Ten classes of shapes, drawn on the spot: for a machine with no network.

    Args:
        train_size: How many training images to draw.
        val_size: How many validation images.
        test_size: How many test images.
        draw_seed: Decides the drawings; the run's seed does not.
    """

    classes = shapes.CLASSES

    def __init__(
        self,
        train_size: int = 4000,
        val_size: int = 1000,
        test_size: int = 1000,
        draw_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        self.draw_seed = draw_seed

    def setup(self, stage: str) -> None:
        for part in PARTS[stage]:
            seed = 3 * self.draw_seed + list(self.sizes).index(part)
            setattr(self, part, ImageTensors(*shapes.draw(self.sizes[part], seed)))


class ImageFolderDataModule(ImageDataModule):
    """A folder of images of any size: train/<class>/<image>, and val/ and test/ likewise.

    The classes are train's folders. Where there is no val/, a part of train/ is held out.

    Args:
        data_path: The folder that holds train/.
        val_size: The part of the training images held out where there is no val/, in 0..1.
        split_seed: Decides which are; the run's seed does not.
        mean: Each channel's mean, in 0..1, that normalisation takes off; ImageNet's by default.
        std: Each channel's standard deviation that it divides by; ImageNet's by default.
        num_workers: Processes that decode images, beside each training process.
    """

    def __init__(
        self,
        data_path: str,
        val_size: float = 0.1,
        split_seed: int = 0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        num_workers: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(mean=mean, std=std, **kwargs)
        if not 0 < val_size < 1:
            raise MisconfigurationException(
                f"val_size is {val_size}; give the part of the training images to hold out for "
                "validation, between 0 and 1"
            )
        if num_workers < 0:
            raise MisconfigurationException(f"num_workers is {num_workers}; give 0 or more")
        self.data_path = Path(data_path).expanduser()
        self.val_size, self.split_seed, self.num_workers = val_size, split_seed, num_workers
        self.classes = list_classes(self.data_path / "train")
        self._listed: dict[str, tuple[list[str], list[int]]] = {}

    def setup(self, stage: str) -> None:
        for part in PARTS[stage]:
            shared = part != "test" and not (self.data_path / "val").is_dir()
            files, labels = self._list("train" if shared else part)
            index = None
            if shared:
                held_out = max(1, round(len(files) * self.val_size))
                index = split(len(files), held_out, self.split_seed)[part]
            setattr(self, part, ImageFiles(files, labels, self.preprocess.resize, index))

    def digest(self) -> dict[str, str]:
        """Tell the data by their content: a digest of each set whose files are listed."""
        filled = {part: vars(self).get(part) for part in ("train", "val", "test")}
        return {
            part: digest_files(
                [each.files[place] for place in each.index.tolist()],
                self.data_path,
                user_folder() / "digests.json",
            )
            for part, each in filled.items()
            if isinstance(each, ImageFiles)
        }

    def _list(self, folder: str) -> tuple[list[str], list[int]]:
        # Kept, since a large folder takes minutes to walk on a cluster's file system.
        if folder not in self._listed:
            files, labels = list_images(self.data_path / folder, self.classes)
            empty = sorted(set(range(self.num_classes)) - set(labels))
            if folder == "train" and empty:
                raise MisconfigurationException(
                    f"{self.data_path / folder / self.classes[empty[0]]} has no images; add those "
                    "of the class, or remove the folder"
                )
            self._listed[folder] = files, labels
        return self._listed[folder]


def user_folder() -> Path:
    """The cache folder of this project (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyclassify"


def split(count: int, held_out: int, seed: int) -> dict[str, Tensor]:
    """Share out images at random between training and validation.

    Args:
        count: How many images there are.
        held_out: How many of them are for validation.
        seed: Decides which.

    Returns:
        Places among the images, "train" and "val", each int64 and in order.

    Raises:
        MisconfigurationException: Training or validation would get no image.
    """
    if not 0 < held_out < count:
        raise MisconfigurationException(
            f"{held_out} images can't be held out of {count} for validation; change val_size so "
            "that both training and validation get some"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return {"train": order[held_out:].sort().values, "val": order[:held_out].sort().values}
