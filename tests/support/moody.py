"""Networks that do not behave the same with all seeds."""

import os
import time

import torch

from pyclassify import signals
from tests.support.foreign import Linear
from tests.support.stopping import Net


class Moody(Linear):
    """Fails with seed 1 in the second of two processes, and never ends with seed 11."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, side=2)
        self.seed = torch.initial_seed()

    def forward(self, images):
        if self.seed == 1 and os.environ.get("RANK") == "1":
            raise ArithmeticError("nothing is well with seed 1")
        if self.seed == 11 and self.training:
            time.sleep(600)
        return super().forward(images)


class Waiting(Net):
    """Waits in its third step, with the seed that WAITS names, until it is told to stop."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.waits = os.environ.get("WAITS") == str(torch.initial_seed())
        self.steps = 0

    def forward(self, images):
        self.steps += self.training
        while self.waits and self.steps == 3 and not signals.asked():
            time.sleep(0.02)
        return super().forward(images)
