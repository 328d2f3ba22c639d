"""The data modules for --data: CIFAR-10, MNIST, other torchvision data sets, folders, synthetic."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from pyclassify.data import synthetic
from pyclassify.data.cache import LabeledImages, load_cached_images
from pyclassify.data.datasets import (
    CachedImageFiles,
    ImageFiles,
    ImageTensors,
    PackedPaths,
    UnlabeledImageFiles,
)
from pyclassify.data.download import fetch_dataset, list_checksums
from pyclassify.data.folder_checks import check_root, check_split, check_splits
from pyclassify.data.image_folder import (
    SPLIT_NAMES,
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
from pyclassify.data.images import UnreadableImageError
from pyclassify.data.loaders import SPLITS, ImageDataModule, collate_varying_sizes, split_indices
from pyclassify.data.report import (
    REPORT_NAME,
    DataReport,
    FileEntry,
    describe_folder,
    format_damaged,
    write_report,
)
from pyclassify.data.scan import find_damaged, load_facts, scan_files
from pyclassify.utils.files import find_cache_folder
from pyclassify.utils.launcher import count_workers
from pyclassify.utils.text import suggest

# Per batch of images in their original sizes: 100 MB, and a loader holds several batches.
_MAX_DECODED_PIXELS = 2**25


class TorchvisionDataModule(ImageDataModule):
    """A data set of torchvision, in memory as bytes, which all processes of a machine share.

    The images are uint8 [1 or 3, height, width], all of the same size. The data set is downloaded
    when it is first used.

    Args:
        name: The data set: CIFAR10, CIFAR100, FashionMNIST, KMNIST, MNIST or SVHN.
        data_path: The folder of the downloaded files; `pyclassify` in the user's cache folder by
            default.
        val_size: The number of training images to hold out for validation.
        split_seed: The seed of the split into training and validation. The seed of the run does not
            change the split, so that runs with other seeds are compared on the same images.
        **kwargs: Other arguments of `ImageDataModule`, such as `batch_size`, `resize` and `crop`.

    Raises:
        MisconfigurationException: `name` is unknown; in `prepare_data`, the data set can't be
            downloaded.

    Example:
        >>> from pyclassify import TorchvisionDataModule
        >>> data = TorchvisionDataModule("SVHN", resize=32, crop=32, horizontal_flip=False)
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
                f"invalid name: {name!r} (expected one of {', '.join(self.NUM_CLASSES)})"
                f"{suggest(name, self.NUM_CLASSES)}"
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
        # Loaded once, because checking a cache file digests the whole file.
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

    The images are uint8 [3, 32, 32]. The default mean and standard deviation are those of the
    training images.

    Args:
        data_path: The folder of the downloaded files; `pyclassify` in the user's cache folder by
            default.
        mean: The mean of each channel, in 0..1, that normalization subtracts.
        std: The standard deviation of each channel, in 0..1, that normalization divides by.
        **kwargs: Other arguments of `TorchvisionDataModule` and `ImageDataModule`.

    Example:
        >>> from pyclassify import CIFAR10DataModule
        >>> data = CIFAR10DataModule(batch_size=128, random_crop_padding=4)
        >>> data.num_classes
        10

        `Trainer().fit(Classifier(AlexNet), datamodule=data)` downloads the images and trains.
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
    """MNIST (LeCun et al., 1998): grayscale digits in three channels, not flipped by default.

    The images are uint8 [1, 28, 28]; batches have three equal channels. 55,000 images are for
    training, 5,000 for validation and 10,000 for the test.

    Args:
        data_path: The folder of the downloaded files; `pyclassify` in the user's cache folder by
            default.
        horizontal_flip: Whether training flips each image horizontally with a probability of 0.5.
        **kwargs: Other arguments of `TorchvisionDataModule` and `ImageDataModule`.

    Example:
        >>> from pyclassify import MNISTDataModule
        >>> data = MNISTDataModule(batch_size=128, resize=32, crop=28)
        >>> data.preprocess.horizontal_flip
        False
    """

    def __init__(
        self, data_path: str | None = None, horizontal_flip: bool = False, **kwargs: Any
    ) -> None:
        super().__init__("MNIST", data_path, horizontal_flip=horizontal_flip, **kwargs)


