"""Compare the accuracy after a few epochs with that of a reference implementation.

Both train AlexNet from scratch on the same images, the first of each class, and are tested on all
test images. `fit` is `pyclassify train` with its defaults. `reference` runs on the CPU: PIL and
torchvision's transforms per image, a DataLoader without workers, and Adam with its defaults. Both
are tested with their last weights, since a best epoch by few validation images is random. The
accuracy varies much between seeds for few images: with 6,000, two seeds of `fit`, by their best
epochs, gave 0.318 and 0.378. Options after `--` are passed to `fit` only.
"""

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
from benchmarks.parts.command import BenchmarkParser
from benchmarks.parts.reference import make_transform
from pyclassify.datamodule import ImageFolderDataModule

ROOT = Path(__file__).parents[1]
BATCH = 64
VALIDATION_RATIO = 0.02  # of the training images, from the same folder; only `fit` reads them


def reference(folder, seed, epochs, _):
    """Train the reference implementation; return its test accuracy."""
    torch.manual_seed(seed)
    preprocess = ImageFolderDataModule(str(folder)).preprocess
    images = ImageFolder(folder / "train", make_transform(preprocess))
    network = alexnet(num_classes=len(images.classes))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    loader = DataLoader(images, BATCH, shuffle=True)
    for batch, labels in itertools.chain.from_iterable(itertools.repeat(loader, epochs)):
        loss = F.cross_entropy(network(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    test_images = ImageFolder(folder / "test", make_transform(preprocess, training=False))
    network.eval()
    with torch.inference_mode():
        correct = [
            network(batch).argmax(1).eq(labels).sum()
            for batch, labels in DataLoader(test_images, 256)
        ]
    return float(sum(correct)) / len(test_images)


def fit(folder, seed, epochs, extra_options):
    """Run `pyclassify train` with AlexNet's recipe; return its test accuracy."""
    options = [f"--batch_size={BATCH}", f"--max_epochs={epochs}", f"--seed={seed}"]
    options += ["--checkpoint.monitor=null", *extra_options]  # tests the last weights
    return run("train", "alexnet-cifar10.yaml", folder, *options)["test_accuracy"]


def run(command, recipe, folder, *options):
    """Run a training command on a folder of images, tracked in a new database; return its metrics.

    Raises:
        subprocess.CalledProcessError: The command failed; its error is on stderr.
    """
    with tempfile.TemporaryDirectory() as work_dir:
        uri = f"sqlite:///{work_dir}/mlflow.db"
        subprocess.run(
            [
                *(sys.executable, "-m", "pyclassify", command),
                f"--config={ROOT / 'configs' / recipe}",
                "--data=ImageFolderDataModule",
                f"--data_path={folder}",
                "--trainer.enable_progress_bar=false",
                *options,
            ],
            cwd=work_dir,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
                "MLFLOW_TRACKING_URI": uri,
            },
            check=True,
            stdout=subprocess.DEVNULL,
        )
        client = MlflowClient(uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        return client.search_runs(experiments)[0].data.metrics


IMPLEMENTATIONS = {"fit": fit, "reference": reference}


def link_images(source, target, count, validation_ratio=VALIDATION_RATIO):
    """Link the first images of each class into train/ and val/ of a folder, and all of test/."""
    classes = sorted(folder for folder in (source / "train").iterdir() if folder.is_dir())
    train_count = count // len(classes)
    val_count = max(round(validation_ratio * count / len(classes)), 1)
    for folder in classes:
        images = sorted(folder.iterdir())
        if not 0 < train_count <= len(images) - val_count:
            raise SystemExit(
                f"invalid --images: {count}, which is {train_count} of each of {len(classes)} "
                f"classes; {folder} has {len(images)} images (expected at least 1 of each class, "
                f"and {val_count} more for validation)"
            )
        splits = {"train": images[:train_count]}
        splits["val"] = images[train_count : train_count + val_count]
        for split, chosen in splits.items():
            (target / split / folder.name).mkdir(parents=True)
            for image in chosen:
                (target / split / folder.name / image.name).symlink_to(image.absolute())
    (target / "test").symlink_to((source / "test").absolute())


def main(args=None):
    examples = ("FOLDER", "FOLDER --images 6000 --seeds 2 -- --precision bf16-mixed")
    parser = BenchmarkParser("accuracy", __doc__, examples)
    parser.add_argument(
        "folder",
        type=Path,
        help="Read images from train/<class>/ and test/<class>/ in this folder.",
    )
    parser.add_argument(
        "--images", type=int, default=10_000, help="Train on this number of images."
    )
    parser.add_argument("--epochs", type=int, default=3, help="Train for this number of epochs.")
    parser.add_argument("--seeds", type=int, default=3, help="Repeat with this number of seeds.")
    parser.add_json_option()
    args, options = parser.parse_known_args(args)
    options = [option for option in options if option != "--"]
    accuracies = {name: [] for name in IMPLEMENTATIONS}
    with tempfile.TemporaryDirectory() as folder:
        link_images(args.folder, Path(folder), args.images)
        for seed in range(args.seeds):
            for name, train in IMPLEMENTATIONS.items():
                accuracies[name].append(train(Path(folder), seed, args.epochs, options))
                sys.stderr.write(json.dumps(accuracies) + "\n")
    means = {name: statistics.fmean(values) for name, values in accuracies.items()}
    row = {f"{name}, test accuracy": values for name, values in accuracies.items()}
    row["difference of the means"] = means["fit"] - means["reference"]
    row = {"images": args.images, "epochs": args.epochs, **row}
    report.print_table([row], accuracies, args.json)


if __name__ == "__main__":
    main()
