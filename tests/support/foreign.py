"""A network, a module and data that know nothing of pyclassify, to be named by import path."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


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
