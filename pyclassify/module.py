"""The LightningModule that trains any network to classify images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from pyclassify.model import AlexNet
from pyclassify.transforms import Preprocess, random_draws


class Classifier(LightningModule):
    """Train a network with the cross-entropy loss and report its accuracy.

    Args:
        model: Makes the network, given num_classes: a class or function by its import path, such
            as torchvision.models.resnet18.
        num_classes: How many classes to tell apart; follows the data where they know it.
        learning_rate: Adam's learning rate, where no --optimizer is named.
    """

    def __init__(
        self,
        model: Callable[..., nn.Module] = AlexNet,
        num_classes: int = 10,
        learning_rate: float = 1e-4,
    ) -> None:
        super().__init__()
        self.num_classes, self.learning_rate = num_classes, learning_rate
        self.model = model(num_classes=num_classes)
        self.preprocess = Preprocess()  # for bytes of a data module that is not ours
        accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.train_accuracy = accuracy
        self.val_accuracy, self.test_accuracy = accuracy.clone(), accuracy.clone()
        # "disable" shows a loss that is NaN as such; looking for one would wait for the GPU.
        loss = MeanMetric(nan_strategy="disable")
        self.val_loss, self.test_loss = loss, loss.clone()

    def forward(self, images: Tensor) -> Tensor:
        """Score images, float [batch, 3, height, width]; logits, float [batch, num_classes]."""
        return self.model(images)

    def _classifier_step(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Classify a batch of images [batch, 3, height, width] and labels [batch].

        Returns:
            The logits [batch, num_classes], the true labels [batch], and the mean loss [].
        """
        images, labels = batch
        logits = self(self._prepare(images))
        return logits, labels, F.cross_entropy(logits, labels)

    def _prepare(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            return images
        draws = random_draws(len(images), images.device) if self.training else None
        return self.preprocess(images, draws).to(self.dtype)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        logits, labels, loss = self._classifier_step(batch)
        self.train_accuracy(logits.argmax(dim=1), labels)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_accuracy", self.train_accuracy, on_step=True, on_epoch=False, prog_bar=True)
        return loss

    def validation_step(
        self, batch: Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluation_step(batch, batch_idx, self.trainer.val_dataloaders, dataloader_idx, "val")

    def test_step(
        self, batch: Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0
    ) -> dict[str, Tensor]:
        """Score a batch; callbacks get its "logits", float [batch, num_classes]."""
        loaders = self.trainer.test_dataloaders
        return {"logits": self._evaluation_step(batch, batch_idx, loaders, dataloader_idx, "test")}

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Class probabilities of a batch of images, float [batch, num_classes]."""
        return self(self._prepare(batch[0])).softmax(dim=1)

    def _evaluation_step(
        self,
        batch: Sequence[Tensor],
        batch_idx: int,
        loaders: Any,
        dataloader_idx: int,
        stage: str,
    ) -> Tensor:
        loader = CombinedLoader(loaders).flattened[dataloader_idx]
        real = count_real(loader, batch_idx, len(batch[1]))
        # A rank whose batch is all padding takes the step too: others may wait for it in there.
        logits, labels, loss = self._classifier_step([part[: max(real, 1)] for part in batch])
        mean_loss, accuracy = getattr(self, f"{stage}_loss"), getattr(self, f"{stage}_accuracy")
        if batch_idx == 0:  # Lightning resets them after all loaders, not between two
            mean_loss.reset()
            accuracy.reset()
        if real > 0:
            mean_loss.update(loss.expand(real))
            accuracy.update(logits.argmax(dim=1), labels)
        self.log(f"{stage}_loss", mean_loss, on_epoch=True, prog_bar=True)
        self.log(f"{stage}_accuracy", accuracy, on_epoch=True, prog_bar=True)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam (Kingma and Ba, arXiv:1412.6980); a command line's --optimizer replaces it."""
        # Lightning's gradient clipping can't unscale 16-bit floats inside a fused step.
        fused = self.trainer.precision != "16-mixed"
        return torch.optim.Adam(self.parameters(), self.learning_rate, fused=fused)


def count_real(loader: Any, batch_idx: int, batch: int) -> int:
    """Count the images of a batch that are no padding.

    A DistributedSampler repeats images so that every process gets as many; the repeated ones are
    the last of the last batch, and must not count twice in an evaluation.
    """
    batches: Any = getattr(loader, "batch_sampler", None)
    sampler = getattr(batches, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return batch
    everything: Any = sampler.dataset
    mine = len(range(sampler.rank, len(everything), sampler.num_replicas))
    return min(batch, max(0, mine - batch_idx * batches.batch_size))
