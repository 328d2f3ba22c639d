"""Images a second of the whole training loop on a folder of images, over the plain way.

    python -m benchmarks.train FOLDER

The plain way: Pillow decodes, resizes, crops and flips in the training process, one image at a
time, and Adam is torch's default one. Both train AlexNet at batch 64 and take turns.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from pyclassify.cli import main as pyclassify

BATCH = 64
WARM_UP = 5  # steps


class StepClock(Callback):
    """When each training step ended, in seconds."""

    ended: list[float] = []  # noqa: RUF012 (the command line makes the instance)

    def on_train_batch_end(self, *_):
        self.ended.append(time.perf_counter())


def ours(folder, steps):
    StepClock.ended.clear()
    with tempfile.TemporaryDirectory() as own:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{own}/mlflow.db"
        pyclassify(
            [
                "fit",
                "--data=ImageFolderDataModule",
                f"--data_path={folder}",
                f"--batch_size={BATCH}",
                "--max_epochs=1",
                f"--trainer.limit_train_batches={steps}",
                "--trainer.limit_val_batches=1",
                "--trainer.num_sanity_val_steps=0",
                f"--trainer.default_root_dir={own}",
                f"--trainer.logger.save_dir={own}",
                "--trainer.callbacks=benchmarks.train.StepClock",
            ]
        )
    return StepClock.ended


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
    figures = {"ours": [], "plain": []}
    for _ in range(given.repeats):
        for way in (ours, plain):
            figures[way.__name__].append(images_per_second(way(given.folder, given.steps)))
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
