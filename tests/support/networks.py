"""Networks, modules, data and callbacks of someone else, most of them as small as they get."""

import functools
import os
import time
from collections.abc import Callable

import lightning.pytorch as pl
import torch
import torchvision
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer

from pyclassify.data.transforms import Preprocess
from pyclassify.utils import signals
from tests.support.stopping import Net


def network(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))


def byte_images(count, seed=0):
    """Images of four classes as bytes, as a data module of someone else may have them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return TensorDataset(images, torch.randint(4, (count,), generator=generator))


def trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    keeps_nothing = {"logger": False, "enable_checkpointing": False}
    one_process = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}
    return pl.Trainer(**{**quiet, **keeps_nothing, **one_process, **options})


class Recorder(pl.Callback):
    """Keeps the batches and the gradients of each step."""

    def __init__(self):
        self.training, self.validation, self.gradients = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.training.append(batch)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validation.append(batch)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append([each.grad.clone() for each in pl_module.parameters()])


class Unexportable(nn.Module):
    """A network that takes another path for other images, which torch.export can't follow."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.network = network(num_classes)

    def forward(self, images):
        return self.network(images if images.mean().item() > 0 else -images)


class Linear(nn.Sequential):
    def __init__(self, num_classes: int, side: int = 8) -> None:
        pixels = 3 * side * side
        super().__init__(nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(pixels, num_classes))


class Module(pl.LightningModule):
    def __init__(self, learning_rate: float = 0.1) -> None:
        super().__init__()
        self.network, self.learning_rate = Linear(10), learning_rate

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self.network(images), labels)

    def test_step(self, batch, batch_idx):
        self.log("its_own_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.learning_rate)


class Unlabelled(Module):
    """Takes -1 for the label of an image that has none."""

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self.network(images), labels - (labels == 9) * 10, ignore_index=-1)

    def test_step(self, batch, batch_idx):
        images, labels = batch
        batch[1] = labels - (labels == 9) * 10
        return {"logits": self.network(images)}


class Data(pl.LightningDataModule):
    def __init__(self, count: int = 32, batch_size: int = 8) -> None:
        super().__init__()
        self.count, self.batch_size = count, batch_size

    def train_dataloader(self):
        images = torch.randn(self.count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(images, torch.arange(self.count) % 10), self.batch_size)

    val_dataloader = test_dataloader = train_dataloader


class StagedData(Data):
    """Holds the images of the last stage that it was set up for."""

    def setup(self, stage: str) -> None:
        self.count = 32 if stage == "fit" else 8


class Writer(BasePredictionWriter):
    """Keeps what is predicted in the file predictions.pt."""

    def __init__(self) -> None:
        super().__init__("epoch")

    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        torch.save(torch.cat(predictions), "predictions.pt")


class Bug(pl.Callback):
    """Fails as a mistake in a program does."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        return 1 // 0


SIDE = 16


class Transformer(nn.Module):
    """Cuts images of 16 pixels into patches; no other size fits its places."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.places = nn.Parameter(torch.randn(1, 16, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        if images.shape[-2:] != (SIDE, SIDE):
            raise ValueError(f"images are of {tuple(images.shape[-2:])} pixels")
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return self.head(self.encoder(patches + self.places).mean(dim=1))


def TorchvisionTransformer(num_classes: int) -> nn.Module:
    network = VisionTransformer(SIDE, 4, 2, 2, 8, 16, num_classes=num_classes)
    nn.init.normal_(network.heads.head.weight)  # torchvision's zeros tell no image from another
    return network


class Foreign(pl.LightningModule):
    """Takes what its data module has prepared."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Transformer(10)

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return cross_entropy(self(images), labels)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Prepared(Foreign):
    """Takes bytes, and prepares them itself."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Transformer(4)
        self.preprocess = Preprocess(SIDE + 4, SIDE)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return super().training_step((self.preprocess(images), labels), batch_idx)


class Bytes(pl.LightningDataModule):
    """Bytes, and nothing that is known of them."""

    def train_dataloader(self):
        return DataLoader(byte_images(8), 4)

    test_dataloader = train_dataloader


class Moody(Linear):
    """Fails with seed 1 in the second of two processes, and never ends with seed 11."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, side=2)
        self.seed = torch.initial_seed()

    def forward(self, images):
        if self.seed == 1 and os.environ.get("RANK") == "1":
            raise ArithmeticError("nothing is well with seed 1")
        if self.seed == 11 and self.training:
            time.sleep(600)
        return super().forward(images)


class Waiting(Net):
    """Waits in its third step, with the seed that WAITS names, until it is told to stop."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.waits = os.environ.get("WAITS") == str(torch.initial_seed())
        self.steps = 0

    def forward(self, images):
        self.steps += self.training
        while self.waits and self.steps == 3 and not signals.get_pending_signal():
            time.sleep(0.02)
        return super().forward(images)


class Paced(Net):
    """`stopping.Net`, and PACE seconds a step; the numbers are the same with any."""

    def forward(self, images):
        if self.training:
            time.sleep(float(os.environ.get("PACE", "0")))
        return super().forward(images)


def make_linear(num_classes, side=8):
    """Make `Linear`, by a function without annotations."""
    return Linear(num_classes, side)


make_small = functools.partial(make_linear, side=2)


def create_model(model_name, pretrained=False, **kwargs):
    """Make a network by its name, as timm.create_model does."""
    makers = {"linear": Linear, "squeezenet": torchvision.models.SqueezeNet}
    return makers[model_name](**kwargs)


class Deep(nn.Module):
    """Takes an argument before num_classes, and a layer by its import path."""

    def __init__(
        self,
        depth: int,
        num_classes: int,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        norm = nn.BatchNorm1d if norm_layer is None else norm_layer
        layers = [layer for _ in range(depth) for layer in (nn.Linear(48, 48), norm(48))]
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), *layers)
        self.head = nn.Linear(48, num_classes)

    def forward(self, images):
        return self.head(self.layers(images))


def make_nothing(num_classes):
    return {"num_classes": num_classes}


def make_two_classes(side=8):
    return Linear(2, side)
