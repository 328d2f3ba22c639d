"""A small network to fine-tune, files of its weights, and a way to train it."""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

from pyclassify.module import Classifier
from pyclassify.training.trainer import Trainer
from tests.support import networks


class Net(nn.Module):
    """Parts that learn, running statistics and dropout in front of a last layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.AdaptiveAvgPool2d(8),
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4),
            nn.Dropout(),
            nn.Flatten(),
        )
        self.body = nn.Linear(144, 8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.body(self.features(images)).relu())


def state(num_classes=7):
    """Weights as a training elsewhere may have left them."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = Net(num_classes)
    network.features[2].running_mean.add_(1)
    return network.state_dict()


def spread(network):
    """Weights of another network, one number for each tensor of them."""
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in network().state_dict().items()}
    return {name: torch.tensor(0.5).expand(shape) for name, shape in shapes.items()}


def write(path, content=None):
    torch.save(state() if content is None else content, path)
    return str(path)


def classifier(**options):
    torch.manual_seed(0)
    return Classifier(Net, num_classes=4, **options)


def images():
    return DataLoader(networks.byte_images(8), 4)


def trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return Trainer(accelerator="cpu", enable_checkpointing=False, **quiet, **options)


def fit(module, **options):
    """Take two steps, and give the trainer."""
    made = trainer(max_steps=2, **options)
    made.fit(module, images())
    return made


if __name__ == "__main__":  # in two processes, as test_finetune_runs.py starts it
    path, kept = sys.argv[1:]
    module = classifier(weights=path, freeze="features")
    fit(module, devices=2, strategy="ddp_fork")
    torch.save(module.model.state_dict(), kept)
