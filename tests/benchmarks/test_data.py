"""The benchmark of the data modules, in a short form."""

import json

import pytest

from benchmarks import data
from benchmarks.parts import jpegs


def test_data_modules_and_pil_are_measured_on_the_same_images(tmp_path, capsys):
    data.main(["--short", f"--json={tmp_path / 'all.json'}"])

    result = json.loads((tmp_path / "all.json").read_text())
    assert list(result["datasets"]) == [
        "CIFAR10DataModule",
        "SyntheticDataModule",
        "ImageFolderDataModule, JPEGs of 32 pixels",
        "ImageFolderDataModule, JPEGs of 32 pixels, cache",
        "ImageFolderDataModule, JPEGs of 256 pixels",
        "ImageFolderDataModule, JPEGs of 256 pixels, cache",
    ]
    for rates in result["datasets"].values():
        assert rates["ratio"] == [pytest.approx(rates["ours"][0] / rates["pil"][0])]
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("| CIFAR", "| Synth", "| Image")) for line in lines) == 6


def test_generated_jpegs_are_in_classes_and_reproducible(tmp_path):
    sizes = [
        jpegs.make(tmp_path / name, 7, 16, classes=3, canvas_side=64) for name in ("one", "two")
    ]

    one, two = (sorted((tmp_path / name).rglob("*.jpg")) for name in ("one", "two"))
    assert [path.parent.name for path in one] == ["class0000"] * 3 + ["class0001"] * 2 + [
        "class0002"
    ] * 2
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert sizes == [sum(path.stat().st_size for path in one)] * 2
