"""Data modules: where images and labels come from, named on the command line by --data."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.data import cache, synthetic
from pyclassify.data.cache import Images
from pyclassify.data.datasets import ImageTensors
from pyclassify.data.download import checksums, fetch, user_folder
from pyclassify.data.image_folder import ImageFolderDataModule as ImageFolderDataModule
from pyclassify.data.loaders import ImageDataModule
from pyclassify.data.parts import PARTS, split


class TorchvisionDataModule(ImageDataModule):
    """One of torchvision's data sets, kept in memory as bytes, once for all processes of a machine.

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
        self._halves: dict[bool, Images] = {}

    @property
    def num_classes(self) -> int:
        return self.NUM_CLASSES[self.set_name]

    def prepare_data(self) -> None:
        for train in (True, False):
            self._half(train)

    def setup(self, stage: str) -> None:
        for part in PARTS[stage]:
            images, labels, _ = self._half(train=part != "test")
            index = None
            if part != "test":
                index = split(len(images), self.val_size, self.split_seed)[part]
            setattr(self, part, ImageTensors(images, labels, index))

    def _half(self, train: bool) -> Images:
        # Kept, since to look at a half is to hash all of it.
        if train not in self._halves:
            half = "train" if train else "test"
            self._halves[train] = cache.share(
                self.data_path / f"{self.set_name}-{half}.mapped",
                " ".join(checksums(self.set_name, train)),
                lambda: self._read(train),
            )
            self.classes = self._halves[train].classes
        return self._halves[train]

    def _read(self, train: bool) -> Images:
        dataset = fetch(self.set_name, self.data_path, train)
        images = torch.as_tensor(dataset.data)
        if images.ndim == 3:  # grey: [n, height, width]
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)
        labels = dataset.labels if self.set_name == "SVHN" else dataset.targets
        classes = getattr(dataset, "classes", [str(n) for n in range(self.num_classes)])
        return Images(
            images.contiguous(), torch.as_tensor(labels, dtype=torch.int64), list(classes)
        )


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

    classes = synthetic.CLASSES

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
            setattr(self, part, ImageTensors(*synthetic.draw(self.sizes[part], seed)))
