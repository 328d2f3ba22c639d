"""Validation and test: every image counts once, in any batches, loaders and processes."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader
from torch.utils.data.distributed import DistributedSampler

from pyclassify.data.loaders import count_unpadded
from pyclassify.module import Classifier
from tests.support import networks


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier(model=networks.network, num_classes=4)


def expected(classifier, dataset, stage):
    """Loss and accuracy of a set in one batch."""
    predicted, labels, loss = classifier.eval()._classifier_step(dataset[:])
    accuracy = (predicted == labels).float().mean()
    return {f"{stage}_loss": loss.item(), f"{stage}_accuracy": accuracy.item()}


@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_evaluation_is_of_the_whole_set_for_any_batch_size(classifier, command, stage, batch_size):
    dataset = networks.byte_images(7)

    (logged,) = getattr(networks.trainer(), command)(
        classifier, DataLoader(dataset, batch_size), verbose=False
    )

    assert logged == pytest.approx(expected(classifier, dataset, stage))


@pytest.mark.parametrize("command", ["validate", "test"])
def test_each_of_two_loaders_is_scored_by_itself(classifier, command):
    sets = [networks.byte_images(7), networks.byte_images(5, seed=1)]

    scores = getattr(networks.trainer(), command)(
        classifier, [DataLoader(s, 3) for s in sets], verbose=False
    )

    for score, dataset in zip(scores, sets, strict=True):
        values = expected(classifier, dataset, "any").values()
        assert list(score.values()) == pytest.approx(list(values))


def test_loss_that_is_not_a_number_is_shown(classifier):
    nn.init.constant_(classifier.model[-1].bias, torch.nan)

    (logged,) = networks.trainer().validate(
        classifier, DataLoader(networks.byte_images(4), 2), verbose=False
    )

    assert torch.tensor(logged["val_loss"]).isnan()


def by_batch_size(sampler, batch_size):
    return DataLoader(sampler.dataset, batch_size, sampler=sampler)


def by_batch_sampler(sampler, batch_size):
    batches = BatchSampler(sampler, batch_size, drop_last=False)
    return DataLoader(sampler.dataset, batch_sampler=batches)


@pytest.mark.parametrize("load", [by_batch_size, by_batch_sampler])
@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 12])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_image_is_real_once_in_any_number_of_processes(load, count, processes):
    share = partial(DistributedSampler, range(count), num_replicas=processes, shuffle=False)
    real = []
    for rank in range(processes):
        loader = load(share(rank=rank), 2)
        for batch_idx, batch in enumerate(loader):
            real += batch[: count_unpadded(loader, batch_idx, len(batch))].tolist()

    assert sorted(real) == list(range(count))


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(range(5), 2),
        DataLoader(range(5), batch_size=None),
        by_batch_size(DistributedSampler(range(5), num_replicas=2, rank=1, drop_last=True), 2),
        [torch.zeros(2)],
    ],
    ids=["one process", "no batches", "without a rest", "no DataLoader"],
)
def test_where_nothing_is_padded_all_images_are_real(loader):
    assert count_unpadded(loader, batch_idx=0, batch_size=2) == 2
