"""Data modules: where images and labels come from, named on the command line by --data."""

import os
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision.datasets
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from pyclassify import shapes
from pyclassify.datasets import ImageFiles, ImageTensors, download, list_classes, list_images
from pyclassify.loading import ImageDataModule


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

    @property
    def num_classes(self) -> int:
        return self.NUM_CLASSES[self.set_name]

    def prepare_data(self) -> None:
        for train in (True, False):
            download(partial(self._build, train), self.set_name, self.data_path)

    def setup(self, stage: str) -> None:
        if stage in ("fit", "validate"):
            images, labels = self._read(train=True)
            left, held_out = split(len(images), self.val_size, self.split_seed)
            self.train = ImageTensors(images, labels, left)
            self.val = ImageTensors(images, labels, held_out)
        else:
            self.test = ImageTensors(*self._read(train=False))

    def _build(self, train: bool, **kwargs: Any) -> Any:
        half = (
            {"split": "train" if train else "test"} if self.set_name == "SVHN" else {"train": train}
        )
        return getattr(torchvision.datasets, self.set_name)(self.data_path, **half, **kwargs)

    def _read(self, train: bool) -> tuple[Tensor, Tensor]:
        dataset = self._build(train)
        self.classes = getattr(dataset, "classes", [str(n) for n in range(self.num_classes)])
        images = torch.as_tensor(dataset.data)
        if images.ndim == 3:  # grey: [n, height, width]
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)
        labels = dataset.labels if self.set_name == "SVHN" else dataset.targets
        return images.contiguous(), torch.as_tensor(labels, dtype=torch.int64)


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
        for part in ("train", "val") if stage in ("fit", "validate") else ("test",):
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
        self.data_path = Path(data_path).expanduser()
        self.val_size, self.split_seed, self.num_workers = val_size, split_seed, num_workers
        self.classes = list_classes(self.data_path / "train")

    def prepare_data(self) -> None:
        list_images(self.data_path / "train", self.classes)

    def setup(self, stage: str) -> None:
        if stage not in ("fit", "validate"):
            self.test = self._read("test")
        elif (self.data_path / "val").is_dir():
            self.train, self.val = self._read("train"), self._read("val")
        else:
            everything = self._read("train")
            count = len(everything)
            left, held_out = split(count, round(count * self.val_size), self.split_seed)
            self.train, self.val = self._read("train", left), self._read("train", held_out)

    def _read(self, part: str, index: Tensor | None = None) -> ImageFiles:
        files, labels = list_images(self.data_path / part, self.classes)
        return ImageFiles(files, labels, self.preprocess.resize, index)


def user_folder() -> Path:
    """The cache folder of this project (XDG Base Directory Specification)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyclassify"


def split(count: int, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Share out `count` images at random: what is left, and what is held out, both in order."""
    if not 0 < held_out < count:
        raise MisconfigurationException(
            f"{held_out} images can't be held out of {count} for validation; give val_size as "
            f"1 to {count - 1}"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held_out:].sort().values, order[:held_out].sort().values
