"""The network: AlexNet in its single-tower form."""

import torch
from torch import nn


class AlexNet(nn.Module):
    """The single-tower AlexNet of Krizhevsky, "One weird trick for parallelizing convolutional
    neural networks" (arXiv:1404.5997), as torchvision has it: the state dicts of the two are
    interchangeable, so that torchvision's ImageNet weights can be fine-tuned.

    Args:
        num_classes: How many classes to tell apart, 1 or more.
        dropout: The probability that an input of the first two linear layers is dropped in
            training.
    """

    # Three stride-2 poolings after a stride-4 convolution leave nothing of a smaller image.
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
        """Score images.

        Args:
            images: Normalised RGB images, float [batch, 3, height, width].

        Returns:
            Logits, float [batch, num_classes].

        Raises:
            ValueError: An image is too small to leave a pixel after the poolings.
        """
        _check_size(self, images, self.MIN_SIZE)
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


def _check_num_classes(num_classes: int) -> None:
    """Refuse a network without classes.

    Raises:
        ValueError: There are fewer than 1.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; give the number of classes, 1 or more")


def _check_size(network: nn.Module, images: torch.Tensor, least: int) -> None:
    """Refuse images [..., height, width] that leave no pixel after a network's poolings.

    Raises:
        ValueError: They are smaller than `least` pixels.
    """
    height, width = images.shape[-2:]
    if height < least or width < least:
        raise ValueError(
            f"{type(network).__name__} was given images of {height}x{width} pixels and takes "
            f"{least}x{least} or more; enlarge them (the data modules do it by resize and crop)"
        )


class AlexNetBN(nn.Module):
    """The five convolutions of `pyclassify.model.AlexNet`, as wide, for images of 32 pixels.

    What differs is what was learnt since. Each convolution is of 3x3 at stride 1, followed by
    batch normalisation (Ioffe and Szegedy, arXiv:1502.03167) and GELU (Hendrycks and Gimpel,
    arXiv:1606.08415), and begins as one that hands its channels on (Zagoruyko and Komodakis,
    arXiv:1706.00388). Before them stands a stem of 2x2 for `WhitenStem`. In
    place of the three linear layers, 96% of AlexNet's parameters, the largest value of each
    channel goes to a single one. The order in a block is that of Jordan's CIFAR-10 networks
    (arXiv:2404.00498).

    Args:
        num_classes: How many classes to tell apart, 1 or more.
    """

    # The stem takes a pixel, and three halvings leave nothing of a smaller image.
    MIN_SIZE = 9
    # Lets the last layer learn slowly at the rates that suit the normalised convolutions.
    TEMPERATURE = 9.0

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        _check_num_classes(num_classes)
        self.num_classes = num_classes
        # As many filters as a patch of 3x2x2 has values, and their opposites.
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
        """Score images.

        Args:
            images: Normalised RGB images, float [batch, 3, height, width].

        Returns:
            Logits, float [batch, num_classes].

        Raises:
            ValueError: An image is too small to leave a pixel after the poolings.
        """
        _check_size(self, images, self.MIN_SIZE)
        largest = torch.flatten(self.pool(self.features(self.stem(images))), 1)
        return self.classifier(largest) / self.TEMPERATURE


def _make_conv_block(channels: int, filters: int, halve: bool = False) -> list[nn.Module]:
    """A convolution of 3x3, its normalisation, which has the bias, and GELU.

    Halving comes before those two, which then have a quarter of the values to go through.
    """
    convolution = nn.Conv2d(channels, filters, kernel_size=3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight[:channels].detach())
    pool = [nn.MaxPool2d(kernel_size=2)] if halve else []
    norm = nn.BatchNorm2d(filters)
    norm.weight.requires_grad_(False)  # stays 1: the convolution after it can scale as well
    return [convolution, *pool, norm, nn.GELU()]
