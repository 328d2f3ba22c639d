"""The examples of data sets and listings; tests/test_package.py runs those of public classes."""

import doctest
import os
from pathlib import Path

import pytest
import torch

from pyclassify.data.datasets import ImageDataset, ImageFiles, ImageTensors
from pyclassify.data.image_folder import LeftOut, ListedSplit, list_split
from pyclassify.data.loaders import split_indices
from tests.support.images import grow

INTERNAL = (ImageDataset, ImageTensors, ImageFiles, LeftOut, ListedSplit, split_indices)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A current folder with photos/train and 10 images of each of two classes in it."""
    grow(tmp_path / "photos", "train/cat", "train/dog", count=10)
    monkeypatch.chdir(tmp_path)


def run(documented, names):
    """Run the examples of a docstring: what failed, as doctest reports it."""
    (test,) = doctest.DocTestFinder(recurse=False).find(documented, globs=dict(names))
    report = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.attempted > 0
    return "".join(report)


@pytest.mark.parametrize("documented", INTERNAL, ids=lambda documented: documented.__name__)
def test_example_of_internal_class_runs(documented, photos):
    names = {item.__name__: item for item in (*INTERNAL, list_split, Path)}

    assert run(documented, {**names, "os": os, "torch": torch}) == ""
