"""Folders and options that can't be right."""

import traceback

import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.datamodule import ImageFolderDataModule
from tests.support.folders import grow


@pytest.mark.parametrize("num_workers", [0, 1])
def test_image_that_does_not_decode_is_named_from_where_it_is_read(num_workers, tmp_path):
    path = grow(tmp_path, "train/cat") / "train/cat/2.png"
    path.write_bytes(path.read_bytes()[:60])
    data = ImageFolderDataModule(str(tmp_path), batch_size=3, num_workers=num_workers)
    data.setup("fit")

    with pytest.raises(
        MisconfigurationException, match=f"{path} does not decode as an image"
    ) as caught:
        [*data.train_dataloader(), *data.val_dataloader()]

    traceback.clear_frames(caught.tb)  # else the worker lives on, and is waited for, 5 s long


@pytest.mark.parametrize(
    ("parts", "stage", "words"),
    [
        ([], "fit", r"train is not a folder; data_path takes a folder with train/<class>/<image>"),
        (["train"], "fit", r"train has no folders in it; put the images of each class in a folder"),
        (["train/.git"], "fit", r"train has no folders in it"),
        (
            ["train/cat", "val/cow"],
            "fit",
            r"val has the class 'cow', which train/ has not; ",
        ),
        (["train/cat", "test/cow"], "test", r"test has the class 'cow', which train/ .*has cat$"),
        (["train/cat"], "test", r"test is not a folder; data_path takes .*\(and test/, and val/"),
    ],
)
def test_folder_of_another_shape_is_refused(parts, stage, words, tmp_path):
    grow(tmp_path, *parts)

    with pytest.raises(MisconfigurationException, match=f"^{tmp_path}/{words}"):
        ImageFolderDataModule(str(tmp_path)).setup(stage)


def test_folder_of_no_images_is_refused(tmp_path):
    grow(tmp_path, "train/cat", count=0)

    with pytest.raises(MisconfigurationException, match=r"train has no images in .* end in \.jpg"):
        ImageFolderDataModule(str(tmp_path)).setup("fit")


def test_class_that_has_no_training_images_is_refused(tmp_path):
    grow(grow(tmp_path, "train/cat"), "train/dog", count=0)

    with pytest.raises(MisconfigurationException, match="train/dog has no images; add those of"):
        ImageFolderDataModule(str(tmp_path)).setup("fit")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val_size": 5000}, "val_size is 5000; give the part .* to hold out .*between 0 and 1"),
        ({"val_size": 0.0}, "val_size is 0.0; give the part"),
        ({"num_workers": -1}, "num_workers is -1; give 0 or more"),
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
    ],
)
def test_option_out_of_range_is_refused(options, words, tmp_path):
    with pytest.raises(MisconfigurationException, match=words):
        ImageFolderDataModule(str(tmp_path), **options)
