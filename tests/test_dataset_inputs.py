"""What a run says of its data."""

import pytest

from pyclassify.datamodule import MNISTDataModule, SyntheticDataModule
from pyclassify.tracking import dataset
from tests.support.networks import Data


def test_sets_are_described_by_size_and_content():
    data = SyntheticDataModule(train_size=20, val_size=10)
    data.setup("validate")

    described = dataset.describe(data)

    digest = data.digest()["val"]
    sets = {"val": {"images": 10, "digest": digest}}
    assert described == {"name": "Synthetic", "classes": 10, "sets": sets}


def test_set_of_torchvision_has_its_own_name():
    assert dataset.describe(MNISTDataModule())["name"] == "MNIST"


def test_data_that_can_not_tell_their_content_are_described_by_name():
    assert dataset.describe(Data()) == {"name": "Data", "classes": None, "sets": {}}
    assert dataset.describe(None) is None


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ("", False),
        ("--max_epochs 1 --batch_size 8 --data_path /a", False),
        ("--data.batch_size=8 --data.init_args.data_path /a", False),
        ("--data.pad 4 --data.erase=8 --data.init_args.color 0.2 --data.exact true", False),
        ("--data.cache=true", False),
        ("--data.val_size=8", True),
        ("--data.init_args.split_seed 1", True),
        ("--data MNISTDataModule", True),
    ],
)
def test_data_are_checked_unless_others_were_asked_for(options, asks):
    assert dataset.asks_for_other_images(options) == asks
