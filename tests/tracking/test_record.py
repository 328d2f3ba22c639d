"""The description and the check of a run's data."""

import pytest

from pyclassify.datamodule import MNISTDataModule, SyntheticDataModule
from pyclassify.tracking import capsule, record
from pyclassify.tracking.parameters import may_change_images
from tests.support.networks import Data
from tests.support.phrases import mentions
from tests.support.stores import experiment_id


def test_describe_data_has_size_and_digest_of_each_set():
    data = SyntheticDataModule(train_size=20, val_size=10)
    data.setup("validate")

    described = record.describe_data(data)

    digest = data.digest()["val"]
    sets = {"val": {"images": 10, "digest": digest}}
    assert described == {"name": "Synthetic", "classes": 10, "splits": sets}


def test_describe_data_of_torchvision_has_the_sets_name():
    assert record.describe_data(MNISTDataModule())["name"] == "MNIST"


def test_describe_data_without_digest_has_the_name():
    assert record.describe_data(Data()) == {"name": "Data", "classes": None, "splits": {}}
    assert record.describe_data(None) is None


@pytest.mark.parametrize(
    ("options", "asks"),
    [
        ("", False),
        ("--max_epochs 1 --batch_size 8 --data_path /a", False),
        ("--data.batch_size=8 --data.init_args.data_path /a", False),
        (
            "--data.random_crop_padding 4 --data.cutout=8 --data.init_args.color_jitter 0.2 "
            "--data.float_resize true",
            False,
        ),
        ("--data.cache=true", False),
        ("--data.val_size=8", True),
        ("--data.init_args.split_seed 1", True),
        ("--data MNISTDataModule", True),
    ],
)
def test_may_change_images_by_options_of_the_data(options, asks):
    assert may_change_images(options) == asks


@pytest.fixture
def rerun(store):
    """Create a rerun of a run with given digests; return both IDs."""

    def make(before, **tags):
        source = store.create_run(experiment_id(store)).info.run_id
        if before is not None:
            store.log_dict(source, {"data": before}, "capsule/capsule.json")
        tags = {capsule.SOURCE_RUN_TAG: source, **tags}
        return source, store.create_run(experiment_id(store), tags=tags).info.run_id

    return make


def splits(images=4, **digests):
    return {
        "splits": {split: {"images": images, "digest": digest} for split, digest in digests.items()}
    }


def test_check_data_with_other_images_raises_both_digests(store, rerun):
    source, run_id = rerun(splits(train="aaaa", val="bbbb"))

    with pytest.raises(ValueError, match="val") as error:
        record.check_data(store, run_id, splits(5, train="aaaa", val="cccc"))

    assert mentions(str(error.value), source, "bbbb", "4 images", "cccc", "5 images")
    assert mentions(str(error.value), "--data_path")


@pytest.mark.parametrize(
    ("before", "now", "overridden"),
    [
        (splits(train="a"), splits(train="a"), ""),
        (splits(train="a"), splits(test="b"), ""),  # which the source did not use
        (splits(train="a"), None, ""),
        (None, splits(train="b"), "--data.train_size=8"),
        (splits(train="a"), splits(train="b"), "--data.train_size=8"),
    ],
)
def test_check_data_with_same_or_requested_images_passes(store, rerun, before, now, overridden):
    _, run_id = rerun(before, **{capsule.OVERRIDES_TAG: overridden})

    assert record.check_data(store, run_id, now) is None


def test_check_data_with_a_source_without_data_passes(store, rerun):
    source, run_id = rerun({})
    store.log_dict(source, {"data": None}, "capsule/capsule.json")

    assert record.check_data(store, run_id, splits(train="b")) is None


def test_check_data_without_a_readable_capsule_warns(store, rerun):
    _, run_id = rerun(None)

    with pytest.warns(UserWarning, match="could not compare the data"):
        record.check_data(store, run_id, splits(train="b"))
