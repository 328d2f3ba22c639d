"""How predictions become a table, and how an exported network is shown its images."""

import os
import shutil

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, TensorDataset

from pyclassify import datamodule
from pyclassify.datamodule import ImageFolderDataModule
from pyclassify.module import Classifier
from pyclassify.serving.export import ExportedClassifier, export_program
from pyclassify.training.prediction_writer import PredictionWriter
from tests.support import networks
from tests.support.images import grow

NAMES = ["ant", "bee", "cow", "dog"]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Classifier(networks.network, num_classes=4)


@pytest.fixture
def exported(network, tmp_path):
    export_program(network, module(tmp_path).preprocess, NAMES, tmp_path / "model.pt2")
    return ExportedClassifier(str(tmp_path / "model.pt2"))


def module(folder, **options):
    usual = {"batch_size": 3, "resize": 9, "crop": 8, "num_workers": 0, "classes": NAMES}
    return ImageFolderDataModule(str(folder), **{**usual, **options})


def score(network, data, path):
    """The table of a prediction."""
    networks.trainer(callbacks=[PredictionWriter(path)]).predict(
        network, data, return_predictions=False
    )
    return pd.read_parquet(path)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_exported_network_predicts_images_of_any_size_as_the_network(
    num_workers, network, exported, tmp_path
):
    data = module(grow(tmp_path / "data", "a", "b/c", count=5), num_workers=num_workers)

    itself = score(network, data, tmp_path / "itself.parquet")
    program = score(exported, data, tmp_path / "program.parquet")

    assert list(program["file"]) == [f"{part}/{n}.png" for part in ("a", "b/c") for n in range(5)]
    pd.testing.assert_frame_equal(program, itself, atol=1e-6)


def test_large_images_come_in_small_batches(exported, tmp_path, monkeypatch):
    data = module(grow(tmp_path / "data", "a", count=5), batch_size=64)
    monkeypatch.setattr(datamodule, "_MAX_DECODED_PIXELS", 2 * 9 * 9)  # two images of the mean size
    sizes = []
    watch = pl.callbacks.LambdaCallback(
        on_predict_batch_end=lambda trainer, module, outputs, *rest: sizes.append(len(outputs))
    )

    networks.trainer(callbacks=[watch]).predict(exported, data)

    assert sizes == [2, 2, 1]


def test_exported_network_takes_no_floats(exported):
    loader = DataLoader(TensorDataset(torch.rand(2, 3, 8, 8), torch.zeros(2)))

    with pytest.raises(MisconfigurationException, match=r"torch\.float32.*exported"):
        networks.trainer().predict(exported, loader)


def test_file_without_a_program_is_refused(tmp_path):
    (tmp_path / "model.pt2").write_bytes(b"no archive")

    with pytest.raises(MisconfigurationException, match=r"model\.pt2 .*exported classifier"):
        ExportedClassifier(str(tmp_path / "model.pt2"))


def test_name_that_is_not_utf8_is_escaped(network, tmp_path):
    folder = grow(tmp_path / "data", "a", count=1)
    shutil.move(folder / "a/0.png", os.fsencode(folder) + b"/\xff.png")

    assert list(score(network, module(folder), tmp_path / "t.parquet")["file"]) == [r"\xff.png"]


def test_images_of_a_loader_have_an_index_and_unnamed_classes_a_number(network, tmp_path):
    with pytest.warns(UserWarning, match="no class names.*labels"):
        table = score(network, DataLoader(networks.byte_images(7), 3), tmp_path / "t.parquet")

    assert list(table["index"]) == list(range(7))
    assert set(table["label"]) <= {"0", "1", "2", "3"}


def test_prediction_without_probabilities_is_refused(tmp_path):
    class Embedding(pl.LightningModule):
        def predict_step(self, batch):
            return {"embedding": batch[0]}

    facts = r"Embedding\.predict_step .*probabilities.*--output=null.*BaseP"
    with pytest.raises(MisconfigurationException, match=facts):
        score(Embedding(), DataLoader(networks.byte_images(2)), tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("part", "facts"),
    [
        ("no", "no is not a folder;.*data_path"),
        (".", r"no images.*\.hidden.*\.jpg"),
    ],
)
def test_folder_without_images_is_refused(part, facts, tmp_path):
    grow(tmp_path, ".hidden/a")

    with pytest.raises(MisconfigurationException, match=facts):
        module(tmp_path / part).setup("predict")


def test_more_processes_than_images_are_refused(tmp_path):
    data = module(grow(tmp_path, "a", count=2))
    data.trainer = networks.trainer(devices=3, strategy="ddp")
    data.setup("predict")

    with pytest.raises(MisconfigurationException, match=r"2 images.*3 processes.*--devices 2"):
        data.predict_dataloader()
