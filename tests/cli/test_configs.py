"""The recipes in configs/: each is read, and takes a step on data laid out as it expects."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from torchvision.models import alexnet

from tests.support import images, tuned
from tests.support.trainings import QUIET

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"), key=lambda recipe: recipe.name)


def make_cifar10(folder, monkeypatch):
    """Images of random pixels, where torchvision looks for CIFAR-10."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *given: True)
    raw = folder / "cifar-10-batches-py"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 3072), np.uint8)
    batch = pickle.dumps({"data": pixels, "labels": list(range(10))})
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (raw / name).write_bytes(batch)
    names = {"label_names": [str(number) for number in range(10)]}
    (raw / "batches.meta").write_bytes(pickle.dumps(names))


def make_folder(folder):
    for part in ("train", "test"):
        for name in ("cats", "dogs"):
            (folder / part / name).mkdir(parents=True)
            for number in range(10):
                Image.new("RGB", (80, 70)).save(folder / part / name / f"{number}.png")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_is_a_short_commented_list_of_overrides(recipe):
    text = recipe.read_text()

    assert len(text.splitlines()) <= 40
    assert text.startswith("# ")
    assert yaml.safe_load(text).keys() <= {"model", "data", "trainer", "optimizer", "lr_scheduler"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_recipe_takes_a_step_and_is_tested(recipe, cli, tmp_path, monkeypatch):
    # Of 244 MB, one number for each tensor.
    tuned.write(tmp_path / "w.pth", tuned.spread(alexnet))
    sizes = {
        "finetune-alexnet.yaml": f"--data_path {tmp_path}/data --data.val_size=10 --weights=w.pth "
        "--data.resize=64 --data.crop=64",
        "synthetic.yaml": "--data.train_size=32 --data.val_size=20 --data.test_size=20",
        "image-folder.yaml": f"--data_path {tmp_path}/data",
    }
    options = sizes.get(recipe.name, f"--data_path {tmp_path}/data --data.val_size=10")
    make_folder(tmp_path / "data")
    images.make_mnist(tmp_path / "data")
    make_cifar10(tmp_path / "data", monkeypatch)
    # AlexNet's 57 million weights would take longer to keep than to train.
    step = "--max_epochs 1 --trainer.limit_train_batches 1 --trainer.enable_checkpointing=false"

    done = cli(f"train {options} {step} {QUIET}", f"--config={recipe}")

    assert done.code == 0
    assert done.runs[0].info.status == "FINISHED"
    assert "test_accuracy" in done.runs[0].data.metrics


def test_recipe_of_the_course_writes_out_the_defaults(cli):
    recipe = os.fspath(ROOT / "configs" / "alexnet-cifar10.yaml")

    assert cli("fit --print_config", f"--config={recipe}").out == cli("fit --print_config").out
