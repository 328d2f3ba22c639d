"""Two processes write one table: of all images, each once, in the order of the files."""

import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from pyclassify.datamodule import ImageFolderDataModule
from pyclassify.module import Classifier
from pyclassify.serving.export import ExportedClassifier, export_program
from pyclassify.training.distributed import destroy_process_group_on_exit
from pyclassify.training.prediction_writer import PredictionWriter
from pyclassify.utils.signals import stop_with_parent
from tests.support import networks
from tests.support.images import grow
from tests.support.processes import run_ranks

CLASSES = ["ant", "bee", "cow", "dog"]


def score(folder, devices):
    """Write tables of the images in a folder, by a program and by the network that it is of."""
    torch.manual_seed(0)
    network = Classifier(networks.network, num_classes=4)
    for name in ("program", "network"):
        data = ImageFolderDataModule(
            str(folder / "data"), classes=CLASSES, batch_size=2, num_workers=0
        )
        if name == "program":
            path = folder / f"{devices}-{os.environ.get('LOCAL_RANK', 0)}.pt2"
            export_program(network, data.preprocess, CLASSES, path)
        scored = ExportedClassifier(str(path)) if name == "program" else network
        table = PredictionWriter(folder / f"{name}-{devices}.parquet")
        strategy = "ddp" if devices > 1 else "auto"
        trainer = networks.trainer(devices=devices, strategy=strategy, callbacks=[table])
        trainer.predict(scored, datamodule=data, return_predictions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One process's tables, and those of two processes of this file as a script."""
    folder = tmp_path_factory.mktemp("ranks")
    grow(folder / "data", "a/b", "c")  # images of different sizes
    (folder / "data/broken.jpg").write_bytes(b"no image")
    run_ranks(__file__, folder)
    score(folder, devices=1)
    return folder


@pytest.mark.parametrize("name", ["program", "network"])
def test_two_processes_write_the_table_of_one(name, folder):
    alone, together = (pd.read_parquet(folder / f"{name}-{devices}.parquet") for devices in (1, 2))

    parts = [f"{part}/{number}.png" for part in ("a/b", "c") for number in range(4)]
    assert list(together["file"]) == [*parts[:4], "broken.jpg", *parts[4:]]
    pd.testing.assert_frame_equal(together, alone, atol=1e-6)


if __name__ == "__main__":
    stop_with_parent()
    with destroy_process_group_on_exit():
        score(Path(sys.argv[1]), devices=2)
