"""Files of a folder that do not decode: left out before a training, or all named at once."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.data.report import REPORT_NAME
from pyclassify.datamodule import ImageFolderDataModule
from pyclassify.module import Classifier
from tests.support import networks
from tests.support.images import grow
from tests.support.phrases import mentions

DAMAGED = ("train/cat/2.png", "train/dog/0.png", "test/dog/1.png")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/pyclassify"


@pytest.fixture
def whole(tmp_path):
    """A folder whose files all decode."""
    return grow(tmp_path / "photos", "train/cat", "train/dog", "test/cat", "test/dog", count=6)


@pytest.fixture
def folder(whole):
    """A folder with three files that do not decode."""
    for name in DAMAGED:
        (whole / name).write_bytes((whole / name).read_bytes()[:60])
    return whole


def module(folder, unreadable="skip", **options):
    sizes = {"batch_size": 4, "resize": 10, "crop": 8}
    return ImageFolderDataModule(
        str(folder), num_workers=0, unreadable=unreadable, **{**sizes, **options}
    )


def fit(data):
    """Return the batches of a training of two epochs, and the digests of the data."""
    torch.manual_seed(0)
    recorder = networks.Recorder()
    networks.trainer(max_epochs=2, callbacks=[recorder]).fit(Classifier(networks.network, 2), data)
    return recorder.training, data.digest()


@pytest.mark.parametrize("cached", [False, True])
def test_skip_trains_as_if_the_damaged_files_were_deleted(cached, folder, tmp_path):
    cleaned = tmp_path / "cleaned" / folder.name
    shutil.copytree(folder, cleaned)
    for name in DAMAGED:
        (cleaned / name).unlink()

    batches, digests = fit(module(folder, cache=cached))
    expected, expected_digests = fit(module(cleaned, cache=cached))

    assert len(batches) == len(expected) > 0
    for one, other in zip(batches, expected, strict=True):
        assert one[0].equal(other[0])
        assert one[1].equal(other[1])
        assert one.indices.equal(other.indices)
    assert digests == expected_digests


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_skip_leaves_out_what_each_stage_reads(stage, folder):
    data = module(folder)

    data.setup(stage)

    sizes = {
        split: len(vars(data)[split]) for split in ("train", "val", "test") if split in vars(data)
    }
    assert (
        sizes
        == {"fit": {"train": 9, "val": 1}, "validate": {"val": 1}, "test": {"test": 11}}[stage]
    )


def test_skip_leaves_out_in_each_process_what_the_first_one_does(folder):
    data = module(folder)
    strategy = SimpleNamespace(broadcast=lambda found: {"test/cat/5.png": "of another node"})
    data.trainer = SimpleNamespace(is_global_zero=False, strategy=strategy, num_devices=1)

    data.setup("test")

    assert len(data.test) == 11
    assert str(folder / "test/cat/5.png") not in data.test.files
    assert str(folder / "test/dog/1.png") in data.test.files


def test_class_whose_files_are_all_damaged_is_an_error(folder):
    for path in (folder / "train/dog").iterdir():
        path.write_bytes(b"")

    with pytest.raises(MisconfigurationException) as caught:
        module(folder).setup("fit")

    assert mentions(
        str(caught.value), "train/dog has no images", "do not decode", "train/dog/1.png"
    )


def test_check_files_names_all_damaged_files_and_writes_the_report(folder):
    data = module(folder, "stop", cache=True)

    with pytest.raises(MisconfigurationException) as caught:
        data.check_files()

    # the form of this message
    assert mentions(str(caught.value), "3 files do not decode", *DAMAGED, "--data.unreadable=skip")
    assert data.report_path == folder / REPORT_NAME
    assert all(f"`{name}`" in data.report_path.read_text() for name in DAMAGED)


def test_check_files_with_skip_reports_what_is_left_out(folder):
    data = module(folder)

    data.check_files()

    report = data.make_report()
    assert report.lines["images"] == "train 9, val 1, test 11; 2 classes"
    assert set(report.damaged) == set(DAMAGED)
    assert report.skipped == 3
    assert data.report_path.read_text() == report.text


def test_training_after_a_scan_names_all_damaged_files_before_it_begins(folder):
    with pytest.raises(MisconfigurationException):
        module(folder, None).check_files()

    with pytest.raises(MisconfigurationException, match="3 files do not decode"):
        networks.trainer().fit(Classifier(networks.network, 2), module(folder, None))


def test_training_with_a_cache_names_all_damaged_files(folder):
    data = module(folder, "stop", cache=True)

    with pytest.raises(MisconfigurationException) as caught:
        data.prepare_data()

    assert mentions(str(caught.value), "3 files do not decode", *DAMAGED)


def test_training_without_a_scan_names_the_command_that_scans(folder):
    data = module(folder, "stop")
    data.setup("fit")

    with pytest.raises(MisconfigurationException) as caught:
        [*data.train_dataloader(), *data.val_dataloader()]

    assert mentions(str(caught.value), "pyclassify prepare", "--data.unreadable=skip")


def test_report_without_a_scan_has_only_counts(whole):
    data = module(whole, "stop")
    for stage in ("fit", "test"):
        data.setup(stage)

    report = data.make_report()

    assert report.lines == {"images": "train 11, val 1, test 12; 2 classes"}
    assert mentions(report.text, "pyclassify prepare", "| cat | ")
    assert "Sizes" not in report.text


def test_report_of_a_scan_covers_files_that_have_not_changed(whole):
    module(whole, "stop").check_files()
    data = module(whole, "stop")
    data.setup("test")
    scanned = data.make_report()
    (whole / "test/cat/0.png").write_bytes((whole / "test/dog/0.png").read_bytes())

    assert scanned.lines["images"] == "test 12; 2 classes"
    assert scanned.lines["unreadable"] == "0"
    assert "unreadable" not in data.make_report().lines


def test_skipped_files_are_in_the_report_if_no_scan_can_be_saved(folder, cache):
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    data = module(folder)
    data.setup("test")

    report = data.make_report()

    assert report.damaged.keys() == {"test/dog/1.png"}
    assert report.lines["images"] == "test 11; 2 classes"
    assert mentions(report.text, "test/dog/1.png", "left out")


def test_folder_of_one_image_is_scanned(tmp_path):
    data = module(grow(tmp_path / "photos", "train/cat", count=1), "stop", classes=["cat"])

    data.check_files()

    assert data.make_report().lines["images"] == "train 1; 1 class"
