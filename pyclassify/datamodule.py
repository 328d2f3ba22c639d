"""The data modules that --data names: CIFAR-10, MNIST, torchvision, image folders, synthetic."""

from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from pyclassify.data import synthetic
from pyclassify.data.cache import LabeledImages, load_cached_images
from pyclassify.data.datasets import (
    CachedImageFiles,
    ImageFiles,
    ImageTensors,
    UnlabeledImageFiles,
)
from pyclassify.data.download import fetch_dataset, list_checksums
from pyclassify.data.folder_checks import check_root, check_splits
from pyclassify.data.image_folder import (
    LeftOut,
    ListedSplit,
    cache_images,
    describe_left_out,
    find_splits,
    list_all_images,
    list_beside_splits,
    list_classes,
    list_split,
)
from pyclassify.data.loaders import SPLITS, ImageDataModule, collate_varying_sizes, split_indices
from pyclassify.utils.files import find_cache_folder
from pyclassify.utils.launcher import count_workers

# Of images in their original sizes: 100 MB a batch, of which a loader holds several.
_MAX_DECODED_PIXELS = 2**25


class TorchvisionDataModule(ImageDataModule):
    """A data set of torchvision, in memory as bytes once for all processes of a machine.

    Its images are uint8 [1 or 3, height, width], all of one size.

    Args:
        name: The data set: CIFAR10, CIFAR100, FashionMNIST, KMNIST, MNIST or SVHN.
        data_path: The folder of the downloaded files; `pyclassify` in the user's cache folder by
            default.
        val_size: How many training images are held out for validation.
        split_seed: The seed of that split. The run's seed does not change it, so that runs with
            other seeds are compared on the same images.

    Raises:
        MisconfigurationException: The name is unknown, or the data set can't be downloaded.

    Example:
        >>> data = TorchvisionDataModule("SVHN", resize=32, crop=32, pad=4, flip=False)
        >>> data.num_classes
        10
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
        self.dataset_name, self.val_size, self.split_seed = name, val_size, split_seed
        self.data_path = Path(data_path).expanduser() if data_path else find_cache_folder()
        self._loaded: dict[bool, LabeledImages] = {}

    @property
    def num_classes(self) -> int:
        return self.NUM_CLASSES[self.dataset_name]

    def prepare_data(self) -> None:
        """Download the data set if needed, and write its cache files."""
        for train in (True, False):
            self._load(train)

    def setup(self, stage: str) -> None:
        for split in SPLITS[stage]:
            images, labels, _ = self._load(train=split != "test")
            index = None
            if split != "test":
                index = split_indices(len(images), self.val_size, self.split_seed)[split]
            setattr(self, split, ImageTensors(images, labels, index))

    def _load(self, train: bool) -> LabeledImages:
        # Loaded once, since checking a cache file digests all of it.
        if train not in self._loaded:
            split = "train" if train else "test"
            self._loaded[train] = load_cached_images(
                self.data_path / f"{self.dataset_name}-{split}.mapped",
                " ".join(list_checksums(self.dataset_name, train)),
                lambda: self._read(train),
            )
            self.classes = self._loaded[train].classes
        return self._loaded[train]

    def _read(self, train: bool) -> LabeledImages:
        dataset = fetch_dataset(self.dataset_name, self.data_path, train)
        images = torch.as_tensor(dataset.data)
        if images.ndim == 3:  # grayscale [n, height, width]
            images = images[:, None]
        elif images.shape[-1] == 3:
            images = images.permute(0, 3, 1, 2)
        labels = dataset.labels if self.dataset_name == "SVHN" else dataset.targets
        classes = getattr(dataset, "classes", [str(n) for n in range(self.num_classes)])
        return LabeledImages(
            images.contiguous(), torch.as_tensor(labels, dtype=torch.int64), list(classes)
        )


class CIFAR10DataModule(TorchvisionDataModule):
    """CIFAR-10 (Krizhevsky, 2009): 45,000 training, 5,000 validation and 10,000 test images.

    The images are uint8 [3, 32, 32].

    Args:
        data_path: The folder of the downloaded files; `pyclassify` in the user's cache folder by
            default.
        mean: The mean of each channel, in 0..1, that normalization subtracts.
        std: The standard deviation of each channel that normalization divides by.

    Example:
        >>> data = CIFAR10DataModule(batch_size=128)
        >>> trainer.fit(Classifier(AlexNet), datamodule=data)
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
    """MNIST (LeCun et al., 1998): grayscale images in three channels, not flipped by default.

    The images are uint8 [1, 28, 28]; batches have three equal channels.

    Args:
        data_path: The folder of the downloaded files; `pyclassify` in the user's cache folder by
            default.
        flip: Whether training flips half of the images horizontally.

    Example:
        >>> data = MNISTDataModule(batch_size=128)
        >>> trainer.fit(Classifier(AlexNet), datamodule=data)
    """

    def __init__(self, data_path: str | None = None, flip: bool = False, **kwargs: Any) -> None:
        super().__init__("MNIST", data_path, flip=flip, **kwargs)


