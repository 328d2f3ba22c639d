"""The networks: AlexNet, and AlexNetBN for small images."""

from typing import Protocol

import torch
from torch import nn


class NetworkFactory(Protocol):
    """A class or function that returns a network, such as torchvision.models.resnet18."""

    def __call__(self, *, num_classes: int) -> nn.Module:
        """Return a network that maps images to logits, float [batch, num_classes]."""


class AlexNet(nn.Module):
    """AlexNet in its single-tower form, with the layer names of torchvision's AlexNet.

    Krizhevsky, "One weird trick for parallelizing convolutional neural networks"
    (arXiv:1404.5997). It has 57.0 million parameters for 10 classes and takes images of 63x63
    pixels or more. torchvision's ImageNet weights can be loaded for fine-tuning.

    Args:
        num_classes: The number of classes, 1 or more.
        dropout: Zero each input of the first two linear layers with this probability in training,
            0 to 1.

    Raises:
        ValueError: `num_classes` is less than 1.

    Example:
        >>> import torch
        >>> from pyclassify import AlexNet
        >>> AlexNet(num_classes=10)(torch.zeros(2, 3, 224, 224)).shape
        torch.Size([2, 10])
    """

    # Of smaller images, a convolution of stride 4 and three poolings of stride 2 leave no pixel.
    MIN_SIZE = 63

    def __init__(self, num_classes: int = 10, dropout: float = 0.5) -> None:
        super().__init__()
        _check_num_classes(num_classes)
        self.num_classes = num_classes
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(64, 192, kernel_size=5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
            nn.Conv2d(192, 384, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, kernel_size=3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((6, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * 6 * 6, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits of images.

        Args:
            images: Normalized RGB images, float [batch, 3, height, width], of at least `MIN_SIZE`
                pixels a side.

        Returns:
            Logits, float [batch, num_classes].

        Raises:
            ValueError: The images are smaller than `MIN_SIZE`.
        """
        _check_size(self, images, self.MIN_SIZE)
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


class AlexNetBN(nn.Module):
    """AlexNet with batch normalization, for images of 32x32 pixels.

    It has the five convolutions of AlexNet at the same widths, but each is 3x3 with stride 1, has
    Dirac initialization (Zagoruyko and Komodakis, arXiv:1706.00388) and is followed by batch
    normalization (Ioffe and Szegedy, arXiv:1502.03167) and GELU (Hendrycks and Gimpel,
    arXiv:1606.08415). A 2x2 convolution comes first, `stem`, which `WhitenStem` can initialize.
    Global max pooling and one linear layer replace AlexNet's three linear layers, which have 96% of
    its parameters: 2.27 million remain for 10 classes. The order of the layers in a block is from
    Jordan's CIFAR-10 networks (arXiv:2404.00498). Images have 9x9 pixels or more.

    Args:
        num_classes: The number of classes, 1 or more.

    Raises:
        ValueError: `num_classes` is less than 1.

    Example:
        >>> import torch
        >>> from pyclassify import AlexNetBN
        >>> AlexNetBN(num_classes=10)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    # Of smaller images, the stem and three poolings of stride 2 leave no pixel.
    MIN_SIZE = 9
    # Divides the logits: the linear layer learns slowly at the learning rate of the convolutions.
    TEMPERATURE = 9.0

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        _check_num_classes(num_classes)
        self.num_classes = num_classes
        # For each of the 12 values of a 3x2x2 patch, a filter and its negative.
        self.stem = nn.Conv2d(3, 24, kernel_size=2, bias=False)
        self.features = nn.Sequential(
            nn.GELU(),
            *_make_conv_block(24, 64, halve=True),
            *_make_conv_block(64, 192, halve=True),
            *_make_conv_block(192, 384),
            *_make_conv_block(384, 256, halve=True),
            *_make_conv_block(256, 256),
        )
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(256, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Compute the logits of images.

        Args:
            images: Normalized RGB images, float [batch, 3, height, width], of at least `MIN_SIZE`
                pixels a side.

        Returns:
            Logits, float [batch, num_classes].

        Raises:
            ValueError: The images are smaller than `MIN_SIZE`.
        """
        _check_size(self, images, self.MIN_SIZE)
        features = torch.flatten(self.pool(self.features(self.stem(images))), 1)
        return self.classifier(features) / self.TEMPERATURE


def _make_conv_block(channels: int, filters: int, halve: bool = False) -> list[nn.Module]:
    """Make a 3x3 convolution, max pooling to half the size (optional), BatchNorm and GELU."""
    convolution = nn.Conv2d(channels, filters, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight[:channels].detach())
    # Pooling first leaves a quarter of the values to normalize.
    pool = [nn.MaxPool2d(kernel_size=2)] if halve else []
    norm = nn.BatchNorm2d(filters)
    norm.weight.requires_grad_(False)  # stays 1: the next convolution can learn the scale
    return [convolution, *pool, norm, nn.GELU()]


def _check_num_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"invalid num_classes: {num_classes} (expected 1 or more)")


def _check_size(network: nn.Module, images: torch.Tensor, min_size: int) -> None:
    height, width = images.shape[-2:]
    if height < min_size or width < min_size:
        raise ValueError(
            f"invalid image size for {type(network).__name__}: {height}x{width} pixels (expected "
            f"{min_size}x{min_size} or more); enlarge the images (options resize and crop of the "
            "data modules)"
        )
