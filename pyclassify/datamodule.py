"""Data modules: where images and labels come from, named on the command line by --data."""

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader

from pyclassify.data import cache, synthetic
from pyclassify.data.cache import LabeledImages
from pyclassify.data.datasets import (
    CachedImageFiles,
    ImageFiles,
    ImageTensors,
    PackedPaths,
    UnlabeledImageFiles,
)
from pyclassify.data.download import fetch_dataset, list_checksums
from pyclassify.data.image_folder import (
    cache_images,
    list_all_images,
    list_classes,
    list_images,
)
from pyclassify.data.loaders import SPLITS, ImageDataModule, collate_varying_sizes, split_indices
from pyclassify.utils.files import find_cache_folder
from pyclassify.utils.launcher import count_workers

# Of a batch of images in their original sizes: 100 MB, of which a loader holds several.
MAX_BATCH_PIXELS = 2**25


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
        self.data_path = Path(data_path).expanduser() if data_path else find_cache_folder()
        self._halves: dict[bool, LabeledImages] = {}

    @property
    def num_classes(self) -> int:
        return self.NUM_CLASSES[self.set_name]

    def prepare_data(self) -> None:
        for train in (True, False):
            self._half(train)

    def setup(self, stage: str) -> None:
        for part in SPLITS[stage]:
            images, labels, _ = self._half(train=part != "test")
            index = None
            if part != "test":
                index = split_indices(len(images), self.val_size, self.split_seed)[part]
            setattr(self, part, ImageTensors(images, labels, index))

    def _half(self, train: bool) -> LabeledImages:
        # Kept, since to look at a half is to hash all of it.
        if train not in self._halves:
            half = "train" if train else "test"
            self._halves[train] = cache.load_cached_images(
                self.data_path / f"{self.set_name}-{half}.mapped",
                " ".join(list_checksums(self.set_name, train)),
                lambda: self._read(train),
            )
            self.classes = self._halves[train].classes
        return self._halves[train]

    def _read(self, train: bool) -> LabeledImages:
        dataset = fetch_dataset(self.set_name, self.data_path, train)
        images = torch.as_tensor(dataset.data)
        if images.ndim == 3:  # grey: [n, height, width]
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)
        labels = dataset.labels if self.set_name == "SVHN" else dataset.targets
        classes = getattr(dataset, "classes", [str(n) for n in range(self.num_classes)])
        return LabeledImages(
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
        for part in SPLITS[stage]:
            seed = 3 * self.draw_seed + list(self.sizes).index(part)
            setattr(self, part, ImageTensors(*synthetic.generate_images(self.sizes[part], seed)))


class ImageFolderDataModule(ImageDataModule):
    """A folder of images of any size: train/<class>/<image>, and val/ and test/ likewise.

    The classes are train's folders. Where there is no val/, a part of train/ is held out. To
    predict, any folder does: its images at any depth are taken, and no labels are looked for.

    Args:
        data_path: The folder that holds train/, or to predict the images.
        classes: The classes' names, by label; by default train's folders, sorted, or to predict
            those of the checkpoint.
        unreadable: What to do, when predicting, with a file that does not decode: "skip" leaves
            its row without a label, "stop" ends with an error.
        val_size: The part of the training images held out where there is no val/, in 0..1.
        split_seed: Decides which are; the run's seed does not.
        mean: Each channel's mean, in 0..1, that normalisation takes off; ImageNet's by default.
        std: Each channel's standard deviation that it divides by; ImageNet's by default.
        exact: Whether training images too are to the last bit as validation, test and the served
            model have them. By default they are read in half the time, and about one of
            256 levels off at most: far less than what the crop changes.
        num_workers: Processes that decode images, beside each training process; by default one
            for each processor that it has but the one that it needs itself, 1 to 8.
        cache: Whether to decode and scale all images of train/ once, and keep them as one file in
            pyclassify/scaled in the user's cache folder (XDG_CACHE_HOME), 3 * resize^2 bytes an
            image. Later epochs and runs read that, and give the network the same pixels. For
            many small files, the more so on a network's file system.
    """

    def __init__(
        self,
        data_path: str,
        classes: list[str] | None = None,
        unreadable: Literal["skip", "stop"] = "skip",
        val_size: float = 0.1,
        split_seed: int = 0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        exact: bool = False,
        num_workers: int | None = None,
        cache: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(mean=mean, std=std, **kwargs)
        if not 0 < val_size < 1:
            raise MisconfigurationException(
                f"val_size is {val_size}; give the part of the training images to hold out for "
                "validation, between 0 and 1"
            )
        if num_workers is not None and num_workers < 0:
            raise MisconfigurationException(f"num_workers is {num_workers}; give 0 or more")
        if cache and exact:
            raise MisconfigurationException(
                "data.cache keeps pixels as whole numbers, which data.exact does not round to; "
                "give one of the two"
            )
        self.data_path = Path(data_path).expanduser()
        self.val_size, self.split_seed = val_size, split_seed
        self.unreadable, self.exact = unreadable, exact
        self.cache, self._workers = cache, num_workers
        self.num_workers = num_workers or 0
        if classes is not None:
            self.classes = list(classes)
        elif (self.data_path / "train").is_dir():
            self.classes = list_classes(self.data_path / "train")
        self._listed: dict[str, tuple[PackedPaths, Tensor]] = {}
        self._kept: CachedImageFiles | None = None

    def prepare_data(self) -> None:
        """Make the file of `cache`, if that is asked for; by one process a machine."""
        if self.cache and (self.trainer is None or self.trainer.state.fn == "fit"):
            self.setup("fit")

    def setup(self, stage: str) -> None:
        if self._workers is None:
            self.num_workers = count_workers(self.trainer.num_devices if self.trainer else 1)
        if stage == "predict":
            found = list_all_images(self.data_path)
            size = None if self._hands_out_bytes() else self.preprocess.resize
            skip = self.unreadable == "skip"
            self.scored = UnlabeledImageFiles(self.data_path, found, size, skip)
            return
        for part in SPLITS[stage]:
            shared = part != "test" and not (self.data_path / "val").is_dir()
            files, labels = self._list("train" if shared else part)
            index = None
            if shared:
                held_out = max(1, round(len(files) * self.val_size))
                index = split_indices(len(files), held_out, self.split_seed)[part]
            exact = self.exact or part != "train"
            size = self.preprocess.resize
            images = ImageFiles(self.data_path, files, labels, size, index, exact)
            setattr(self, part, self._keep(images) if self.cache and part == "train" else images)

    def _keep(self, images: ImageFiles) -> CachedImageFiles:
        if self._kept is None:  # all of the file is read to check it
            self._kept = cache_images(images, self.classes, self.num_workers)
        return self._kept

    def predict_dataloader(self) -> DataLoader[Any]:
        files = self.scored
        if self.trainer is not None and len(files) < self.trainer.world_size:
            raise MisconfigurationException(
                f"{self.data_path} has {len(files)} images for {self.trainer.world_size} "
                f"processes; give at most --devices {len(files)}"
            )
        if files.size is not None:
            return self._loader(files)
        room = round(MAX_BATCH_PIXELS / max(files.estimate_mean_pixels(), 1))
        return self._loader(
            files, batch_size=min(max(room, 1), self.batch_size), collate=collate_varying_sizes
        )

    def _list(self, folder: str) -> tuple[PackedPaths, Tensor]:
        # Kept, since a large folder takes minutes to walk on a cluster's file system.
        if folder not in self._listed:
            if not hasattr(self, "classes"):  # there was no train/, which this says
                self.classes = list_classes(self.data_path / "train")
            files, labels = list_images(self.data_path / folder, self.classes)
            empty = sorted(set(range(self.num_classes)) - set(labels))
            if folder == "train" and empty:
                raise MisconfigurationException(
                    f"{self.data_path / folder / self.classes[empty[0]]} has no images; add those "
                    "of the class, or remove the folder"
                )
            self._listed[folder] = PackedPaths(files), torch.tensor(labels)
        return self._listed[folder]
