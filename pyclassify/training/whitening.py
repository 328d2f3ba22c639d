"""Initialize a network's first convolution with whitening filters, computed from the images."""

from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn


class WhitenStem(pl.Callback):
    """Initialize a network's first convolution with filters that whiten the patches of its images.

    The filters are the principal components of the patches of the first batch, scaled to unit
    variance, and their negatives, which GELU or ReLU would otherwise lose. The layers after it then
    learn in fewer epochs. To keep the filters in training, freeze the layer (`Classifier(freeze=)`
    or --model.freeze). The method is Page's ("How to train your ResNet", 2018) and Jordan's ("94%
    on CIFAR-10 in 3.29 seconds", arXiv:2404.00498, section 3.2). A layer that is loaded from
    `weights` or was whitened before is not changed.

    Args:
        layer: The name of the convolution in the network. It must be 2d, neither grouped nor
            dilated, with at most twice as many filters as a patch has values.
        eps: Add this to the variance of each component, relative to the mean variance, above 0. It
            limits how much the weakest components, which are noise, are scaled up.

    Raises:
        MisconfigurationException: eps is not above 0; or, as training starts, the network has no
            such convolution, or the images of the first batch are all of one color.

    Example:
        >>> from pyclassify import AlexNetBN, Classifier, SyntheticDataModule, Trainer, WhitenStem
        >>> trainer = Trainer(max_epochs=1, callbacks=[WhitenStem(layer="stem")])
        >>> network = Classifier(AlexNetBN, freeze="stem")
        >>> trainer.fit(network, SyntheticDataModule(batch_size=16))
        >>> network.model.stem.weight.shape  # 12 components and their negatives
        torch.Size([24, 3, 2, 2])
    """

    def __init__(self, layer: str = "stem", eps: float = 0.0005) -> None:
        if not eps > 0:
            raise MisconfigurationException(f"invalid eps: {eps} (expected eps > 0)")
        self.layer, self.eps = layer, eps

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the layer, and whether its filters come from --weights, before data is read.

        Raises:
            MisconfigurationException: The network has no convolution of this name, or it is grouped
                or dilated, or has more filters than components and their negatives.
        """
        if stage == "fit":
            layer = self._find(pl_module)
            if getattr(pl_module, "weights", None) is not None:  # loaded after this
                layer.whitened = True  # type: ignore[assignment]

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compute the filters before the first step; a resumed training has them already.

        Raises:
            MisconfigurationException: The images are uint8 and the module has no `preprocess`, or
                the images are all of one color.
        """
        layer = self._find(pl_module)
        if trainer.global_step > 0 or getattr(layer, "whitened", False):
            return
        filters = compute_whitening_filters(self._prepare(pl_module, batch[0]), layer, self.eps)
        if torch.distributed.is_initialized():  # each process has another batch
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
            f"invalid layer of WhitenStem: {self.layer!r} (expected the name of a 2d convolution "
            f"of {kind}, neither grouped nor dilated, with at most twice as many filters as a "
            "patch has values); give the name of the first convolution, or leave out WhitenStem"
        )

    def _prepare(self, pl_module: pl.LightningModule, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            if not hasattr(pl_module, "preprocess"):
                kind = type(pl_module).__name__
                raise MisconfigurationException(
                    f"WhitenStem got uint8 images, but {kind} has no `preprocess` to normalize "
                    "them; let the data module return normalized floats, or leave out WhitenStem"
                )
            return pl_module.preprocess(images)  # type: ignore[operator]
        return images


def compute_whitening_filters(images: Tensor, layer: nn.Conv2d, eps: float) -> Tensor:
    """Compute filters that whiten a convolution's input patches.

    Args:
        images: float [batch, channels, height, width].
        layer: The convolution.
        eps: Add this to the variance of each component, relative to the mean variance.

    Returns:
        Filters of unit variance in the shape of the layer's weight, the strongest component first,
        each followed by its negative.

    Raises:
        MisconfigurationException: All patches are equal, or some values are not finite.
    """
    kernel: Any = layer.kernel_size
    stride: Any = layer.stride
    patches = F.unfold(images.float(), kernel, stride=stride)
    covariance = torch.cov(patches.transpose(0, 1).flatten(1))
    mean = covariance.diagonal().mean()  # of the variances of the components
    if not 0 < mean < torch.inf:
        raise MisconfigurationException(
            "WhitenStem can't compute filters: the images of the first batch are all of one color "
            "or not finite; check the images, or leave out WhitenStem"
        )
    variances, components = torch.linalg.eigh(covariance)
    scaled = components / (variances.clamp(min=0) + eps * mean).sqrt()
    strongest = scaled.flip(1).T
    both = torch.stack([strongest, -strongest], dim=1).flatten(0, 1)
    return both[: layer.out_channels].reshape(layer.weight.shape).to(layer.weight).contiguous()