class SyntheticDataModule(ImageDataModule):
    """A synthetic data set: ten classes of shapes, for a machine without network.

    The images are uint8 [3, 32, 32].

    Args:
        train_size: The number of training images.
        val_size: The number of validation images.
        test_size: The number of test images.
        draw_seed: The seed of the images. The run's seed does not change them.

    Example:
        >>> data = SyntheticDataModule(train_size=100)
        >>> data.setup("fit")
        >>> image, label, index = data.train[0]
        >>> image.shape
        torch.Size([3, 32, 32])
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
        for split in SPLITS[stage]:
            seed = 3 * self.draw_seed + list(self.sizes).index(split)
            setattr(self, split, ImageTensors(*synthetic.generate_images(self.sizes[split], seed)))


class ImageFolderDataModule(ImageDataModule):
    """A folder of images of any size: train/<class>/<image>, and val/ and test/ likewise.

    The classes are the folders of train/. Without val/, a fraction of train/ is held out. To
    predict, any folder will do: images are found at any depth, and labels are not needed.

    Args:
        data_path: The folder that holds train/; to predict, the folder of the images.
        classes: The names of the classes, by label; by default the folders of train/, sorted, or
            to predict those of the checkpoint.
        unreadable: How prediction treats a file that does not decode: "skip" leaves its row
            without a label, "stop" ends with an error.
        val_size: The fraction of the training images that is held out without val/, in 0..1.
        split_seed: The seed of that split. The run's seed does not change it.
        mean: The mean of each channel, in 0..1, that normalization subtracts; ImageNet's by
            default.
        std: The standard deviation of each channel that normalization divides by; ImageNet's by
            default.
        exact: Whether training images too are bitwise identical to what validation, test and the
            served model see. By default they are read in half the time, and pixels differ by about
            one of 256 levels at most: far less than augmentation changes them.
        num_workers: Processes that decode images, for each training process; by default one for
            each of its processors except one, 1 to 8.
        cache: Whether to decode and resize all images of train/ once, into one file in
            pyclassify/scaled in the user's cache folder (XDG_CACHE_HOME), 3 * resize^2 bytes an
            image. Later epochs and runs read that file, and the network gets the same pixels. For
            many small files, above all on a network file system.

    Raises:
        MisconfigurationException: An argument is out of range, or a folder has no images.

    Example:
        >>> data = ImageFolderDataModule("photos", resize=256, crop=224)
        >>> trainer.fit(Classifier(torchvision.models.resnet18), datamodule=data)
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
        self.cache, self._num_workers = cache, num_workers
        self.num_workers = num_workers or 0
        self._classes_given = classes is not None
        if classes is not None:
            self.classes = list(classes)
        else:
            with suppress(MisconfigurationException):  # to predict any folder will do
                self.classes = list_classes(self._find_split("train"))
        self._listed: dict[str, ListedSplit] = {}
        self._left_out = LeftOut()
        self._cached: CachedImageFiles | None = None

    def prepare_data(self) -> None:
        """Check the folder if a training starts, and write the file of `cache` if that is on.

        Raises:
            MisconfigurationException: The folder can't be what the user meant.
        """
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        self.check()
        if self.cache:
            self.setup("fit")

    def check(self) -> None:
        """Check all splits of the folder before a training, and warn of what can't be right.

        Raises:
            MisconfigurationException: The folder can't be what the user meant.
        """
        folders = check_root(self.data_path, self._classes_given)
        names = list(folders)
        if getattr(self.trainer, "tests_after_fit", False) and "test" not in names:
            names.append("test")  # which is known now, rather than after the last epoch
        splits = {name: self._list(name) for name in names}
        self._left_out.update(list_beside_splits(self.data_path, folders.values()))
        self._report_left_out()
        self.data_warnings = check_splits(splits, self._classes_given)
        for text in self.data_warnings:
            rank_zero_warn(text)

    def setup(self, stage: str) -> None:
        if self._num_workers is None:
            self.num_workers = count_workers(self.trainer.num_devices if self.trainer else 1)
        if stage == "predict":
            self._set_up_predict()
            return
        for split in SPLITS[stage]:
            held_out = split != "test" and "val" not in find_splits(self.data_path)
            listed = self._list("train" if held_out else split)
            files, labels = listed.files, listed.labels
            index = None
            if held_out:
                val_size = max(1, round(len(files) * self.val_size))
                index = split_indices(len(files), val_size, self.split_seed, labels)[split]
            size, exact = self.preprocess.resize, self.exact or split != "train"
            images = ImageFiles(self.data_path, files, labels, size, index, exact)
            cached = self.cache and split == "train"
            setattr(self, split, self._cache_images(images) if cached else images)
        self._report_left_out()

    def _set_up_predict(self) -> None:
        files, self._left_out = list_all_images(self.data_path)
        self._report_left_out()
        size = None if self._network_takes_bytes() else self.preprocess.resize
        skip = self.unreadable == "skip"
        self._predict_files = UnlabeledImageFiles(self.data_path, files, size, skip)

    def _cache_images(self, images: ImageFiles) -> CachedImageFiles:
        if self._cached is None:  # once, since checking a cache file digests all of it
            self._cached = cache_images(images, self.classes, self.num_workers)
        return self._cached

    def predict_dataloader(self) -> DataLoader[Any]:
        files = self._predict_files
        if self.trainer is not None and len(files) < self.trainer.world_size:
            raise MisconfigurationException(
                f"{self.data_path} has {len(files)} images for {self.trainer.world_size} "
                f"processes; give at most --devices {len(files)}"
            )
        if files.size is not None:
            return self._make_loader(files)
        max_images = max(round(_MAX_DECODED_PIXELS / max(files.estimate_mean_pixels(), 1)), 1)
        batch_size = min(max_images, self.batch_size)
        return self._make_loader(files, batch_size=batch_size, collate=collate_varying_sizes)

    def _list(self, split: str) -> ListedSplit:
        # Listed once, since a cluster's file system takes minutes to list a large folder.
        if split not in self._listed:
            if not hasattr(self, "classes"):  # train/ is missing, as the error of this call says
                self.classes = list_classes(self._find_split("train"))
            listed = list_split(self._find_split(split), self.classes)
            counts = listed.count_by_class()
            empty = [name for name in counts if counts[name] == 0]
            if split == "train" and empty:
                raise MisconfigurationException(
                    f"{listed.folder / empty[0]} has no images"
                    f"{describe_left_out(listed, empty[:1])}; add those of the class, or remove "
                    "the folder"
                )
            self._listed[split] = listed
            self._left_out.update(listed.sum_left_out())
        return self._listed[split]

    def _find_split(self, split: str) -> Path:
        return find_splits(self.data_path).get(split, self.data_path / split)

    def _report_left_out(self) -> None:
        """Report once, in one line, what no split has of the files in its folder."""
        if self._left_out.total:
            text = self._left_out.describe(self.data_path)
            rank_zero_info(f"{self.data_path}: left out {self._left_out.total} entries: {text}")
            self._left_out = LeftOut()