class SyntheticDataModule(ImageDataModule):
    """A synthetic data set: ten classes of shapes, which need no download.

    The images are uint8 [3, 32, 32].

    Args:
        train_size: The number of training images.
        val_size: The number of validation images.
        test_size: The number of test images.
        data_seed: The seed of the images. The seed of the run does not change them.
        **kwargs: Other arguments of `ImageDataModule`, such as `batch_size`, `resize` and `crop`.

    Example:
        >>> from pyclassify import SyntheticDataModule
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
        data_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sizes = {"train": train_size, "val": val_size, "test": test_size}
        self.data_seed = data_seed

    def setup(self, stage: str) -> None:
        for split in SPLITS[stage]:
            seed = 3 * self.data_seed + list(self.sizes).index(split)
            setattr(self, split, ImageTensors(*synthetic.generate_images(self.sizes[split], seed)))


class ImageFolderDataModule(ImageDataModule):
    """A folder of images of any size: train/<class>/<image>, and val/ and test/ likewise.

    The classes are the folders in train/. Without val/, a fraction of train/ is held out. Splits
    may have other usual names, such as valid/. For prediction, any folder will do: images are found
    at any depth, without labels. docs/image-folders.md describes which files are left out, and
    which folders are refused.

    Args:
        data_path: The folder that contains train/; for prediction, the folder of the images.
        classes: The names of the classes, by label. By default the folders in train/, sorted; for
            prediction, those of the checkpoint. Names given here turn off warnings about classes.
        unreadable: What to do with files that do not decode. "stop" ends with an error; it is the
            default, except for prediction. "skip" decodes every file before training or evaluation
            and leaves out those that do not decode; in prediction their rows have no label.
        val_size: The fraction of the training images that is held out without a folder val/,
            between 0 and 1. Each class has at least one training image.
        split_seed: The seed of the split into training and validation. The seed of the run does not
            change the split.
        mean: The mean of each channel, in 0..1, that normalization subtracts. The default is that
            of ImageNet.
        std: The standard deviation of each channel, in 0..1, that normalization divides by. The
            default is that of ImageNet.
        float_resize: Whether training images are resized in floats, as in validation, in the test
            and in the served model: the pixels are bitwise identical. By default they are resized
            as bytes, in half the time; pixels differ by at most about one of 256 levels, far less
            than augmentation changes them.
        num_workers: The number of processes that decode images, for each training process. By
            default one less than the CPU cores of the training process, at least 1 and at most 8.
        cache: Whether to decode and resize all images of train/ once, into one file in
            pyclassify/scaled in the user's cache folder (XDG_CACHE_HOME), 3 * resize^2 bytes per
            image. Later epochs and runs read this file; the pixels are the same. Useful for many
            small files, above all on a network file system.
        **kwargs: Other arguments of `ImageDataModule`, such as `batch_size`, `resize` and `crop`.

    Raises:
        MisconfigurationException: An argument is out of range, or `cache` and `float_resize` are
            both true; in `prepare_data` and `setup`, a folder is missing or has no images.

    Example:
        >>> from pyclassify import ImageFolderDataModule
        >>> data = ImageFolderDataModule("photos", resize=256, crop=224, batch_size=16)
        >>> data.setup("fit")
        >>> data.classes, len(data.train), len(data.val)
        (['cat', 'dog'], 18, 2)
    """

    def __init__(
        self,
        data_path: str,
        classes: list[str] | None = None,
        unreadable: Literal["skip", "stop"] | None = None,
        val_size: float = 0.1,
        split_seed: int = 0,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        float_resize: bool = False,
        num_workers: int | None = None,
        cache: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(mean=mean, std=std, **kwargs)
        if not 0 < val_size < 1:
            raise MisconfigurationException(
                f"invalid val_size: {val_size} (expected 0 < val_size < 1, the fraction of the "
                "training images to hold out for validation)"
            )
        if num_workers is not None and num_workers < 0:
            raise MisconfigurationException(
                f"invalid num_workers: {num_workers} (expected num_workers >= 0)"
            )
        if cache and float_resize:
            raise MisconfigurationException(
                "data.cache=true and data.float_resize=true exclude each other: the cache stores "
                "pixels as bytes; give one of the two"
            )
        self.data_path = Path(data_path).expanduser()
        self.val_size, self.split_seed = val_size, split_seed
        self.unreadable, self.float_resize = unreadable, float_resize
        self.cache, self._num_workers = cache, num_workers
        self.num_workers = num_workers or 0
        self._classes_given = classes is not None
        if classes is not None:
            self.classes = list(classes)
        else:
            with suppress(MisconfigurationException):  # prediction accepts any folder
                self.classes = list_classes(self._find_split("train"))
        self._listed: dict[str, ListedSplit] = {}
        self._readable: dict[str, ListedSplit] = {}  # without the files that `unreadable` skips
        self._skipped: dict[str, dict[str, str]] = {}  # the reason of each such file, by its path
        self._broadcast_splits: set[str] = set()
        self._left_out = LeftOut()
        self._cached: CachedImageFiles | None = None

    def check_files(self) -> None:
        """Decode every file on all cores, and write the report data.md to the folder.

        Raises:
            MisconfigurationException: Files do not decode, and `unreadable` is not "skip".
        """
        folders = check_root(self.data_path, self._classes_given)
        files = [file for split in folders for file in self._list_all(split).files]
        scan_files(files, self.data_path, retry=True)
        self._write_report()

    def prepare_data(self) -> None:
        """Check the folder; for training with `cache`, write the cache file.

        Raises:
            MisconfigurationException: The layout of the folder is wrong, or an earlier scan found
                files that do not decode.
        """
        function = self.trainer.state.fn if self.trainer else None
        stage = function.value if function else "fit"
        if stage in ("validate", "test") and not self._classes_given:
            check_root(self.data_path)
        if stage == "predict":
            return
        if stage == "fit":
            self.check()
        needed = [*SPLITS[stage]]
        if getattr(self.trainer, "tests_after_fit", False):
            needed.append("test")
        sources = dict.fromkeys(map(self._find_source, needed))
        for source in sources:
            self._list(source)
        if self.unreadable != "skip":
            files = [file for source in sources for file in self._list_all(source).files]
            facts = load_facts(files, self.data_path)
            if facts is not None and any(fact.error for fact in facts):
                self._write_report()
        if stage == "fit" and self.cache:
            self._set_up("fit")

    def make_report(self) -> DataReport:
        """Report the scanned files; only counts if a file was not scanned or has changed."""
        skipped = {
            file: reason for found in self._skipped.values() for file, reason in found.items()
        }
        skip, entries = self.unreadable == "skip", [*self._list_entries()]
        return describe_folder(self.data_path, self.classes, entries, skip, skipped)

    def _list_entries(self) -> Iterator[FileEntry]:
        """List the files of the splits that are set up, or of all splits if none is."""
        splits = [split for split in SPLIT_NAMES if split in vars(self)] or [*SPLIT_NAMES]
        folders = find_splits(self.data_path)
        for source in dict.fromkeys(map(self._find_source, splits)):
            if source in folders:
                listed, held_out = self._list_all(source), self._list_held_out(source)
                for file, label in zip(listed.files, listed.labels.tolist(), strict=True):
                    split = "val" if file in held_out else source
                    if split in splits:
                        yield FileEntry(file, split, label)

    def _list_held_out(self, source: str) -> set[str]:
        """List the paths of the training images that are held out for validation."""
        if source != "train" or self._find_source("val") != "train":
            return set()
        with suppress(MisconfigurationException):  # too few images, which `setup` reports
            readable = self._list(source)
            return {readable.files[index] for index in self._hold_out(readable)["val"].tolist()}
        return set()

    def _write_report(self) -> None:
        report = self.make_report()
        self.report_path = write_report(report, self.data_path / REPORT_NAME)
        if report.damaged and self.unreadable != "skip":
            raise MisconfigurationException(
                f"{self.data_path}: {format_damaged(report.damaged)}; {self.report_path} lists "
                "every such file. Repair or remove these files, or skip them by "
                "--data.unreadable=skip"
            )

    def check(self) -> None:
        """Check all splits of the folder before training; warn of what is probably wrong.

        Raises:
            MisconfigurationException: The layout of the folder is wrong.
        """
        folders = check_root(self.data_path, self._classes_given)
        splits: dict[str, ListedSplit] = {}
        for name in ("train", "val"):
            if name in folders:
                splits[name] = self._list(name)
        is_test_needed = getattr(self.trainer, "tests_after_fit", False)
        if is_test_needed or "test" in folders:
            try:
                check_split(self._find_split("test"), self._classes_given)
                splits["test"] = self._list("test")
            except MisconfigurationException as error:
                if is_test_needed:  # report the error now, rather than after the last epoch
                    raise
                rank_zero_info(f"{error} (this command does not need test images)")
        self._left_out.update(list_beside_splits(self.data_path, folders.values()))
        self._report_left_out()
        self.data_warnings = check_splits(splits, self._classes_given)
        if "val" not in splits:
            self._hold_out(splits["train"])  # raises the error that `setup` would raise later
        for text in self.data_warnings:
            rank_zero_warn(text)

    def setup(self, stage: str) -> None:
        if self._num_workers is None:
            self.num_workers = count_workers(self.trainer.num_devices if self.trainer else 1)
        if stage == "predict":
            self._set_up_predict()
            return
        for split in SPLITS[stage]:
            self._broadcast_skipped(self._find_source(split))
        self._set_up(stage)

    def _set_up(self, stage: str) -> None:
        for split in SPLITS[stage]:
            source = self._find_source(split)
            listed = self._list(source)
            held_out = split != "test" and self._find_source("val") == "train"
            index = self._hold_out(listed)[split] if held_out else None
            size, float_resize = self.preprocess.resize, self.float_resize or split != "train"
            images = ImageFiles(
                self.data_path, listed.files, listed.labels, size, index, float_resize
            )
            cached = self.cache and split == "train"
            setattr(self, split, self._cache_images(images) if cached else images)
        self._report_left_out()

    def _hold_out(self, train: ListedSplit) -> dict[str, Tensor]:
        val_size = max(1, round(len(train.files) * self.val_size))
        return split_indices(len(train.files), val_size, self.split_seed, train.labels)

    def _set_up_predict(self) -> None:
        files, self._left_out = list_all_images(self.data_path)
        self._report_left_out()
        size = None if self._network_takes_bytes() else self.preprocess.resize
        skip = self.unreadable != "stop"
        self._predict_files = UnlabeledImageFiles(self.data_path, files, size, skip)

    def _cache_images(self, images: ImageFiles) -> CachedImageFiles:
        if self._cached is None:  # once, because checking a cache file digests the whole file
            try:
                self._cached = cache_images(images, self.classes, self.num_workers)
            except UnreadableImageError as error:
                self.check_files()  # reports all such files at once
                raise MisconfigurationException(str(error)) from error
        return self._cached

    def predict_dataloader(self) -> DataLoader[Any]:
        files = self._predict_files
        if self.trainer is not None and len(files) < self.trainer.world_size:
            raise MisconfigurationException(
                f"{self.data_path} has {len(files)} images, fewer than the "
                f"{self.trainer.world_size} processes; give --devices {len(files)} or fewer"
            )
        if files.size is not None:
            return self._make_loader(files)
        max_images = max(round(_MAX_DECODED_PIXELS / max(files.estimate_mean_pixels(), 1)), 1)
        batch_size = min(max_images, self.batch_size)
        return self._make_loader(files, batch_size=batch_size, collate=collate_varying_sizes)

    def _list(self, split: str) -> ListedSplit:
        """List the images in the folder of a split, without those that `unreadable` skips."""
        if split not in self._readable:
            listed = self._list_all(split)
            if skipped := self._find_skipped(split):
                names = [os.path.relpath(file, self.data_path) for file in listed.files]
                indices = [index for index, name in enumerate(names) if name not in skipped]
                files = PackedPaths(listed.files[index] for index in indices)
                listed = replace(listed, files=files, labels=listed.labels[indices])
            counts = listed.count_by_class()
            empty = [name for name in counts if counts[name] == 0]
            if not listed.files or (split == "train" and empty):
                reason = describe_left_out(listed, empty[:1])
                if skipped:
                    reason += f" ({format_damaged(skipped)})"
                folder = listed.folder / empty[0] if split == "train" else listed.folder
                raise MisconfigurationException(
                    f"{folder} has no images{reason}; add images, or remove the folder"
                )
            self._readable[split] = listed
        return self._readable[split]

    def _list_all(self, split: str) -> ListedSplit:
        # Listed once, because a cluster's file system takes minutes to list a large folder.
        if split not in self._listed:
            if not hasattr(self, "classes"):  # train/ is missing: this call raises the error
                self.classes = list_classes(self._find_split("train"))
            self._listed[split] = list_split(self._find_split(split), self.classes)
            self._left_out.update(self._listed[split].sum_left_out())
        return self._listed[split]

    def _find_skipped(self, split: str) -> dict[str, str]:
        """Find the files of a split to skip; scan those that are new or have changed."""
        if self.unreadable != "skip":
            return {}
        if split not in self._skipped:
            self._skipped[split] = find_damaged(self._list_all(split).files, self.data_path)
        return self._skipped[split]

    def _broadcast_skipped(self, split: str) -> None:
        """Skip the same files in all processes: a file may be damaged on one node only."""
        if self.unreadable != "skip" or self.trainer is None or split in self._broadcast_splits:
            return
        found = self._find_skipped(split) if self.trainer.is_global_zero else {}
        found = self.trainer.strategy.broadcast(found)
        if found != self._skipped.get(split):
            self._skipped[split], self._cached = found, None
            self._readable.pop(split, None)
        self._broadcast_splits.add(split)

    def _find_source(self, split: str) -> str:
        """Find the split whose folder a split is read from: without val/, "train" for "val"."""
        return "train" if split == "val" and "val" not in find_splits(self.data_path) else split

    def _find_split(self, split: str) -> Path:
        return find_splits(self.data_path).get(split, self.data_path / split)

    def _report_left_out(self) -> None:
        """Report once, in one line, which entries of the folder are left out."""
        if self._left_out.total:
            text = self._left_out.describe(self.data_path)
            noun = "entry" if self._left_out.total == 1 else "entries"
            rank_zero_info(f"{self.data_path}: left out {self._left_out.total} {noun}: {text}")
            self._left_out = LeftOut()
