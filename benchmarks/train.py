"""Images a second of the whole training loop on a folder of images, over the plain way.

    python -m benchmarks.train FOLDER

The plain way: Pillow decodes, resizes, crops and flips in the training process, one image at a
time, and Adam is torch's default one. Both train AlexNet at batch 64 and take turns.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from benchmarks import clock
from pyclassify.cli import main as pyclassify

BATCH = 64
WARM_UP = 5  # steps


def ours(folder, steps):
    clock.ended.clear()
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the figures
        pyclassify(
            [
                "fit",
                "--data=ImageFolderDataModule",
                f"--data_path={folder}",
                f"--batch_size={BATCH}",
                "--max_epochs=1",
                f"--trainer.limit_train_batches={steps}",
                "--trainer.limit_val_batches=2",
                "--trainer.num_sanity_val_steps=0",
                "--trainer.callbacks=benchmarks.clock.StepClock",
            ]
        )
    return list(clock.ended)


def plain(folder, steps):
    prepare = transforms.Compose(
        [
            transforms.Resize(70),
            transforms.RandomCrop(64),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    dataset = ImageFolder(os.path.join(folder, "train"), prepare)
    network = models.alexnet(num_classes=len(dataset.classes))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    ended = []
    for step, (images, labels) in enumerate(DataLoader(dataset, BATCH, shuffle=True)):
        if step == steps:
            break
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ended.append(time.perf_counter())
    return ended


def images_per_second(ended):
    return BATCH * (len(ended) - 1 - WARM_UP) / (ended[-1] - ended[WARM_UP])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="holds train/<class>/<image>")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    folder = os.path.abspath(given.folder)
    figures = {"ours": [], "plain": []}
    with tempfile.TemporaryDirectory() as own, contextlib.chdir(own):
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{own}/mlflow.db"
        for _ in range(given.repeats):
            for way in (ours, plain):
                figures[way.__name__].append(images_per_second(way(folder, given.steps)))
    ratios = [a / b for a, b in zip(figures["ours"], figures["plain"], strict=True)]
    result = {
        "images_per_second": figures,
        "ratio": {
            "median": statistics.median(ratios),
            "from": min(ratios),
            "to": max(ratios),
        },
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
