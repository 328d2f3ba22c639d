"""The benchmark of the accuracy, on few images."""

import json

import pytest

from benchmarks import accuracy
from tests.support.forking_python import replace_python
from tests.support.images import grow


def test_both_implementations_train_and_test_on_the_same_images(tmp_path, monkeypatch, capsys):
    replace_python(monkeypatch)
    grow(tmp_path / "photos", "train/cat", "train/dog", count=5)
    grow(tmp_path / "photos", "test/cat", "test/dog", count=2)
    few = ["--images=8", "--epochs=1", "--seeds=1", f"--json={tmp_path / 'all.json'}"]
    small = ["--model.model=tests.support.networks.Linear", "--data.num_workers=0"]

    accuracy.main([str(tmp_path / "photos"), *few, "--", *small])

    result = json.loads((tmp_path / "all.json").read_text())
    assert [len(result[name]) for name in ("fit", "reference")] == [1, 1]
    assert all(result[name][0] in (0, 0.25, 0.5, 0.75, 1) for name in accuracy.IMPLEMENTATIONS)
    assert capsys.readouterr().out.splitlines()[-1].startswith("| 8 | 1 | ")


def test_more_images_than_exist_is_an_error(tmp_path):
    grow(tmp_path, "train/cat", "train/dog", count=5)

    with pytest.raises(SystemExit, match=r"--images: 10.*\b5\b.*\b2\b.*cat has 5"):
        accuracy.link_images(tmp_path, tmp_path / "links", 10)
