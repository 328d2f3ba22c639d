"""Batches: their content does not depend on how the images were read."""

from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from PIL import Image

from pyclassify.data import synthetic
from pyclassify.data.datasets import ImageTensors
from pyclassify.data.loaders import (
    ImageDataModule,
    _NormalizableBatchSampler,
    _ResumableDistributedSampler,
)
from pyclassify.datamodule import ImageFolderDataModule, SyntheticDataModule
from pyclassify.module import Classifier
from tests.support import networks

OPTIONS = {"batch_size": 5, "resize": 36, "crop": 32}
NORMALISED = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


class InMemory(ImageDataModule):
    """Training on a few images and validation on the same."""

    classes = synthetic.CLASSES

    def __init__(self, images, labels, **options):
        super().__init__(**options)
        self.images, self.labels = images, labels

    def setup(self, stage):
        self.train = self.val = ImageTensors(self.images, self.labels)


def generate(count=13):
    images, labels = synthetic.generate_images(count, seed=0)
    order = labels.argsort(stable=True)  # as a folder's files are listed, by class
    return images[order], labels[order]


@pytest.fixture
def folder(tmp_path):
    """The same images as files."""
    for part in ("train", "val"):
        for number, (image, label) in enumerate(zip(*generate(), strict=True)):
            folder = tmp_path / part / f"class {label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{number:02}.png")
    return tmp_path


def batches(data, max_epochs=1, seed=0):
    """Train and validate, and return the batches of each."""
    recorder = networks.Recorder()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PL_GLOBAL_SEED", str(seed))
        trainer = networks.trainer(max_epochs=max_epochs, callbacks=[recorder])
        trainer.fit(Classifier(networks.network, len(data.classes)), data)
    return recorder.training, recorder.validation


def sort_by_index(seen):
    """Return the images in the order of their data set."""
    indices = torch.cat([batch.indices for batch in seen])
    return torch.cat([images for images, _ in seen])[indices.argsort()]


def assert_same_batches(some, others):
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one[1], other[1])
        torch.testing.assert_close(one[0], other[0])


def test_batch_unpacks_to_images_and_labels_and_has_indices():
    data = InMemory(*generate(), **OPTIONS)

    for batch in chain(*batches(data)):
        images, labels = batch
        assert images.shape == (len(labels), 3, 32, 32)
        assert torch.equal(labels, data.labels[batch.indices])


def test_each_epoch_has_all_images_in_another_order():
    seen, _ = batches(InMemory(*generate(), **OPTIONS), max_epochs=2)
    first, second = (torch.cat([batch.indices for batch in seen[i : i + 3]]) for i in (0, 3))

    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(13))
    assert not torch.equal(first, second)


def test_each_epoch_has_other_crops():
    seen, _ = batches(InMemory(*generate(), **OPTIONS), max_epochs=2)
    first, second = sort_by_index(seen[:3]), sort_by_index(seen[3:])

    assert (first != second).flatten(1).any(dim=1).sum() > 9


def test_validation_has_central_crops_in_order():
    data = InMemory(*generate(), **OPTIONS)
    _, seen = batches(data, max_epochs=2)

    assert_same_batches(seen[:3], seen[3:])
    assert torch.cat([batch.indices for batch in seen[:3]]).tolist() == list(range(13))
    torch.testing.assert_close(sort_by_index(seen[:3]), data.preprocess(data.images))


@pytest.mark.parametrize("batch_size", [1, 4, 13])
def test_augmentation_does_not_depend_on_the_batch_size(batch_size):
    seen, _ = batches(InMemory(*generate(), **OPTIONS))
    others, _ = batches(InMemory(*generate(), **{**OPTIONS, "batch_size": batch_size}))

    torch.testing.assert_close(sort_by_index(others), sort_by_index(seen))


def test_another_seed_gives_another_order_and_other_crops():
    (seen, _), (others, _) = (
        batches(InMemory(*generate(), **OPTIONS), seed=seed) for seed in (0, 1)
    )

    assert not torch.equal(seen[0].indices, others[0].indices)
    assert (sort_by_index(seen) != sort_by_index(others)).flatten(1).any(dim=1).sum() > 9


@pytest.mark.parametrize("num_workers", [0, 2])
def test_files_and_memory_give_the_same_batches_with_any_num_workers(folder, num_workers):
    from_files = ImageFolderDataModule(
        str(folder), num_workers=num_workers, **OPTIONS, **NORMALISED
    )
    from_memory = InMemory(*generate(), **OPTIONS, **NORMALISED)

    for some, others in zip(batches(from_files), batches(from_memory), strict=True):
        assert_same_batches(some, others)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_out_of_range_is_an_error(batch_size):
    with pytest.raises(
        MisconfigurationException,
        match=rf"^invalid batch_size: {batch_size} \(expected batch_size >= 1\)$",
    ):
        SyntheticDataModule(batch_size=batch_size)


def test_number_of_classes_follows_the_data():
    assert SyntheticDataModule().num_classes == 10


class Normalizing(networks.pl.LightningModule):
    """Cannot train on a batch of one image."""

    def __init__(self):
        super().__init__()
        self.norm, self.sizes = torch.nn.BatchNorm1d(3), []

    def training_step(self, batch, batch_idx):
        self.sizes.append(len(batch[0]))
        return self.norm(batch[0].mean((2, 3))).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def few(count, batch_size):
    return InMemory(*generate(count), batch_size=batch_size, resize=4, crop=4)


@pytest.mark.parametrize("batch_size", [2, 3, 4])
@pytest.mark.parametrize("count", [4, 5, 6, 7])
def test_last_batch_of_one_image_is_joined_where_a_network_normalizes(count, batch_size):
    module = Normalizing()

    networks.trainer(max_epochs=1).fit(module, datamodule=few(count, batch_size))

    sizes = [batch_size] * (count // batch_size)
    if count % batch_size == 1:
        sizes[-1] += 1
    elif count % batch_size:
        sizes.append(count % batch_size)
    assert module.sizes == sizes


def test_last_batch_of_one_image_stays_without_batch_normalization():
    module = Normalizing()
    module.norm = torch.nn.LayerNorm(3)

    networks.trainer(max_epochs=1).fit(module, datamodule=few(5, 4))

    assert module.sizes == [4, 1]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_last_batch_is_joined_in_every_process_or_in_none(world_size):
    for count in range(2, 20):
        samplers = [
            _ResumableDistributedSampler(range(count), world_size, rank)
            for rank in range(world_size)
        ]
        batches = [[*_NormalizableBatchSampler(each, 4, False)] for each in samplers]
        sizes = {tuple(map(len, each)) for each in batches}

        assert len(sizes) == 1
        assert len(_NormalizableBatchSampler(samplers[0], 4, False)) == len(batches[0])
        assert 1 not in next(iter(sizes)) or -(-count // world_size) == 1


def count_steps(norm, count, batch_size, world_size):
    """Count the batches of an epoch in each process of a training."""
    data = few(count, batch_size)
    data.setup("fit")
    data.trainer = SimpleNamespace(world_size=world_size, global_rank=0, lightning_module=norm)
    return len(data.train_dataloader())


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_that_share_statistics_make_the_steps_of_one(world_size):
    for count in range(4 * world_size, 12 * world_size):
        alone = count_steps(torch.nn.BatchNorm1d(3), count, 4 * world_size, world_size=1)

        assert count_steps(torch.nn.SyncBatchNorm(3), count, 4, world_size) == alone, count
