"""The LightningModule that trains any network to classify images."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy
from torchvision.models import WeightsEnum

from pyclassify.data.loaders import count_unpadded
from pyclassify.data.transforms import Preprocess, generate_global_integers
from pyclassify.model import AlexNet, NetworkFactory
from pyclassify.training import finetuning
from pyclassify.training.forward import Outputs, compute_outputs, get_logits


class Classifier(LightningModule):
    """Train a network with the cross-entropy loss and report its accuracy.

    Example:
        >>> Classifier(torchvision.models.resnet18, num_classes=100, label_smoothing=0.1)

    Args:
        model: Makes the network, given num_classes: a class or function by its import path, such
            as torchvision.models.resnet18. Its options are --model.model.NAME, and
            --model.model.help lists them; `weights` of torchvision's are loaded except for the
            layer of the classes.
        num_classes: How many classes to tell apart; follows the data where they know it.
        learning_rate: Adam's learning rate, where no --optimizer is named.
        weights: A file of weights to start from: a state dict or checkpoint of torch.save, or a
            .safetensors file; its last layer may be of other classes. It is read where training
            starts, not where it goes on or is tested, and so need not be there any more.
        freeze: Parts of the network that do not learn, such as features; one name or a list.
        channels_last: Whether convolutions get the channels of a pixel side by side in memory: a
            little faster on a CPU, and more so in bf16. Not for a network whose forward uses
            `view`, or has convolutions of 1 or 3 dimensions.
        compile: Whether the network is compiled by torch.compile when training starts, and again
            for each other size of a batch: for long trainings.
        label_smoothing: The part of each label that training spreads over all classes: 0.1 keeps
            a network from being too sure in many epochs; train_loss has it, val_loss has not.
        decay_biases: Whether the weight decay of a named --optimizer is for biases and
            normalization's parameters too; false leaves them alone, which is usual.
        flip_test: Whether a test also scores each image averaged with its horizontal flip, as
            test_flip_accuracy, in twice the time; test_accuracy stays what it is.
    """

    def __init__(
        self,
        model: NetworkFactory = AlexNet,
        num_classes: int = 10,
        learning_rate: float = 1e-4,
        weights: str | None = None,
        freeze: str | list[str | int] | None = None,
        channels_last: bool = False,
        compile: bool = False,
        label_smoothing: float = 0.0,
        decay_biases: bool = True,
        flip_test: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise MisconfigurationException(
                f"label_smoothing is {label_smoothing}; give 0 or more and less than 1, such as 0.1"
            )
        self.label_smoothing, self.decay_biases = label_smoothing, decay_biases
        self.num_classes, self.learning_rate = num_classes, learning_rate
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model(num_classes=num_classes).to(memory_format=self.layout)
        self.weights: str | WeightsEnum | None = weights
        pretrained = getattr(model, "pretrained", None)  # of an option of the network
        if pretrained is not None:
            if weights is not None:
                raise MisconfigurationException(
                    f"weights is {weights} and model.model.weights {pretrained}; give one of them"
                )
            self.weights = pretrained
        self.compile_network = compile
        self._frozen = finetuning.freeze_parameters(self.model, freeze)
        self.preprocess = Preprocess()  # for bytes of a data module that is not ours
        accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.train_accuracy = accuracy
        self.val_accuracy, self.test_accuracy = accuracy.clone(), accuracy.clone()
        self.flip_test, self.test_flip_accuracy = flip_test, accuracy.clone()
        # "disable" shows a loss that is NaN as such; looking for one would wait for the GPU.
        loss = MeanMetric(nan_strategy="disable")
        self.val_loss, self.test_loss = loss, loss.clone()
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen modules always stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.model.get_submodule(name).eval()
        return self

    def prepare_data(self) -> None:
        """Download the initial weights, where they are torchvision's, in one process of a node."""
        if not isinstance(self.weights, WeightsEnum):
            return
        try:
            fits = self.trainer.state.fn == TrainerFn.FITTING
        except RuntimeError:  # as of a module without a trainer, which `prepare` has
            finetuning.download(self.weights)
            return
        if fits:
            with suppress(MisconfigurationException):  # a run that resumes does not need them
                finetuning.download(self.weights)

    def setup(self, stage: str) -> None:
        """Load the initial weights, unless training resumes from a checkpoint, and compile."""
        resumes = getattr(self.trainer, "resumes_training", False)
        if stage == "fit" and self.weights is not None and not resumes:
            rank_zero_info(finetuning.load_weights(self.model, self.num_classes, self.weights))
            self.weights = None  # a second call of fit continues from the first
        if stage == "fit" and self.compile_network:
            self.model.compile()

    def on_train_start(self) -> None:
        """Give optimizer states the memory format of their weights, as fused steps expect."""
        for optimizer in self.trainer.optimizers:
            for weight, state in optimizer.state.items():
                for name, value in state.items():
                    if _differs_in_memory_format(value, weight):
                        state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.weights = None  # the checkpoint's weights were trained from them

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits, float [batch, num_classes], of images [batch, 3, height, width]."""
        logits: Tensor = get_logits(self.model(images))
        return logits

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Refuse labels out of range where they are still on the CPU: a GPU only aborts."""
        if not self.trainer.predicting and isinstance(batch, Sequence) and len(batch) > 1:
            self._check_labels(batch[1])
        return batch

    def _check_labels(self, labels: Any) -> None:
        if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.numel():
            return
        low, high = (int(each) for each in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            raise MisconfigurationException(
                f"the data have the label {low if low < 0 else high} and the network "
                f"{self.num_classes} classes, 0 to {self.num_classes - 1}; correct the labels, or "
                "give --model.num_classes where the data module does not tell their number"
            )

    def _compute_outputs(self, images: Tensor) -> Outputs:
        return compute_outputs(self.model, images, self.num_classes)

    def _classifier_step(
        self, batch: Sequence[Tensor], logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Classify a batch of images [batch, 3, height, width] and labels [batch].

        Args:
            logits: The network's output for the images, float [batch, num_classes], where it is
                known; by default the images are passed through the network.

        Returns:
            The predicted labels [batch], the true labels [batch], and the mean loss []: in
            training with label smoothing and the weighted losses of auxiliary classifiers.
        """
        images, labels = batch
        auxiliary, weight = list[Tensor](), 0.0
        if logits is None:
            logits, auxiliary, weight = self._compute_outputs(self._prepare(images))
        smoothing = self.label_smoothing if self.training else 0.0
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        for each in auxiliary:
            loss = loss + weight * F.cross_entropy(each, labels, label_smoothing=smoothing)
        return logits.argmax(dim=1), labels, loss

    def _prepare(self, images: Tensor) -> Tensor:
        """Normalize bytes, augmented in training; floats are passed on in the memory format."""
        if images.dtype != torch.uint8:
            return images.contiguous(memory_format=self.layout)
        random_numbers = None
        if self.training:
            random_numbers = generate_global_integers(len(images), images.device)
        images = self.preprocess(images, random_numbers)
        return images.to(self.dtype, memory_format=self.layout)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        predicted, labels, loss = self._classifier_step(batch)
        self.train_accuracy(predicted, labels)
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
        """Evaluate a batch; callbacks get its "logits", float [batch, num_classes]."""
        loaders = self.trainer.test_dataloaders
        return {"logits": self._evaluation_step(batch, batch_idx, loaders, dataloader_idx, "test")}

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Compute class probabilities of a batch of images, float [batch, num_classes]."""
        return self._compute_outputs(self._prepare(batch[0])).logits.softmax(dim=1)

    def _evaluation_step(
        self,
        batch: Sequence[Tensor],
        batch_idx: int,
        loaders: Any,
        dataloader_idx: int,
        stage: str,
    ) -> Tensor:
        """Update and log the metrics of a stage, "val" or "test"; returns the logits."""
        loader = CombinedLoader(loaders).flattened[dataloader_idx]
        real = count_unpadded(loader, batch_idx, len(batch[1]))
        # A rank whose batch is all padding takes the step too: others may wait for it in there.
        batch = [values[: max(real, 1)] for values in batch]
        images = self._prepare(batch[0])
        logits = self._compute_outputs(images).logits
        predicted, labels, loss = self._classifier_step(batch, logits)
        updates = {
            f"{stage}_loss": (loss.expand(real),),
            f"{stage}_accuracy": (predicted, labels),
        }
        if stage == "test" and self.flip_test:
            flipped = self._compute_outputs(images.flip(-1)).logits
            updates["test_flip_accuracy"] = ((logits + flipped).argmax(dim=1), labels)
        for name, values in updates.items():
            metric = getattr(self, name)
            if batch_idx == 0:  # Lightning resets them after all loaders, not between two
                metric.reset()
            if real > 0:
                metric.update(*values)
            self.log(name, metric, on_epoch=True, prog_bar=True)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam (Kingma and Ba, arXiv:1412.6980); a command line's --optimizer replaces it."""
        # Lightning's gradient clipping can't unscale 16-bit floats inside a fused step.
        mixed = self.trainer.precision == "16-mixed"
        clipped = self.trainer.precision == "bf16-mixed" and self.trainer.gradient_clip_val
        fused = not (mixed or clipped)
        trainable = finetuning.trainable_parameters(self.parameters())
        return torch.optim.Adam(trainable, self.learning_rate, fused=fused)


def _differs_in_memory_format(state: Any, weight: Tensor) -> bool:
    same_shape = isinstance(state, Tensor) and state.shape == weight.shape
    return same_shape and state.stride() != weight.stride()
