"""What can't be scored, or not written, is said in one line before anything is computed."""

import pytest

from tests.support.command_lines import QUIET

FOLDER = f"--data=ImageFolderDataModule --data_path=. {QUIET}"
MODEL = "--ckpt_path=models:/no@one"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (f"{MODEL} --output=table.txt", "output is table.txt; give a file that ends in .parquet o"),
        (f"{MODEL} --output=no/t.csv", "output is no/t.csv, and no is no folder; make it"),
        (
            f"{MODEL} --output=there.csv",
            "output is there.csv, which exists; name another file by --output, or remove it",
        ),
        (MODEL, "models:/no@one can't be had from sqlite:///"),
        ("--ckpt_path=models:/no", "nor a registered model (models:/NAME@ALIAS or models:/NAME/VE"),
        ("", "give --ckpt_path, a checkpoint file or a run's id, or a registered model (models:/"),
    ],
)
def test_prediction_is_refused(given, words, cli, tmp_path):
    (tmp_path / "there.csv").touch()

    done = cli(f"predict {FOLDER} {given}")

    assert done.code == 1
    assert f"{words}" in done.err
    assert done.err.count("\n") == 1


def test_registered_model_can_only_predict(cli):
    done = cli(f"test {FOLDER} {MODEL}")

    assert "models:/no@one is a registered model, which only predict takes; give test" in done.err
