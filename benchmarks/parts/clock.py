"""When training steps end."""

import time

import torch
from lightning.pytorch import Callback

ended: list[float] = []


def note():
    """Note in `ended`, in seconds, that a step has ended."""
    ended.append(time.perf_counter())


def finish():
    """Let the last step's time be when the device was done with it."""
    if ended and torch.cuda.is_available():
        torch.cuda.synchronize()
        ended[-1] = time.perf_counter()


class StepClock(Callback):
    """Notes each training step's end."""

    def on_train_batch_end(self, *_):
        note()

    def on_train_end(self, *_):
        finish()
