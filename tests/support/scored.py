"""A trained, tested and registered network, and its test images as a folder of files."""

import contextlib
import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import mlflow
from PIL import Image

from pyclassify import shapes
from pyclassify.cli import main
from tests.support.command_lines import SHAPES
from tests.support.stores import new_store


@contextmanager
def trained(empty_store, folder):
    """Train in a folder, which stays the current one, with a store of its own.

    It has the run's id, its predictions by file, and the model `shapes@champion`, version 1.
    """
    with new_store(empty_store, folder) as client, contextlib.chdir(folder):
        assert main(f"train {SHAPES} --register=shapes".split()) == 0
        run_id = client.get_model_version("shapes", "1").run_id
        yield SimpleNamespace(run_id=run_id, expected=_read_answers(run_id))


def _read_answers(run_id):
    path = mlflow.artifacts.download_artifacts(None, run_id, "predictions.json", ".")
    table = json.loads(Path(path).read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    return {name_file(row["index"]): (row["predicted"], row["probability"]) for row in rows}


def name_file(index):
    """A place for each image: some in folders that no class is called by."""
    return ("train/zebra/{:02}.png", "b/deep/er/{:02}.PNG", "{:02}.png")[index % 3].format(index)


def write_images(folder):
    """Write the test images of SHAPES as files, and a file that is none."""
    images, _ = shapes.draw(20, seed=2)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        path = folder / name_file(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "notes.txt").write_text("no image")
    return folder
