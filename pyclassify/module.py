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
from pyclassify.training.checkpoints import CLASSIFIER_KEY, read_checkpoint
from pyclassify.training.forward import Outputs, compute_outputs, get_logits
from pyclassify.training.network import ConfiguredNetwork, describe_network


class Classifier(LightningModule):
    """Train a network with the cross-entropy loss and report its accuracy.

    A batch is (images, labels): uint8 images [batch, 3, height, width], which are augmented and
    normalized on the device, or floats, which are used as they are; labels are integers [batch].
    Logged are train_loss, train_accuracy, val_loss, val_accuracy, test_loss and test_accuracy. The
    optimizer is Adam (Kingma and Ba, arXiv:1412.6980), unless the command line names another.

    Args:
        model: Train this network: a class or function that takes num_classes and returns a module,
            given by its import path, such as torchvision.models.resnet18. --model.model.NAME sets
            an option of the network, and --model.model.help lists its options. torchvision's
            `weights` are loaded, except a classification head of another number of classes.
        num_classes: Set the number of classes. The data module's number replaces it, if it has one.
        learning_rate: Set the learning rate of Adam; with --optimizer, set --optimizer.lr instead.
        weights: Initialize the network from this file: a state dict or checkpoint of torch.save,
            a .safetensors file or an exported program; or, on the command line, from a run's ID or
            a model, such as models:/alexnet@champion. A classification head of another number of
            classes is not loaded. The file is not read when training resumes or for a test.
        freeze: Freeze these parts of the network, such as features: the name of a module or
            parameter, or a list of names. Frozen modules stay in evaluation mode.
        channels_last: Use the channels-last memory format, which is a little faster on a CPU, and
            more so in bf16. It does not work with a network whose forward calls `view`, or that
            has convolutions of 1 or 3 dimensions.
        compile: Compile the network by torch.compile when training starts, and again for each
            other batch size. It pays off in long trainings.
        label_smoothing: Smooth the labels of the training loss by this amount, from 0 to less than
            1 (arXiv:1512.00567, section 7). 0.1 reduces overconfidence in trainings of many epochs.
            val_loss and test_loss use the true labels.
        decay_bias_and_norm: Apply the weight decay of --optimizer to biases and normalization
            parameters too, as PyTorch does; false excludes them, which is usually more accurate.
        flip_tta: Evaluate with test-time augmentation too: test_flip_tta_accuracy is the accuracy
            of the mean logits of each test image and its horizontal flip. The test takes twice the
            time; test_accuracy stays the same.

    Raises:
        MisconfigurationException: label_smoothing is out of range, the network has no part that
            `freeze` names, nothing is left to train, or two kinds of weights are given.

    Example:
        >>> import torch
        >>> import torchvision
        >>> from pyclassify import Classifier
        >>> network = Classifier(torchvision.models.resnet18, num_classes=5, label_smoothing=0.1)
        >>> network(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 5])
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
        decay_bias_and_norm: bool = True,
        flip_tta: bool = False,
    ) -> None:
        super().__init__()
        # Not `save_hyperparameters`: the command line would prefer them to the given options.
        self._arguments = {
            "model": describe_network(model),
            "num_classes": num_classes,
            "learning_rate": learning_rate,
            "freeze": freeze,
            "channels_last": channels_last,
            "compile": compile,
            "label_smoothing": label_smoothing,
            "decay_bias_and_norm": decay_bias_and_norm,
            "flip_tta": flip_tta,
        }
        if not 0 <= label_smoothing < 1:
            raise MisconfigurationException(
                f"invalid label_smoothing: {label_smoothing} (expected 0 <= label_smoothing < 1, "
                "such as 0.1)"
            )
        self.label_smoothing, self.decay_bias_and_norm = label_smoothing, decay_bias_and_norm
        self.num_classes, self.learning_rate = num_classes, learning_rate
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = model(num_classes=num_classes).to(memory_format=self.layout)
        self.weights: str | WeightsEnum | None = weights
        pretrained = getattr(model, "pretrained", None)  # set by --model.model.weights
        if pretrained is not None:
            if weights is not None:
                raise MisconfigurationException(
                    f"both weights ({weights}) and model.model.weights ({pretrained}) are given; "
                    "give one of them"
                )
            self.weights = pretrained
        self.compile_network = compile
        self._frozen = finetuning.freeze_parameters(self.model, freeze)
        self.preprocess = Preprocess()  # for uint8 images of a data module without one
        accuracy = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.train_accuracy = accuracy
        self.val_accuracy, self.test_accuracy = accuracy.clone(), accuracy.clone()
        self.flip_tta, self.test_flip_tta_accuracy = flip_tta, accuracy.clone()
        # "disable" reports a NaN loss as NaN; checks for NaN would synchronize with the GPU.
        loss = MeanMetric(nan_strategy="disable")
        self.val_loss, self.test_loss = loss, loss.clone()
        self.train()

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a classifier from a checkpoint, with the network that it was trained with.

        Args:
            checkpoint_path: The checkpoint file.
            *args: Other arguments of Lightning's method.
            **kwargs: The same by name; and arguments of this class, which replace those of the
                checkpoint.

        Raises:
            MisconfigurationException: The checkpoint does not describe its network, which was made
                by a lambda, for example: give `model`.

        Example:
            >>> network = Classifier.load_from_checkpoint("best.ckpt").eval()
        """
        saved = read_checkpoint(checkpoint_path).get(CLASSIFIER_KEY, {})
        if kwargs.get("model", saved.get("model", "")) is None:
            raise MisconfigurationException(
                f"{checkpoint_path} does not describe its network, which was made by a function "
                "without an import path, or with options that are not plain values; give the "
                "network by model="
            )
        if saved:
            saved = {**saved, "model": ConfiguredNetwork(saved["model"])}
        return super().load_from_checkpoint(checkpoint_path, *args, **{**saved, **kwargs})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the arguments of this class, which `load_from_checkpoint` needs."""
        checkpoint[CLASSIFIER_KEY] = self._arguments

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen modules always stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.model.get_submodule(name).eval()
        return self

    def prepare_data(self) -> None:
        """Download torchvision's initial weights, in one process of each node."""
        if not isinstance(self.weights, WeightsEnum):
            return
        try:
            fits = self.trainer.state.fn == TrainerFn.FITTING
        except RuntimeError:  # no trainer is attached: `Trainer.prepare` calls this
            finetuning.download(self.weights)
            return
        if fits:
            with suppress(MisconfigurationException):  # a resumed run does not need them
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
        """Convert optimizer states to the memory format of their weights: fused steps need it."""
        for optimizer in self.trainer.optimizers:
            for weight, state in optimizer.state.items():
                for name, value in state.items():
                    if _differs_in_memory_format(value, weight):
                        state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.weights = None  # the checkpoint's weights were trained from them

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of images.

        Args:
            images: Normalized RGB images, float [batch, 3, height, width].

        Returns:
            Logits, float [batch, num_classes].
        """
        logits: Tensor = get_logits(self.model(images))
        return logits

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check the labels while they are on the CPU: a GPU aborts without an error message.

        Raises:
            MisconfigurationException: A label is negative, or num_classes or more.
        """
        if not self.trainer.predicting and isinstance(batch, Sequence) and len(batch) > 1:
            self._check_labels(batch[1])
        return batch

    def _check_labels(self, labels: Any) -> None:
        if not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.numel():
            return
        low, high = (int(label) for label in labels.aminmax())
        if low < 0 or high >= self.num_classes:
            raise MisconfigurationException(
                f"invalid label: {low if low < 0 else high} (expected 0 to "
                f"{self.num_classes - 1}, as the network has {self.num_classes} classes); correct "
                "the labels, or set --model.num_classes if the data module has no num_classes"
            )

    def _compute_outputs(self, images: Tensor) -> Outputs:
        return compute_outputs(self.model, images, self.num_classes)

    def _classifier_step(
        self, batch: Sequence[Tensor], logits: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute predicted labels, true labels and loss of a batch.

        Args:
            batch: Images [batch, 3, height, width] and labels [batch].
            logits: The network's output, float [batch, num_classes], if it is already computed.

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
        for output in auxiliary:
            loss = loss + weight * F.cross_entropy(output, labels, label_smoothing=smoothing)
        return logits.argmax(dim=1), labels, loss

    def _prepare(self, images: Tensor) -> Tensor:
        """Augment (in training) and normalize uint8 images; floats only get the memory format."""
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
        # Without a step of a rank whose batch is all padding, a collective operation would hang.
        batch = [values[: max(real, 1)] for values in batch]
        images = self._prepare(batch[0])
        logits = self._compute_outputs(images).logits
        predicted, labels, loss = self._classifier_step(batch, logits)
        updates = {
            f"{stage}_loss": (loss.expand(real),),
            f"{stage}_accuracy": (predicted, labels),
        }
        if stage == "test" and self.flip_tta:
            flipped = self._compute_outputs(images.flip(-1)).logits
            updates["test_flip_tta_accuracy"] = ((logits + flipped).argmax(dim=1), labels)
        for name, values in updates.items():
            metric = getattr(self, name)
            if batch_idx == 0:  # Lightning resets metrics after all loaders, not between two
                metric.reset()
            if real > 0:
                metric.update(*values)
            self.log(name, metric, on_epoch=True, prog_bar=True)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return Adam with `learning_rate`; --optimizer on the command line replaces it."""
        # Lightning can't unscale gradients for clipping inside a fused step.
        mixed = self.trainer.precision == "16-mixed"
        clipped = self.trainer.precision == "bf16-mixed" and self.trainer.gradient_clip_val
        fused = not (mixed or clipped)
        trainable = finetuning.trainable_parameters(self.parameters())
        return torch.optim.Adam(trainable, self.learning_rate, fused=fused)


def _differs_in_memory_format(state: Any, weight: Tensor) -> bool:
    same_shape = isinstance(state, Tensor) and state.shape == weight.shape
    return same_shape and state.stride() != weight.stride()
