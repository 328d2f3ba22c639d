"""Load, split and batch images, and preprocess the batches on the device."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from pyclassify.data.datasets import ImageDataset
from pyclassify.data.report import DataReport, describe_counts
from pyclassify.data.transforms import Preprocess
from pyclassify.utils.signals import ignore_sigterm

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

# The splits of each of Lightning's stages; prediction without a folder uses the test split.
SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


class Batch(tuple[Tensor, Tensor]):
    """A batch (images, labels) that any LightningModule can unpack, with the indices of its images.

    Attributes:
        indices: The index of each image in its data set, int64 [batch].
    """

    indices: Tensor


class _ResumableDistributedSampler(DistributedSampler[Any]):
    """A DistributedSampler that can skip the first samples of an epoch, to resume within it.

    Attributes:
        can_skip: Whether samples do not depend on the samples that were read before them.
    """

    _skipped = 0

    @property
    def can_skip(self) -> bool:
        return getattr(self.dataset, "can_skip", False)

    def skip(self, count: int) -> None:
        """Skip the first samples of the next epoch, and only of that epoch.

        Args:
            count: The number of samples of this process to skip.
        """
        self._skipped = count

    def __iter__(self) -> Iterator[Any]:
        skipped, self._skipped = self._skipped, 0
        return islice(super().__iter__(), skipped, None)


class _NormalizableBatchSampler(BatchSampler):
    """A BatchSampler that merges a last batch of one image into the previous batch.

    In training, BatchNorm needs at least two values per channel. A network whose last feature map
    has one pixel has one value per image: "Expected more than 1 value per channel when training"
    (https://github.com/pytorch/pytorch/issues/4534).
    """

    def __iter__(self) -> Iterator[list[int]]:
        previous: list[int] = []
        for batch in super().__iter__():
            if previous and len(batch) == 1 < self.batch_size:
                batch, previous = [*previous, *batch], []
            if previous:
                yield previous
            previous = batch
        if previous:
            yield previous

    def __len__(self) -> int:
        images: int = len(self.sampler)  # type: ignore[arg-type]
        is_merged = images % self.batch_size == 1 < min(images, self.batch_size)
        return super().__len__() - int(is_merged)


class ImageDataModule(LightningDataModule):
    """The base class of data modules: data loaders, and preprocessing on the device.

    A subclass defines `classes`, the names of the classes by label. In `setup` it assigns `train`,
    `val` and `test`: data sets of (image, label, index) with images uint8 [1 or 3, height, width],
    preferably `ImageDataset`s. In `prepare_data` it may assign `data_warnings`, if the data are
    probably wrong: runs get the warnings as a tag, and their models do not become champion without
    `pyclassify promote --force`.

    Args:
        batch_size: The number of images in a batch of each process.
        resize: The side of the square that images are resized to, in pixels.
        crop: The side of the square that is cropped from the resized image, in pixels, at most
            `resize`. The crop is random in training, and central otherwise.
        horizontal_flip: Whether training flips each image horizontally with a probability of 0.5.
        mean: The mean of each channel, in 0..1, that normalization subtracts.
        std: The standard deviation of each channel, in 0..1, that normalization divides by.
        random_crop_padding: The width of the reflection padding around an image before the random
            crop of training, in pixels, less than `resize`. Usually 4 for images of 32 pixels that
            are not enlarged; 0 turns it off.
        cutout: The side of the random square that training sets to the mean, in pixels, at most
            `crop`. About a quarter of `crop` reduces overfitting in many epochs; 0 turns it off.
        color_jitter: The maximum relative change of brightness, contrast and saturation in
            training, 0 to 1. A change of 0.2 is mild; 0 turns it off.

    Raises:
        MisconfigurationException: `batch_size` is less than 1.
        ValueError: `crop`, `random_crop_padding`, `cutout` or `color_jitter` is out of range.

    Example:
        >>> import torch
        >>> from pyclassify import ImageDataModule
        >>> from pyclassify.data.datasets import ImageTensors
        >>>
        >>> class BlackImages(ImageDataModule):
        ...     classes = ("night", "cellar")
        ...
        ...     def setup(self, stage):
        ...         images = torch.zeros(100, 3, 32, 32, dtype=torch.uint8)
        ...         self.train = self.val = self.test = ImageTensors(images, torch.arange(100) % 2)
        >>>
        >>> data = BlackImages(batch_size=10, resize=32, crop=32, random_crop_padding=4)
        >>> data.setup("fit")
        >>> len(data.train_dataloader()), data.num_classes
        (10, 2)
    """

    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]
    classes: Sequence[str]
    data_warnings: Sequence[str] = ()
    report_path: Path | None = None  # of the report that `check_files` wrote

    def __init__(
        self,
        batch_size: int = 64,
        resize: int = 70,
        crop: int = 64,
        horizontal_flip: bool = True,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        random_crop_padding: int = 0,
        cutout: int = 0,
        color_jitter: float = 0.0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise MisconfigurationException(
                f"invalid batch_size: {batch_size} (expected batch_size >= 1)"
            )
        self.batch_size = batch_size
        self.num_workers = 0  # for data sets that are not in memory
        self.preprocess = Preprocess(
            resize, crop, horizontal_flip, mean, std, random_crop_padding, cutout, color_jitter
        )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def state_dict(self) -> dict[str, Any]:
        """Return the classes and the preprocessing, for predictions with a checkpoint."""
        return {
            "classes": [str(name) for name in getattr(self, "classes", ())],
            **getattr(self.preprocess, "settings", {}),
        }

    def digest(self) -> dict[str, str]:
        """Digest each split that is set up and whose data set supports it."""
        digests = {}
        for split in ("train", "val", "test"):
            dataset = vars(self).get(split)
            digest = dataset.digest() if isinstance(dataset, ImageDataset) else None
            if digest is not None:
                digests[split] = digest
        return digests

    def check_files(self) -> None:
        """Decode every file and write a report, for `prepare`; without files do nothing."""

    def make_report(self) -> DataReport | None:
        """Count the images of each class in the splits that are set up; None without labels."""
        labels, sizes = {}, set()
        for split in ("train", "val", "test"):
            dataset = vars(self).get(split)
            known = dataset.list_labels() if isinstance(dataset, ImageDataset) else None
            if known is not None:
                labels[split] = known.tolist()
                sizes.add(tuple(getattr(dataset, "images", torch.empty(0)).shape[1:]))
        if not labels:
            return None
        name = getattr(self, "dataset_name", type(self).__name__.removesuffix("DataModule"))
        return describe_counts(name, self.classes, labels, _describe_sizes(sizes))

    def train_dataloader(self) -> DataLoader[Any]:
        """Make the training loader; with BatchNorm, no process has a last batch of one image.

        If the last batch of a process had one image, the image is added to the previous batch. As
        all processes get the same number of images, all of them do so or none. With SyncBatchNorm
        they do so only if one process alone would, as n processes can normalize n images.
        """
        sampler = self._make_sampler(self.train, shuffle=True)
        loader = self._make_loader(self.train, sampler)
        if self._needs_normalizable_batches(sampler):
            # Not DataLoader(batch_sampler=...): it sets neither batch_size nor sampler, which a
            # resumed training needs to skip batches, and refuses to have them assigned.
            batches = _NormalizableBatchSampler(sampler, self.batch_size, drop_last=False)
            object.__setattr__(loader, "batch_sampler", batches)
        return loader

    def _needs_normalizable_batches(self, sampler: _ResumableDistributedSampler) -> bool:
        network: Any = getattr(self.trainer, "lightning_module", None) or nn.Module()
        norms = [module for module in network.modules() if isinstance(module, _BATCH_NORMS)]
        processes = sampler.num_replicas
        if processes > 1 and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms):
            images: int = len(self.train)  # type: ignore[arg-type]
            return bool(norms) and images % (self.batch_size * processes) == 1
        return bool(norms)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._make_loader(self.val, self._make_sampler(self.val))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._make_loader(self.test, self._make_sampler(self.test))

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._make_loader(self.test)  # Lightning's own sampler repeats no image

    def _network_takes_bytes(self) -> bool:
        """Whether the network preprocesses bytes itself, as an exported network does."""
        network = self.trainer and self.trainer.lightning_module
        return getattr(network, "takes_bytes", False)

    def _make_sampler(
        self, dataset: Dataset[Any], shuffle: bool = False
    ) -> _ResumableDistributedSampler:
        # The same sampler for any number of processes, so that n processes share the permutation of
        # one process. Lightning sets its epoch.
        return _ResumableDistributedSampler(
            dataset,
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            shuffle=shuffle,
            seed=_get_run_seed(),
        )

    def _make_loader(
        self,
        dataset: Dataset[Any],
        sampler: DistributedSampler[Any] | None = None,
        batch_size: int | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> DataLoader[Any]:
        in_memory = getattr(dataset, "in_memory", False)
        workers = 0 if in_memory else self.num_workers
        return DataLoader(
            dataset,
            # By keyword: Lightning reconstructs the loader for prediction.
            batch_size=batch_size or self.batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=init_worker,
            collate_fn=_return_batch if in_memory else collate,
        )

    def on_after_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> Batch:
        """Preprocess (images, labels, indices) on the device; in training, augment the images."""
        images, labels, indices = batch
        if self._network_takes_bytes():
            if not isinstance(images, Tensor):
                images = _split_varying_sizes(*images)
            return _make_batch(images, labels, indices)
        numbers = None
        if self.trainer is not None and self.trainer.training:
            seed, epoch = _get_run_seed(), self.trainer.current_epoch
            numbers = self.preprocess.generate_random_numbers(seed, epoch, indices)
        images = self.preprocess.to(images.device)(images, numbers)
        if self.trainer is not None:
            images = self.trainer.precision_plugin.convert_input(images)
        return _make_batch(images, labels, indices)


def _describe_sizes(sizes: set[tuple[int, ...]]) -> str:
    if [len(size) for size in sizes] != [3]:
        return ""
    channels, height, width = sizes.pop()
    noun = "channel" if channels == 1 else "channels"
    return f"All images have {width:,} x {height:,} pixels and {channels} {noun}."


def _make_batch(images: Any, labels: Tensor, indices: Tensor) -> Batch:
    batch = Batch((images, labels))
    batch.indices = indices
    return batch


def _get_run_seed() -> int:
    """Return the seed given to `seed_everything`; 0 if it was not called."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def _return_batch(batch: Any) -> Any:
    return batch


def collate_varying_sizes(items: list[tuple[Tensor, int, int]]) -> list[Any]:
    """Collate square images of different sizes.

    All pixels are in one tensor, because each tensor from a worker takes a file descriptor.

    Args:
        items: (image uint8 [3, side, side], label, index) of each of n images.

    Returns:
        (all pixels, the n sides), labels int64 [n], indices int64 [n].
    """
    images, labels, indices = zip(*items, strict=True)
    pixels = torch.cat([image.flatten() for image in images])
    sides = [image.shape[-1] for image in images]
    return [(pixels, sides), torch.tensor(labels), torch.tensor(indices)]


def _split_varying_sizes(pixels: Tensor, sides: list[int]) -> list[Tensor]:
    """Undo `collate_varying_sizes`: images [3, side, side]."""
    images = torch.split(pixels, [3 * side * side for side in sides])
    return [image.view(3, side, side) for image, side in zip(images, sides, strict=True)]


def init_worker(worker_id: int) -> None:
    """Initialize a worker: ignore SIGTERM, and seed it where `seed_everything` seeds workers.

    Args:
        worker_id: The number of the worker in the data loader, from 0.
    """
    ignore_sigterm()
    if os.environ.get("PL_SEED_WORKERS", "0") != "0":  # Lightning does so without worker_init_fn
        pl_worker_init_function(worker_id)


def count_unpadded(loader: Any, batch_idx: int, batch_size: int) -> int:
    """Count the images of a batch that are not padding.

    A DistributedSampler repeats images so that every process gets the same number. The repeated
    images are at the end of the last batch; an evaluation must not count them twice.

    Args:
        loader: Any data loader.
        batch_idx: The index of the batch, from 0.
        batch_size: The number of images in the batch.

    Returns:
        0 to `batch_size`.
    """
    batches: Any = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return batch_size
    dataset: Any = sampler.dataset
    unpadded = len(range(sampler.rank, len(dataset), sampler.num_replicas))
    return min(batch_size, max(0, unpadded - batch_idx * batches.batch_size))


def split_indices(
    count: int, held_out: int, seed: int, labels: Tensor | None = None
) -> dict[str, Tensor]:
    """Split images at random into training and validation.

    Args:
        count: The number of images.
        held_out: The number of images for validation.
        seed: The seed of the split.
        labels: The label of each image, int64 [count]. Each class then has at least one training
            image: other images are held out instead, or fewer images. If the random split leaves
            each class an image, the result is the same as without `labels`.

    Returns:
        The indices of "train" and "val", each int64, sorted.

    Raises:
        MisconfigurationException: Training or validation has no image.

    Example:
        >>> split_indices(4, 2, seed=0, labels=torch.tensor([1, 0, 0, 0]))["train"]
        tensor([0, 2])
    """
    if not 0 < held_out < count:
        raise MisconfigurationException(
            f"can't hold out {held_out} of {count} images for validation; change data.val_size so "
            "that training and validation each have at least one image"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    if labels is not None:
        order, held_out = _leave_one_per_class(order, held_out, labels)
    return {"train": order[held_out:].sort().values, "val": order[:held_out].sort().values}


def _leave_one_per_class(order: Tensor, held_out: int, labels: Tensor) -> tuple[Tensor, int]:
    """Reorder images so that each class has one after the first `held_out`, or hold out fewer.

    The last image of each class in `order` stays in training, so that an order in which each class
    has an image after the first `held_out` does not change.

    Raises:
        MisconfigurationException: No class has a second image.
    """
    last = {label: position for position, label in enumerate(labels[order].tolist())}
    if all(position >= held_out for position in last.values()):
        return order, held_out
    held_out = min(held_out, len(order) - len(last))
    if held_out < 1:
        raise MisconfigurationException(
            f"can't hold out any of {len(order)} images for validation, because no class has a "
            "second image; add images, or a folder val/"
        )
    is_candidate = torch.ones(len(order), dtype=torch.bool)
    is_candidate[list(last.values())] = False
    chosen = is_candidate & (is_candidate.cumsum(0) <= held_out)
    return torch.cat([order[chosen], order[~chosen]]), held_out
