"""AlexNet as one would build it today for images of 32 pixels: with batch normalisation."""

import torch
from torch import nn

from pyclassify.model import check_num_classes, check_size


class AlexNetBN(nn.Module):
    """The five convolutions of `pyclassify.model.AlexNet`, as wide, for images of 32 pixels.

    What differs is what was learnt since: each convolution is of 3x3 at stride 1 and followed by
    batch normalisation (Ioffe and Szegedy, arXiv:1502.03167), and in place of the three linear
    layers, 96% of AlexNet's parameters, the largest value of each channel goes to a single one.

    Args:
        num_classes: How many classes to tell apart, 1 or more.
    """

    # Three halvings leave nothing of a smaller image.
    MIN_SIZE = 8

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        check_num_classes(num_classes)
        self.num_classes = num_classes
        self.features = nn.Sequential(
            *convolve(3, 64),
            nn.MaxPool2d(kernel_size=2),
            *convolve(64, 192),
            nn.MaxPool2d(kernel_size=2),
            *convolve(192, 384),
            *convolve(384, 256),
            nn.MaxPool2d(kernel_size=2),
            *convolve(256, 256),
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
        check_size(self, images, self.MIN_SIZE)
        return self.classifier(torch.flatten(self.pool(self.features(images)), 1))


def convolve(channels: int, filters: int) -> list[nn.Module]:
    """A convolution of 3x3 that keeps the size, its normalisation, which has the bias, and ReLU."""
    return [
        nn.Conv2d(channels, filters, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(filters),
        nn.ReLU(inplace=True),
    ]
