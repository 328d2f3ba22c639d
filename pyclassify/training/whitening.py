"""Initialize a network's first convolution with whitening filters, computed from the images."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn


class WhitenStem(pl.Callback):
    """Have a network's first convolution whiten the patches of its images.

    Its filters become the principal components of the patches of the first batch, each scaled so
    that it varies as much as the others, and their opposites, which GELU or ReLU would lose. What
    comes after then learns in fewer epochs; freeze the layer by --model.freeze. It is the stem of
    Page's "How to train your ResNet" and of Jordan's "94% on CIFAR-10 in 3.29 seconds"
    (arXiv:2404.00498), section 3.2. A network that starts from --weights keeps the filters of
    those, and one that was trained before its own.

    Example:
        >>> Trainer(callbacks=[WhitenStem(layer="conv1")])

    Args:
        layer: The convolution's name in the network.
        epsilon: What is added to the variance of each component, in parts of their mean, so that
            the faintest, which are noise, don't become as strong as the rest.
    """

    def __init__(self, layer: str = "stem", epsilon: float = 0.0005) -> None:
        if not epsilon > 0:
            raise MisconfigurationException(
                f"epsilon is {epsilon}; give a number above 0, such as 0.0005"
            )
        self.layer, self.epsilon = layer, epsilon

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the layer, and whether its filters come from --weights, before data is read.

        Raises:
            MisconfigurationException: There is no convolution of that name, or it is grouped,
                dilated or of more filters than there are components and their opposites.
        """
        if stage == "fit":
            layer = self._find(pl_module)
            if getattr(pl_module, "weights", None) is not None:  # read after this
                layer.whitened = True  # type: ignore[assignment]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compute the filters before the first step; a resumed training has them already.

        Raises:
            MisconfigurationException: The images are bytes and the module has no `preprocess`, or
                they are all of one color.
        """
        layer = self._find(pl_module)
        if trainer.global_step > 0 or getattr(layer, "whitened", False):
            return
        filters = compute_whitening_filters(self._prepare(pl_module, batch[0]), layer, self.epsilon)
        if torch.distributed.is_initialized():  # each process has seen another batch
            torch.distributed.broadcast(filters, src=0)
        with torch.no_grad():
            layer.weight.copy_(filters)
        layer.whitened = True  # type: ignore[assignment]

    def _find(self, pl_module: pl.LightningModule) -> nn.Conv2d:
        network: nn.Module = getattr(pl_module, "model", pl_module)
        layer = dict(network.named_modules()).get(self.layer)
        if (
            isinstance(layer, nn.Conv2d)
            and (layer.groups, layer.dilation) == (1, (1, 1))
            and layer.out_channels <= 2 * layer.weight[0].numel()
        ):
            return layer
        kind = type(network).__name__
        raise MisconfigurationException(
            f"WhitenStem's layer is {self.layer!r}, and {kind} has no plain 2d convolution of that "
            "name with at most twice as many filters as its patches have values; name its first "
            "one, or leave WhitenStem out"
        )

    def _prepare(self, pl_module: pl.LightningModule, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            if not hasattr(pl_module, "preprocess"):
                kind = type(pl_module).__name__
                raise MisconfigurationException(
                    f"WhitenStem was given images as bytes, which {kind} has no `preprocess` for; "
                    "have the data module hand out normalized floats, or leave WhitenStem out"
                )
            return pl_module.preprocess(images)  # type: ignore[operator]
        return images


def compute_whitening_filters(images: Tensor, layer: nn.Conv2d, epsilon: float) -> Tensor:
    """Compute filters that whiten a convolution's input patches.

    Args:
        images: float [batch, channels, height, width].
        layer: The convolution.
        epsilon: What to add to each component's variance, relative to the mean variance.

    Returns:
        Filters of unit variance, the strongest component first, each followed by its opposite,
        shaped as the layer's weight.

    Raises:
        MisconfigurationException: The patches don't vary.
    """
    kernel: Any = layer.kernel_size
    stride: Any = layer.stride
    patches = F.unfold(images.float(), kernel, stride=stride)
    covariance = torch.cov(patches.transpose(0, 1).flatten(1))
    mean = covariance.diagonal().mean()  # of the components' variances
    if not 0 < mean < torch.inf:
        raise MisconfigurationException(
            "the images of the first batch are all of one color, or not finite, which "
            "WhitenStem can't make filters of; look at the images, or leave it out"
        )
    variances, components = torch.linalg.eigh(covariance)
    scaled = components / (variances.clamp(min=0) + epsilon * mean).sqrt()
    strongest = scaled.flip(1).T
    both = torch.stack([strongest, -strongest], dim=1).flatten(0, 1)
    return both[: layer.out_channels].reshape(layer.weight.shape).to(layer.weight).contiguous()
