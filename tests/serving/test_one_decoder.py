"""Training, validation, prediction and the served model read, or refuse, each file alike."""

import re
import warnings
from hashlib import sha256
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from pyclassify.data.datasets import UNREADABLE, ImageFiles, UnlabeledImageFiles
from pyclassify.data.images import is_readable
from pyclassify.data.transforms import Preprocess, resize
from pyclassify.serving.artifact import save_model
from tests.support.image_files import READ, REFUSED, SIDE
from tests.support.images import encode
from tests.support.trainings import LINEAR, QUIET

SMALLER = 10  # pixels of a side, after resizing
REASON = re.compile(r"does not decode as an image \((.+)\); ")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of all files."""
    folder = tmp_path_factory.mktemp("files")
    for name, sample in {**READ, **REFUSED}.items():
        (folder / name).write_bytes(sample.content)
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A served model: `read(content)` is what its network gets of a file, uint8 [3, h, w]."""
    folder = tmp_path_factory.mktemp("served") / "model"
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    save_model(folder, network, Preprocess(SMALLER, SMALLER), ["red", "green", "blue"])
    model = mlflow.pyfunc.load_model(str(folder))
    runner = model.unwrap_python_model().runner
    classify, seen = runner.classify, []
    runner.classify = lambda images: seen.append(torch.from_numpy(images)) or classify(images)

    def read(content):
        model.predict(pd.DataFrame({"image": [encode(content)]}))
        return seen[-1][0]

    return SimpleNamespace(read=read)


def list_sets(folder, name, size):
    """The data sets of a file, by what reads them."""
    files = [str(folder / name)]
    return {
        "training": ImageFiles(folder, files, [0], size, float_resize=False),
        "exact training": ImageFiles(folder, files, [0], size, float_resize=True),
        "validation": ImageFiles(folder, files, [0], size),
        "prediction": UnlabeledImageFiles(folder, files, size),
        "prediction of bytes": UnlabeledImageFiles(folder, files, None),
    }


def digest(image):
    return sha256(image.byte().contiguous().numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", READ)
def test_file_is_read_as_the_same_rgb_by_all(name, folder, served):
    sample = READ[name]
    expected = torch.from_numpy(sample.rgb.copy()).permute(2, 0, 1)

    images = {by: files[0][0] for by, files in list_sets(folder, name, SIDE).items()}
    images["serving"] = served.read(sample.content)

    assert is_readable(name)
    assert {image.shape for image in images.values()} == {expected.shape}
    assert len({digest(image) for image in images.values()}) == 1, images
    assert (images["serving"].int() - expected.int()).abs().max() <= sample.tolerance


@pytest.mark.parametrize("name", READ)
def test_file_is_resized_equally_by_all(name, folder, served):
    images = {by: files[0][0] for by, files in list_sets(folder, name, SMALLER).items()}
    images["serving"] = resize(served.read(READ[name].content)[None], SMALLER)[0]

    quick = images.pop("training")
    del images["prediction of bytes"]
    for image in images.values():
        assert image.equal(images["validation"])
        assert (image - quick).abs().max() <= 1


@pytest.mark.parametrize("name", REFUSED)
def test_file_is_refused_by_all_with_the_same_reason(name, folder, served):
    reasons = set()
    for files in list_sets(folder, name, SIDE).values():
        files.skip = False
        with pytest.raises(MisconfigurationException, match=re.escape(str(folder / name))) as error:
            files[0]
        reasons.update(REASON.findall(str(error.value)))
    with pytest.raises(mlflow.MlflowException, match=r"^image 0 ") as error:
        served.read(REFUSED[name].content)
    reasons.update(REASON.findall(error.value.message))

    assert len(reasons) == 1
    assert REFUSED[name].refusal in reasons.pop()
    assert UnlabeledImageFiles(folder, [str(folder / name)], SIDE)[0][1] == UNREADABLE


def test_every_kind_is_trained_on_and_predicted(cli, folder, tmp_path):
    for number, (name, sample) in enumerate(READ.items()):
        path = tmp_path / "photos/train" / ("even", "odd")[number % 2] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.content)
    data = f"--data=ImageFolderDataModule --data.num_workers=0 {QUIET}"

    trained = cli(f"fit {data} --data_path=photos {LINEAR} --max_epochs=1 --batch_size=50")
    ckpt_path = f"--ckpt_path={trained.runs[0].info.run_id} --output=table.csv"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        predicted = cli(f"predict {data} --data_path={folder} {ckpt_path}")

    assert (trained.code, predicted.code) == (0, 0), trained.err + predicted.err
    table = pd.read_csv(tmp_path / "table.csv").set_index("file")
    assert set(table.index) == {*READ, *REFUSED}
    assert set(table.index[table["label"].isna()]) == set(REFUSED)
    lines = [str(warning.message) for warning in warned]
    assert any(f"{len(REFUSED)} of" in line and "can't be decoded" in line for line in lines)
    assert any("bomb.png does not decode as an image (more pixels" in line for line in lines)
