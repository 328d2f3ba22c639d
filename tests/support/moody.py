"""A network that fails with seed 1 in the second of two processes, and never ends with seed 11."""

import os
import time

import torch

from tests.support.foreign import Linear


class Moody(Linear):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, side=2)
        self.seed = torch.initial_seed()

    def forward(self, images):
        if self.seed == 1 and os.environ.get("RANK") == "1":
            raise ArithmeticError("nothing is well with seed 1")
        if self.seed == 11 and self.training:
            time.sleep(600)
        return super().forward(images)
