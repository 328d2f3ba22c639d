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
        check_num_classes(num_classes)
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
        check_size(self, images, self.MIN_SIZE)
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


def check_num_classes(num_classes: int) -> None:
    """Refuse a network without classes.

    Raises:
        ValueError: There are fewer than 1.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}; give the number of classes, 1 or more")


def check_size(network: nn.Module, images: torch.Tensor, least: int) -> None:
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
