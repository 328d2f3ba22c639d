"""Networks and modules of someone else, with preprocessing or without, some of one image size."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.models import VisionTransformer

from pyclassify.transforms import Preprocess
from tests.support import small

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
        return DataLoader(small.byte_images(8), 4)

    test_dataloader = train_dataloader
