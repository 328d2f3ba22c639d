"""Accuracy after a few epochs, beside the course's way: being faster must not cost any.

    python -m benchmarks.accuracy FOLDER [--images 10000] [--epochs 3] [--seeds 3] [--json FILE]
        [-- OPTION ...]

FOLDER holds train/<class>/<image> and test/ likewise. Both ways train AlexNet from scratch on the
same images, the first of each class, and are tested on all of test/: `fit`, which is `pyclassify
train` as it comes; and `reference`, on the CPU: PIL and torchvision's transforms an image, a
DataLoader without workers and Adam as it comes. Both are tested with their last weights, as a best
epoch by few images is luck. Each seed is a turn of both. Of few images the seeds' spread is wide:
with 6,000, two seeds of `fit`, by their best epochs, gave 0.318 and 0.378. Options behind `--` are
those of `fit` alone.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from mlflow import MlflowClient
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.models import alexnet

from benchmarks.parts import report
from benchmarks.parts.reference import prepare_as
from pyclassify.datamodule import ImageFolderDataModule

ROOT = Path(__file__).parents[1]
BATCH = 64
VALIDATED = 0.02  # of each class, beside what is trained on: `fit` alone looks at them


def reference(folder, seed, epochs, _):
    """The course's way; its accuracy on test/."""
    torch.manual_seed(seed)
    preprocess = ImageFolderDataModule(str(folder)).preprocess
    images = ImageFolder(folder / "train", prepare_as(preprocess))
    network = alexnet(num_classes=len(images.classes))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    loader = DataLoader(images, BATCH, shuffle=True)
    for batch, labels in itertools.chain.from_iterable(itertools.repeat(loader, epochs)):
        loss = F.cross_entropy(network(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tested = ImageFolder(folder / "test", prepare_as(preprocess, training=False))
    network.eval()
    with torch.inference_mode():
        right = [
            network(batch).argmax(1).eq(labels).sum() for batch, labels in DataLoader(tested, 256)
        ]
    return float(sum(right)) / len(tested)


def fit(folder, seed, epochs, more):
    """`pyclassify train` with AlexNet's recipe and more options; its `test_accuracy`."""
    options = (f"--batch_size={BATCH}", f"--max_epochs={epochs}", f"--seed={seed}")
    last = "--checkpoint.monitor=null"
    return run("train", "alexnet-cifar10.yaml", folder, *options, last, *more)["test_accuracy"]


def run(verb, recipe, folder, *options):
    """Run a verb with a recipe on a folder of images, tracked in a place of its own; its metrics.

    Raises:
        subprocess.CalledProcessError: It failed; it has said why.
    """
    with tempfile.TemporaryDirectory() as own:
        uri = f"sqlite:///{own}/mlflow.db"
        subprocess.run(
            [
                *(sys.executable, "-m", "pyclassify", verb),
                f"--config={ROOT / 'configs' / recipe}",
                "--data=ImageFolderDataModule",
                f"--data_path={folder}",
                "--trainer.enable_progress_bar=false",
                *options,
            ],
            cwd=own,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "MLFLOW_TRACKING_URI": uri,
            },
            check=True,
            stdout=subprocess.DEVNULL,
        )
        client = MlflowClient(uri)
        experiments = [each.experiment_id for each in client.search_experiments()]
        return client.search_runs(experiments)[0].data.metrics


WAYS = {"fit": fit, "reference": reference}


def choose(folder, own, count, validated=VALIDATED):
    """Lay the first images of each class in `own`, as links: train/, some in val/, and test/."""
    classes = sorted(each for each in (folder / "train").iterdir() if each.is_dir())
    each, beside = count // len(classes), max(round(validated * count / len(classes)), 1)
    for source in classes:
        images = sorted(source.iterdir())
        if not 0 < each <= len(images) - beside:
            raise SystemExit(
                f"--images {count} is {each} of each of {len(classes)} classes, and {source} has "
                f"{len(images)}; give at least one of each, and leave {beside} for validation"
            )
        for part, chosen in (("train", images[:each]), ("val", images[each : each + beside])):
            (own / part / source.name).mkdir(parents=True)
            for image in chosen:
                (own / part / source.name / image.name).symlink_to(image.absolute())
    (own / "test").symlink_to((folder / "test").absolute())


def main(args=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000, help="to train on")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", help="a file for all figures")
    given, options = parser.parse_known_args(args)
    options = [each for each in options if each != "--"]
    found = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as own:
        choose(given.folder, Path(own), given.images)
        for seed in range(given.seeds):
            for way, accuracies in found.items():
                accuracies.append(WAYS[way](Path(own), seed, given.epochs, options))
                sys.stderr.write(json.dumps(found) + "\n")
    means = {way: statistics.fmean(accuracies) for way, accuracies in found.items()}
    line = {f"{way}, test accuracy": accuracies for way, accuracies in found.items()}
    line["difference of the means"] = means["fit"] - means["reference"]
    report.tell([{"images": given.images, "epochs": given.epochs, **line}], found, given.json)


if __name__ == "__main__":
    main()
