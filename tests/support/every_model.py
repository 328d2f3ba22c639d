"""A step and an evaluation of a network of torchvision, on images as small as it allows.

`python -m tests.support.every_model NAME BYTES` does so within an address space of BYTES, and ends
with the line "trained", or with the line that pyclassify would print and exit code 1.
"""

import math
import resource
import sys

import torch

from pyclassify.cli.main import _format_error
from pyclassify.cli.network import NetworkSpec
from pyclassify.data.datasets import ImageTensors
from pyclassify.data.loaders import ImageDataModule
from pyclassify.module import Classifier
from tests.support import networks

COUNT = 5  # images
BATCH_SIZE = 4  # which leaves one

# The smallest sides of images that networks take, where 32 pixels are too few.
_SIDES = {"alexnet": 63, "inception_v3": 299, "maxvit_t": 224}
# Those of their own size take it as an option: the size of a patch, or 2 patches a side.
_OPTIONS = {
    "vit_b_16": {"image_size": 32},
    "vit_b_32": {"image_size": 32},
    "vit_h_14": {"image_size": 28},
    "vit_l_16": {"image_size": 32},
    "vit_l_32": {"image_size": 32},
}


class Images(ImageDataModule):
    """Random images of three classes."""

    classes = ("a", "b", "c")

    def __init__(self, side, count=COUNT, batch_size=BATCH_SIZE):
        super().__init__(batch_size, resize=side, crop=side)
        self.count = count

    def setup(self, stage):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (self.count, 3, 40, 40), dtype=torch.uint8, generator=generator)
        self.train = self.val = ImageTensors(images, torch.arange(self.count) % 3)


def train(name, count=COUNT, batch_size=BATCH_SIZE):
    """Train a network of torchvision for an epoch, and evaluate it; the trainer."""
    options = _OPTIONS.get(name, {})
    side = options.get("image_size", _SIDES.get(name, 32))
    path = f"torchvision.models.{name}"
    spec = NetworkSpec({"class_path": path, "init_args": options} if options else path)
    torch.manual_seed(0)
    trainer = networks.trainer(max_epochs=1)
    trainer.fit(Classifier(spec, 3), datamodule=Images(side, count, batch_size))
    return trainer


if __name__ == "__main__":
    _, model, size = sys.argv
    resource.setrlimit(resource.RLIMIT_AS, (int(size), int(size)))
    try:
        trainer = train(model, count=3, batch_size=2)
    except Exception as error:
        line = _format_error(error)
        if line is None:
            raise
        sys.stdout.write(f"{line}\n")
        sys.exit(1)
    losses = [float(trainer.callback_metrics[f"{split}_loss"]) for split in ("train", "val")]
    sys.stdout.write("trained\n" if all(map(math.isfinite, losses)) else f"losses {losses}\n")
