"""Which images a stage takes, and how they are shared out between training and validation."""

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

# What each stage of Lightning's asks for; predicting takes the test images as well.
PARTS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


def split(count: int, held_out: int, seed: int) -> dict[str, Tensor]:
    """Share out images at random between training and validation.

    Args:
        count: How many images there are.
        held_out: How many of them are for validation.
        seed: Decides which.

    Returns:
        Places among the images, "train" and "val", each int64 and in order.

    Raises:
        MisconfigurationException: Training or validation would get no image.
    """
    if not 0 < held_out < count:
        raise MisconfigurationException(
            f"{held_out} images can't be held out of {count} for validation; change val_size so "
            "that both training and validation get some"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return {"train": order[held_out:].sort().values, "val": order[:held_out].sort().values}
