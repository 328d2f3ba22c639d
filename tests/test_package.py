"""The public classes of the package: importable from it, and loaded only then."""

import subprocess
import sys
from importlib import import_module

import pytest

import pyclassify


@pytest.mark.parametrize("name", pyclassify.__all__)
def test_public_class_is_importable_from_the_package(name):
    found = getattr(pyclassify, name)
    assert isinstance(found, type)
    assert found is getattr(import_module(found.__module__), name)
    assert name in dir(pyclassify)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="AlexNett"):
        pyclassify.AlexNett  # noqa: B018


def test_importing_the_package_loads_neither_torch_nor_mlflow():
    code = "import sys, pyclassify; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"lightning", "mlflow", "numpy", "torch"} & {*loaded}


def test_example_of_the_package_builds_its_classes(tmp_path):
    from pyclassify import AlexNet, CIFAR10DataModule, Classifier, Trainer

    options = {"logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    trainer = Trainer(max_epochs=1, **options)

    assert trainer.max_epochs == 1
    assert isinstance(Classifier(AlexNet).model, AlexNet)
    assert CIFAR10DataModule().num_classes == 10
