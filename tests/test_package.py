"""The public classes of the package: importable from it, and loaded only then."""

import doctest
import subprocess
import sys
from functools import partial
from importlib import import_module

import pytest

import pyclassify
from pyclassify import SyntheticDataModule, Trainer
from tests.support.images import grow

# Public classes that documentation names and `pyclassify` itself does not have.
MORE_CLASSES = [
    "serving.export.ExportedClassifier",
    "tracking.metrics.RunMetrics",
    "tracking.prediction_table.Predictions",
    "tracking.predictions.PredictionLogger",
    "training.checkpoints.AtomicCheckpointIO",
    "training.checkpoints.BestCheckpoint",
    "training.exact_resume.Resume",
    "training.prediction_writer.PredictionWriter",
]


@pytest.mark.parametrize("name", pyclassify.__all__)
def test_public_class_is_importable_from_the_package(name):
    found = getattr(pyclassify, name)
    assert callable(found)
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


@pytest.fixture
def example_folder(store, tmp_path, monkeypatch):
    """Run an example in a folder with the images `photos`, and with a new store.

    `Trainer` and `SyntheticDataModule` of the package are quiet and small, so that examples can be
    written as a user would write them.
    """
    monkeypatch.chdir(tmp_path)
    grow(tmp_path / "photos", "train/cat", "train/dog", "test/cat", "test/dog", count=10)
    quiet = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    small = {"train_size": 32, "val_size": 16, "test_size": 16}
    monkeypatch.setattr(pyclassify, "Trainer", partial(Trainer, **quiet))
    monkeypatch.setattr(pyclassify, "SyntheticDataModule", partial(SyntheticDataModule, **small))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*pyclassify.__all__, *MORE_CLASSES])
def test_example_of_public_class_runs(name, example_folder):
    module, _, class_name = f"pyclassify.{name}".rpartition(".")
    found = getattr(import_module(module), class_name)
    documented = found.func if isinstance(found, partial) else found
    test = doctest.DocTestParser().get_doctest(documented.__doc__, {}, name, None, None)
    report = []

    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)

    assert test.examples
    assert results.failed == 0, "".join(report)
