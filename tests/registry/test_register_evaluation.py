"""A trained network is compared with the champion when it is registered."""

import contextlib
import io
import json
import re
import shutil
from types import SimpleNamespace

import mlflow
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from pyclassify.cli.main import main
from pyclassify.data import synthetic
from pyclassify.data.datasets import ImageFiles, ImageTensors
from pyclassify.datamodule import SyntheticDataModule
from pyclassify.registry.register import predict_version
from tests.support.phrases import mentions
from tests.support.stores import list_runs, new_store
from tests.support.trainings import LINEAR, QUIET

SET = "--data=SyntheticDataModule --data.train_size=400 --data.val_size=200 --data.test_size=300"
FAST = f"--batch_size=50 --trainer.log_every_n_steps=1 {QUIET}"
GOOD = f"train {SET} {FAST} {LINEAR} --max_epochs=3 --learning_rate=0.01"
BAD = f"train {SET} {FAST} {LINEAR} --max_epochs=1 --learning_rate=0"
REGISTER = "--register=shapes"


@pytest.fixture(scope="module")
def trained(empty_store, tmp_path_factory):
    """Version 1, which has learned nothing, and then version 2, which has.

    Of each the output, and a copy of the database as it was after it.
    """
    folder, versions = tmp_path_factory.mktemp("trained"), []
    with new_store(empty_store, folder), contextlib.chdir(folder):
        for command in (BAD, GOOD):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert main(f"{command} {REGISTER}".split()) == 0
            database = shutil.copy(folder / "mlflow.db", folder / f"{len(versions)}.db")
            versions.append(SimpleNamespace(out=out.getvalue(), database=database))
    return versions


@pytest.fixture
def bad_champion(cli, trained, tmp_path):
    """A store, for `cli` too, that has version 1."""
    with new_store(trained[0].database, tmp_path / "one") as client:
        yield client


@pytest.fixture
def good_champion(cli, trained, tmp_path):
    """A store, for `cli` too, that has both versions."""
    with new_store(trained[1].database, tmp_path / "two") as client:
        yield client


def read_aliases():
    model = mlflow.MlflowClient().get_registered_model("shapes")
    return {alias: str(version) for alias, version in model.aliases.items()}


def test_better_network_becomes_champion_and_a_worse_one_does_not(cli, trained, good_champion):
    third = cli(f"{BAD} {REGISTER}")

    outputs = [re.search("^model +shapes (.+)", each.out, re.M)[1] for each in (*trained, third)]
    assert outputs[0].startswith("version 1 is champion: ")
    assert re.match("version 2 is champion: .*better than version 1 ", outputs[1])
    assert re.match("version 2 stays champion: .*version 3 .* than version 2 ", outputs[2])
    assert read_aliases() == {"champion": "2", "challenger": "3"}


def test_first_version_below_min_accuracy_is_no_champion(cli):
    result = cli(f"{BAD} {REGISTER} --register.min_accuracy=0.9")

    assert "< min_accuracy 0.9" in result.out
    assert read_aliases() == {"challenger": "1"}


def test_champion_of_other_images_is_evaluated_on_those_of_the_new_one(cli, bad_champion):
    result = cli(f"{GOOD} --data.test_size=200 {REGISTER}")

    assert re.search("shapes version 2 is champion: .*better than version 1 ", result.out)
    assert "on 200 images" in result.out


def test_versions_are_compared_on_validation_images_where_configured(cli, bad_champion):
    result = cli(f"{GOOD} {REGISTER} --register.compare_on=val")

    assert "on 200 images" in result.out
    assert read_aliases()["champion"] == "2"


def test_predict_version_reproduces_the_logged_predictions(good_champion):
    run, _ = list_runs(good_champion)
    table = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/predictions.json"))
    index, label, guess = (table["columns"].index(each) for each in ("index", "label", "predicted"))
    data = SyntheticDataModule(train_size=400, val_size=200, test_size=300)
    data.setup("test")
    predictions = predict_version(good_champion, "shapes", "2", data.test, data.classes)

    logged = {row[index]: (row[label], row[label] == row[guess]) for row in table["data"]}
    assert predictions == logged


def test_predict_version_with_indices_predicts_those_alone(good_champion):
    data = SyntheticDataModule(train_size=400, val_size=200, test_size=300)
    data.setup("test")

    predictions = predict_version(good_champion, "shapes", "2", data.test, data.classes)
    some = predict_version(good_champion, "shapes", "2", data.test, data.classes, {0, 130, 299})

    assert some == {index: predictions[index] for index in (0, 130, 299)}


def test_predict_version_reads_whole_images_from_files(good_champion, tmp_path):
    images, labels = synthetic.generate_images(12, seed=3)
    files = []
    for number, image in enumerate(images):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(files[-1])
    whole = ImageTensors(images, labels)
    in_files = ImageFiles(tmp_path, files, labels, size=16)  # which it would hand out to a training

    predictions = predict_version(good_champion, "shapes", "2", in_files, synthetic.CLASSES)

    assert predictions == predict_version(good_champion, "shapes", "2", whole, synthetic.CLASSES)
    assert len(predictions) == 12


def test_predict_version_of_float_images_raises(good_champion):
    images = TensorDataset(torch.zeros(1, 3, 64, 64), torch.zeros(1))

    with pytest.raises(ValueError, match=r"torch\.float32\b.*uint8"):
        predict_version(good_champion, "shapes", "2", images, synthetic.CLASSES)


def test_predict_version_for_other_classes_raises(bad_champion):
    with pytest.raises(ValueError, match="version 1") as refused:
        predict_version(bad_champion, "shapes", "1", [], ["cat", "dog"])
    assert mentions(str(refused.value), "10 classes", "2 (cat, dog")
