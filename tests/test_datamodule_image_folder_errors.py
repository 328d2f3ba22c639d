"""Folders and options that the data module of a folder refuses."""

import traceback

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.datamodule import ImageFolderDataModule
from tests.support.images import grow


@pytest.mark.parametrize("num_workers", [0, 1])
def test_undecodable_image_is_named_from_process_and_worker(num_workers, tmp_path):
    path = grow(tmp_path, "train/cat") / "train/cat/2.png"
    path.write_bytes(path.read_bytes()[:60])
    data = ImageFolderDataModule(str(tmp_path), batch_size=3, num_workers=num_workers)
    data.setup("fit")

    with pytest.raises(MisconfigurationException, match=f"{path} .*decode") as caught:
        [*data.train_dataloader(), *data.val_dataloader()]

    traceback.clear_frames(caught.tb)  # else the worker lives on, and is waited for, 5 s long


@pytest.mark.parametrize(
    ("parts", "stage", "words"),
    [
        # the form of this message
        ([], "fit", r"train is not a folder; data_path must be a folder .* train/<class>/<image>"),
        (["train"], "fit", r"train .*no class folders.*<class>/<image>"),
        (["train/.git"], "fit", r"train .*no class folders"),
        (["train/cat", "val/cow"], "fit", r"val .*class 'cow'.* train/, "),
        (["train/cat", "test/cow"], "test", r"test .*class 'cow' \(expected cat\); .*train/"),
        (["train/cat"], "test", r"test is not a folder; data_path .*test/.* val/"),
    ],
)
def test_folder_of_another_layout_is_an_error(parts, stage, words, tmp_path):
    grow(tmp_path, *parts)

    with pytest.raises(MisconfigurationException, match=f"^{tmp_path}/{words}"):
        ImageFolderDataModule(str(tmp_path)).setup(stage)


def test_folder_without_images_is_an_error(tmp_path):
    grow(tmp_path, "train/cat", count=0)

    with pytest.raises(MisconfigurationException, match=r"train .*no images.*\.jpg"):
        ImageFolderDataModule(str(tmp_path)).setup("fit")


def test_class_without_training_images_is_an_error(tmp_path):
    grow(grow(tmp_path, "train/cat"), "train/dog", count=0)

    with pytest.raises(MisconfigurationException, match=r"train/dog .*no images"):
        ImageFolderDataModule(str(tmp_path)).setup("fit")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val_size": 5000}, r"^invalid val_size: 5000 \(expected 0 < val_size < 1, "),
        ({"val_size": 0.0}, r"^invalid val_size: 0\.0 \("),
        ({"num_workers": -1}, r"^invalid num_workers: -1 \(expected num_workers >= 0\)$"),
        ({"batch_size": 0}, r"^invalid batch_size: 0 \("),
    ],
)
def test_option_out_of_range_is_an_error(options, words, tmp_path):
    with pytest.raises(MisconfigurationException, match=words):
        ImageFolderDataModule(str(tmp_path), **options)
