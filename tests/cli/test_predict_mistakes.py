"""Invalid checkpoints and tables of predictions are refused before anything is computed."""

import pytest

from tests.support.phrases import mentions
from tests.support.trainings import QUIET

FOLDER = f"--data=ImageFolderDataModule --data_path=. {QUIET}"
MODEL = "--ckpt_path=models:/no@one"


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        (f"{MODEL} --output=no/t.csv", ["output", "no/t.csv", "folder"]),
        (
            f"{MODEL} --output=there.csv",
            # the form of this message
            [
                "output is there.csv, which exists; give another file by --output, or remove "
                "this one"
            ],
        ),
        (MODEL, ["models:/no@one", "sqlite:///"]),
        ("--ckpt_path=models:/no", ["models:/no", "models:/NAME@ALIAS", "models:/NAME/VE"]),
    ],
)
def test_prediction_is_refused(given, facts, cli, tmp_path):
    (tmp_path / "there.csv").touch()

    done = cli(f"predict {FOLDER} {given}")

    assert done.code == 1
    assert mentions(done.err, *facts)
    assert done.err.count("\n") == 1


def test_registered_model_can_only_predict(cli):
    done = cli(f"test {FOLDER} {MODEL}")

    assert done.code == 2
    assert mentions(done.err, "models:/no@one", "registered model", "predict")
