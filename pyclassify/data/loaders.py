"""From a set of images to prepared batches on the device."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from pyclassify.data.datasets import ImageDataset
from pyclassify.data.transforms import Preprocess
from pyclassify.utils.signals import ignore_sigterm

# What each stage of Lightning's asks for; predicting takes the test images as well.
SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


class Batch(tuple[Tensor, Tensor]):
    """(images, labels), as any LightningModule unpacks it, and each image's place in its set."""

    indices: Tensor


class ResumableDistributedSampler(DistributedSampler[Any]):
    """A process's share of a set, which can be gone on with in the middle of an epoch."""

    _first = 0

    @property
    def can_skip(self) -> bool:
        """Whether what an image gets is the same though others were not read before it."""
        return getattr(self.dataset, "can_skip", False)

    def skip(self, count: int) -> None:
        """Leave out the first images, once."""
        self._first = count

    def __iter__(self) -> Iterator[Any]:
        first, self._first = self._first, 0
        return islice(super().__iter__(), first, None)


class ImageDataModule(LightningDataModule):
    """What the data modules here have in common: loaders, and preprocessing on the device.

    A subclass fills `train`, `val` and `test` in `setup` with sets of (image, label, index).

    Args:
        batch_size: Images a step in each process.
        resize: The side that images are scaled to, in pixels.
        crop: The side of the square cut out of them: at random in training, else central.
        flip: Whether training mirrors half of the images.
        mean: Each channel's mean, in 0..1, that normalisation takes off.
        std: Each channel's standard deviation that it divides by.
        pad: How far a crop in training may reach beyond the image, in pixels, into its mirrored
            edge: the usual 4 where images of 32 pixels are not enlarged.
        erase: The side of a square that training erases in each image, in pixels: about a quarter
            of the crop where many epochs would learn the images by heart.
        color: By how much training changes brightness, contrast and saturation, at most: 0.2 is
            mild.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]
    classes: Sequence[str]

    def __init__(
        self,
        batch_size: int = 64,
        resize: int = 70,
        crop: int = 64,
        flip: bool = True,
        mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
        std: tuple[float, float, float] = (0.5, 0.5, 0.5),
        pad: int = 0,
        erase: int = 0,
        color: float = 0.0,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise MisconfigurationException(f"batch_size is {batch_size}; give 1 or more")
        self.batch_size = batch_size
        self.num_workers = 0  # for images that are not in memory
        self.preprocess = Preprocess(resize, crop, flip, mean, std, pad, erase, color)
        self._shown = {"resize": resize, "crop": crop, "mean": list(mean), "std": list(std)}

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: what other images need to be classified alike."""
        return {"classes": [str(name) for name in getattr(self, "classes", ())], **self._shown}

    def digest(self) -> dict[str, str]:
        """Tell the data by their content: a digest of each set that is set up and has one."""
        digests = {}
        for part in ("train", "val", "test"):
            dataset = vars(self).get(part)
            digest = dataset.digest() if isinstance(dataset, ImageDataset) else None
            if digest is not None:
                digests[part] = digest
        return digests

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train, self._share(self.train, shuffle=True))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val, self._share(self.val))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test, self._share(self.test))

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test)  # Lightning's own sampler repeats no image

    def _hands_out_bytes(self) -> bool:
        """Whether the network that is at work prepares bytes by itself."""
        network = self.trainer and self.trainer.lightning_module
        return getattr(network, "takes_bytes", False)

    def _share(self, dataset: Dataset[Any], shuffle: bool = False) -> ResumableDistributedSampler:
        # One sampler for any number of processes, so that n processes share out the very
        # permutation that one process walks through. Lightning sets its epoch.
        return ResumableDistributedSampler(
            dataset,
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            shuffle=shuffle,
            seed=get_run_seed(),
        )

    def _loader(
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
            batch_size=batch_size
            or self.batch_size,  # by name: Lightning makes the loader anew to predict
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=init_worker,
            collate_fn=_identity if in_memory else collate,
        )

    def on_after_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> Batch:
        """Prepare (images, labels, index) on the device, with draws of their own in training."""
        images, labels, index = batch
        if self._hands_out_bytes():
            mixed = not isinstance(images, Tensor)
            return _make_batch(_split_varying_sizes(*images) if mixed else images, labels, index)
        draws = None
        if self.trainer is not None and self.trainer.training:
            draws = self.preprocess.generate_random_numbers(
                get_run_seed(), self.trainer.current_epoch, index
            )
        images = self.preprocess.to(images.device)(images, draws)
        if self.trainer is not None:
            images = self.trainer.precision_plugin.convert_input(images)
        return _make_batch(images, labels, index)


def _make_batch(images: Any, labels: Tensor, places: Tensor) -> Batch:
    batch = Batch((images, labels))
    batch.indices = places
    return batch


def get_run_seed() -> int:
    """The seed that `seed_everything` was given, 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def init_worker(worker_id: int) -> None:
    """Have a process that reads images outlive a stop, and its numbers be its own if asked for."""
    ignore_sigterm()
    if os.environ.get("PL_SEED_WORKERS", "0") != "0":  # what Lightning does where nothing is given
        pl_worker_init_function(worker_id)


def collate_varying_sizes(items: list[tuple[Tensor, int, int]]) -> list[Any]:
    """Make a batch of square images [3, side, side] of different sizes.

    Their pixels become one tensor, as each that a worker hands over takes an open file.

    Returns:
        (pixels [n], sides), labels and places.
    """
    images, labels, places = zip(*items, strict=True)
    pixels = torch.cat([image.flatten() for image in images])
    sides = [image.shape[-1] for image in images]
    return [(pixels, sides), torch.tensor(labels), torch.tensor(places)]


def _split_varying_sizes(pixels: Tensor, sides: list[int]) -> list[Tensor]:
    """The images of `collate_varying_sizes`."""
    each = torch.split(pixels, [3 * side * side for side in sides])
    return [image.view(3, side, side) for image, side in zip(each, sides, strict=True)]


def _identity(batch: Any) -> Any:
    return batch


def count_unpadded(loader: Any, batch_idx: int, batch: int) -> int:
    """Count the images of a batch that are no padding.

    A DistributedSampler repeats images so that every process gets as many; the repeated ones are
    the last of the last batch, and must not count twice in an evaluation.
    """
    batches: Any = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return batch
    everything: Any = sampler.dataset
    mine = len(range(sampler.rank, len(everything), sampler.num_replicas))
    return min(batch, max(0, mine - batch_idx * batches.batch_size))


def split_indices(count: int, held_out: int, seed: int) -> dict[str, Tensor]:
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
