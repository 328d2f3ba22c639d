"""A user's clone of this project, with runs that pictures are taken of.

The clone is of the last commit. Its user, its folder and its home are the same everywhere, so that
no picture shows those of a developer.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

from pyclassify.data.images import READABLE_EXTENSIONS

ROOT = Path(__file__).parents[2]
USER = "ada"
EPOCHS = 2
# Options of `pyclassify train` by the name of the recipe.
RECIPES = {
    "alexnet-bn": "--config configs/alexnet-bn-cifar10.yaml --batch_size 128",
    "resnet18": "--model.model torchvision.models.resnet18 --learning_rate 0.001 --batch_size 128 "
    "--data.resize 32 --data.crop 32",
    "alexnet": "--config configs/alexnet-cifar10.yaml --learning_rate 0.0003",
}
IMAGES_PER_CLASS = {"train": 500, "test": 200}
SYNTHETIC = "--data SyntheticDataModule --data.train_size 2000 --data.test_size 1000"


class Demo:
    """The clone, in a folder that is reused: runs that are there are not trained again.

    Args:
        folder: The home of the user.
        data: A folder of images in train/CLASS/ and test/CLASS/; by default the synthetic dataset.
    """

    def __init__(self, folder: Path, data: Path | None):
        self.home, self.data = folder.resolve(), data
        self.project = self.home / "pyclassify"
        outer = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "SLURM_"))}
        bin_folder = Path(sys.executable).parent
        self.env = outer | {"HOME": str(self.home), "USER": USER, "LOGNAME": USER}
        self.env["PATH"] = f"{bin_folder}{os.pathsep}{outer['PATH']}"
        self.env["MLFLOW_EXPERIMENT_NAME"] = "CIFAR-10" if data else "Shapes"
        self.env["VIRTUAL_ENV"] = str(bin_folder.parent)
        self.home.mkdir(parents=True, exist_ok=True)
        if not self.project.exists():
            subprocess.run(["git", "clone", "--quiet", ROOT, self.project], check=True)
            # A run shows the branch, and the address of the clone's origin.
            self.run("git switch --quiet -C main")
            self.run("git remote remove origin")

    @property
    def tracking_uri(self):
        return f"sqlite:///{self.project}/mlflow.db"

    @property
    def client(self):
        """The client of the clone's store."""
        return MlflowClient(self.tracking_uri)

    def run(self, command, **env):
        """Run a command line in the clone; return its output.

        Raises:
            RuntimeError: It fails; with the last lines of its output.
        """
        ended = subprocess.run(
            shlex.split(command),
            cwd=self.project,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if ended.returncode:
            last = "\n".join(ended.stdout.splitlines()[-20:])
            raise RuntimeError(f"{command} exited with code {ended.returncode}:\n{last}")
        return ended.stdout

    def train(self, recipe):
        """Train a recipe, unless it was trained here before; return the training's output."""
        log = self.home / f"{recipe}.log"
        if not log.exists():
            options = f"{RECIPES[recipe]} {self._choose_data()} --max_epochs {EPOCHS}"
            sys.stderr.write(f"training: {options}\n")
            output = self.run(f"pyclassify train {options}")
            log.write_text(output)
        return log.read_text()

    def train_all(self):
        """Train all recipes; return the outputs by recipe."""
        return {recipe: self.train(recipe) for recipe in RECIPES}

    def _choose_data(self):
        """The options for the data; of a folder, for links to the first images of each class."""
        if self.data is None:
            return SYNTHETIC
        for split, count in IMAGES_PER_CLASS.items():
            for source in sorted((self.data.resolve() / split).iterdir()):
                link_images(source, self.home / "cifar10" / split / source.name, count)
        return "--data ImageFolderDataModule --data_path ../cifar10"


def link_images(source, folder, count):
    """Link the first images of a folder, by name, in a new one."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [path for path in source.iterdir() if path.suffix.lower() in READABLE_EXTENSIONS]
    for path in sorted(files)[:count]:
        if not (folder / path.name).is_symlink():
            (folder / path.name).symlink_to(path)


def find_run_id(output):
    """The ID of the run in the output of a training."""
    return re.search(r"^run +(\w+)$", output, re.MULTILINE)[1]


def find_link(label, output):
    """A link in the last lines of a training, by its label."""
    return re.search(rf"^{label} +(http.*)$", output, re.MULTILINE)[1]
