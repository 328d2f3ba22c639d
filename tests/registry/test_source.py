"""`pyclassify.load`: the network of a run, a checkpoint or a model, and its predictions."""

import re

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pyclassify import load
from pyclassify.cli.main import main
from pyclassify.data import synthetic
from pyclassify.data.images import UnreadableImageError
from pyclassify.data.transforms import Preprocess
from pyclassify.registry.source import download_program, find_model_files
from pyclassify.training.checkpoints import CLASSIFIER_KEY
from tests.support import trainings
from tests.support.phrases import mentions
from tests.support.trainings import QUIET, SHAPES

PREDICT = f"predict --data=ImageFolderDataModule --data_path=pictures --data.num_workers=0 {QUIET}"
SOURCES = ["run", "digits", "alias", "version", "model", "program", "plain run", "checkpoint"]


@pytest.fixture(scope="module")
def trained(empty_store, tmp_path_factory):
    """Two trainings, one with a model, and tables of what the command predicts with each."""
    folder = tmp_path_factory.mktemp("loaded")
    with trainings.trained(empty_store, folder) as found:
        assert main(f"train {SHAPES} --log_model=false".split()) == 0
        plain = mlflow.search_runs(output_format="list")[0].info.run_id
        found.pictures = trainings.write_images(folder / "pictures")
        Image.new("L", (50, 31), 99).save(folder / "pictures" / "gray.png")
        client = mlflow.MlflowClient()
        files = find_model_files(client, "models:/shapes/1")
        found.given = {
            "run": found.run_id,
            "digits": found.run_id[:4],
            "alias": "models:/shapes@champion",
            "version": "models:/shapes/1",
            "model": f"models:/{client.search_logged_models(['1'])[0].model_id}",
            "program": download_program(client, files, str(folder / "there")),
            "plain run": plain,
            "checkpoint": next(folder.glob("runs/*/*/checkpoints/best.ckpt")),
        }
        found.tables = {}
        for kind, given in (("model", "models:/shapes/1"), ("checkpoint", plain)):
            table = f"--output={kind}.parquet"
            assert main(f"{PREDICT} --ckpt_path={given} {table}".split()) == 0
            found.tables[kind] = pd.read_parquet(f"{kind}.parquet")
        yield found


@pytest.mark.parametrize("kind", SOURCES)
def test_loaded_network_predicts_what_the_command_does(kind, trained):
    network = load(trained.given[kind])

    predictions = network.predict("pictures")

    table = trained.tables["checkpoint" if kind in ("plain run", "checkpoint") else "model"]
    assert len(predictions) == len(table) == 21
    for prediction, row in zip(predictions, table.itertuples(), strict=True):
        assert prediction["classes"][0] == row.label
        assert prediction["probabilities"][0] == pytest.approx(row.probability, abs=5e-7)
    assert network.classes == list(synthetic.CLASSES)
    assert isinstance(network.preprocess, Preprocess)


def test_store_is_that_of_the_given_uri(trained, other_store):
    for source in (trained.run_id[:8], "models:/shapes@champion", trained.given["plain run"]):
        assert load(source, tracking_uri=other_store).classes == list(synthetic.CLASSES)
    with pytest.raises(OSError, match=r"no database at .*other\.db"):
        load(trained.run_id)


@pytest.fixture(scope="module")
def network(trained):
    return load("models:/shapes@champion")


def test_call_gives_probabilities_of_a_batch(network):
    images = synthetic.generate_images(20, seed=2)[0]

    probabilities = network(images)

    assert probabilities.shape == (20, len(network.classes))
    assert not probabilities.requires_grad
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(20))


def test_preprocess_makes_the_input_of_the_network(network):
    prepared = network.preprocess(torch.zeros(2, 3, 50, 31, dtype=torch.uint8))

    size = network.preprocess.crop
    assert prepared.shape == (2, 3, size, size)


def test_images_in_memory_are_predicted_as_their_files(network, trained):
    file = trained.pictures / trainings.name_file(0)
    pixels = np.asarray(Image.open(file))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    (expected,) = network.predict(file)

    for given in (file, str(file), Image.open(file), pixels, tensor):
        assert network.predict(given) == network.predict([given]) == [expected]
    assert network.predict(pixels[None]) == network.predict(tensor[None]) == [expected]


def test_images_of_several_kinds_and_sizes_are_predicted_in_order(network, trained):
    gray = Image.open(trained.pictures / "gray.png")
    files = [trained.pictures / trainings.name_file(index) for index in range(20)]
    mixed = [gray, *files, np.asarray(gray), *files]

    predictions = network.predict(mixed, top_k=2)

    alone = [network.predict(image, top_k=2)[0] for image in mixed]
    for prediction, expected in zip(predictions, alone, strict=True):
        assert prediction["classes"] == expected["classes"]
        assert prediction["probabilities"] == pytest.approx(expected["probabilities"], abs=5e-7)


@pytest.mark.parametrize(("count", "given", "shown"), [(16, {}, False), (17, {}, True)])
def test_progress_is_shown_for_many_images(count, given, shown, network, capsys):
    network.predict(np.zeros((count, 8, 8, 3), np.uint8), **given)

    assert ("images" in capsys.readouterr().err) is shown


@pytest.mark.parametrize(
    ("given", "error", "facts"),
    [
        (np.zeros((8, 8, 3)), TypeError, ["float64", "uint8"]),
        (np.zeros((8, 8, 4), np.uint8), ValueError, ["[4, 8, 8]", "1 or 3 channels"]),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), ValueError, ["[3, 0, 8]"]),
        (3, TypeError, ["int", "a path"]),
        ("no.png", UnreadableImageError, ["no.png"]),
    ],
    ids=str,
)
def test_what_is_no_image_is_refused(given, error, facts, network):
    with pytest.raises(error) as raised:
        network.predict([given])

    assert mentions(str(raised.value), *facts)


def test_top_k_out_of_range_is_refused(network):
    with pytest.raises(ValueError, match=r"invalid top_k: 0 \(expected 1 to 10"):
        network.predict([], top_k=0)


@pytest.mark.parametrize(
    ("images", "error", "facts"),
    [
        (torch.zeros(1, 3, 8, 8), TypeError, ["torch.float32", "torch.uint8"]),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), ValueError, ["[3, 8, 8]", "[batch, 3, "]),
    ],
)
def test_call_with_other_tensors_is_refused(images, error, facts, network):
    with pytest.raises(error) as raised:
        network(images)

    assert mentions(str(raised.value), *facts)


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ("no.ckpt", ["no.ckpt is not a file", "first 4 to 32", "models:/NAME@ALIAS"]),
        ("models:/no@one", ["models:/no@one", "sqlite:///"]),
        ("models:/m-0", ["models:/m-0", "sqlite:///"]),
        ("0" * 32, ["no run 0000"]),
        ("pictures/notes.txt", ["notes.txt is not a checkpoint"]),
    ],
)
def test_what_holds_no_network_is_refused(given, facts, trained):
    with pytest.raises(ValueError, match=re.escape(facts[0])) as raised:
        load(given)

    assert mentions(str(raised.value), *facts)


def test_checkpoint_without_its_network_is_loaded_by_its_run_alone(trained, tmp_path):
    checkpoint = torch.load(trained.given["checkpoint"])
    del checkpoint[CLASSIFIER_KEY]
    torch.save(checkpoint, tmp_path / "older.ckpt")

    with pytest.raises(ValueError, match=r"older\.ckpt .*network; give the ID of its run"):
        load(tmp_path / "older.ckpt")
