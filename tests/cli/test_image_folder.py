"""Trainings on folders as people have them."""

import json
import logging
import shutil

import mlflow
import pytest

from pyclassify.tracking.capsule import DATA_WARNING_TAG
from tests.support.images import grow
from tests.support.phrases import mentions
from tests.support.trainings import LINEAR, QUIET, last_error

OPTIONS = f"--max_epochs 1 --batch_size 8 --data.num_workers 0 --accelerator cpu {LINEAR} {QUIET}"
DATA = "--data ImageFolderDataModule --data_path photos"


def test_folder_of_a_file_server_is_read_as_it_is_meant(cli, tmp_path, caplog):
    folder = grow(tmp_path / "photos", "Train/cat", "Train/dog", "valid/cat", "valid/dog", count=3)
    shutil.copytree(folder / "Train/cat", folder / "Train/cat/@eaDir")
    shutil.copytree(folder / "Train", folder / "Train/@eaDir/Train")
    (folder / "Train/dog/0.png").rename(folder / "Train/dog/0.heic")

    with caplog.at_level(logging.INFO):
        done = cli(f"fit {DATA} {OPTIONS}")

    assert done.code == 0, done.err
    (line,) = [line for line in caplog.messages if "left out" in line]
    assert mentions(line, "3 entries", "2 in system folders (Train/@eaDir)")
    assert mentions(line, "1 .heic (Train/dog/0.heic)")
    (run,) = done.runs
    images = {
        data.tags[0].value: json.loads(data.dataset.profile)["num_rows"]
        for data in run.inputs.dataset_inputs
    }
    assert images == {"train": 5, "val": 6}
    assert DATA_WARNING_TAG not in run.data.tags


@pytest.mark.parametrize("command", ["train", "fit", "prepare"])
def test_folder_that_cannot_be_meant_makes_no_run(command, cli, tmp_path):
    grow(tmp_path / "photos", "set/train/cat", "set/train/dog", "set/test/cat", "set/test/dog")

    done = cli(f"{command} {DATA} {OPTIONS}")

    assert (done.code, done.runs) == (1, [])
    assert mentions(last_error(done), "photos has no folder train", "--data_path photos/set")


def test_run_whose_splits_share_files_is_registered_and_not_champion(cli, tmp_path):
    folder = grow(tmp_path / "photos", "train/cat", "train/dog", "test/cat", "test/dog")
    shutil.copy(folder / "train/cat/0.png", folder / "test/dog/a copy.png")

    with pytest.warns(UserWarning, match="1 of the 9 images in test/ is also in train/"):
        done = cli(f"train --register photos {DATA} {OPTIONS}")

    assert done.code == 0, done.err
    assert mentions(done.out, "photos version 1 is not champion", "test/dog/a copy.png", "--force")
    assert "also in train/" in done.runs[0].data.tags[DATA_WARNING_TAG]
    assert mlflow.MlflowClient().get_registered_model("photos").aliases == {"challenger": 1}
