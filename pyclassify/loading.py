"""From a set of images to prepared batches on the device."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from pyclassify.datasets import ImageTensors
from pyclassify.digest import digest_tensors
from pyclassify.transforms import Preprocess, draw


class Batch(tuple[Tensor, Tensor]):
    """(images, labels), as any LightningModule unpacks it, and each image's place in its set."""

    places: Tensor


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
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise MisconfigurationException(f"batch_size is {batch_size}; give 1 or more")
        self.batch_size = batch_size
        self.num_workers = 0  # nothing to gain where images are in memory
        self.preprocess = Preprocess(resize, crop, flip, mean, std)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def digest(self) -> dict[str, str]:
        """Tell the data by their content: a digest of each set that is in memory."""
        filled = {part: vars(self).get(part) for part in ("train", "val", "test")}
        return {
            part: digest_tensors(each.images, each.labels, each.index)
            for part, each in filled.items()
            if isinstance(each, ImageTensors)
        }

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.train, self._share(self.train, shuffle=True))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val, self._share(self.val))

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test, self._share(self.test))

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test)  # Lightning's own sampler repeats no image

    def _share(self, dataset: Dataset[Any], shuffle: bool = False) -> DistributedSampler[Any]:
        # One sampler for any number of processes, so that n processes share out the very
        # permutation that one process walks through. Lightning sets its epoch.
        return DistributedSampler(
            dataset,
            num_replicas=self.trainer.world_size if self.trainer else 1,
            rank=self.trainer.global_rank if self.trainer else 0,
            shuffle=shuffle,
            seed=run_seed(),
        )

    def _loader(
        self, dataset: Dataset[Any], sampler: DistributedSampler[Any] | None = None
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,  # by name: Lightning makes the loader anew to predict
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_fetched if isinstance(dataset, ImageTensors) else None,
        )

    def on_after_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> Batch:
        """Prepare (images, labels, index) on the device, with draws of their own in training."""
        images, labels, index = batch
        draws = None
        if self.trainer is not None and self.trainer.training:
            draws = draw(run_seed(), self.trainer.current_epoch, index, count=3)
        images = self.preprocess.to(images.device)(images, draws)
        if self.trainer is not None:
            images = self.trainer.precision_plugin.convert_input(images)
        prepared = Batch((images, labels))
        prepared.places = index
        return prepared


def run_seed() -> int:
    """The seed that `seed_everything` was given, 0 without it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def _as_fetched(batch: Any) -> Any:
    return batch
