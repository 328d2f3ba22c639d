"""Record the end of each training step."""

import time

import torch
from lightning.pytorch import Callback

step_ends: list[float] = []


def record_step():
    """Append the time in seconds to `step_ends`."""
    step_ends.append(time.perf_counter())


def record_last_step():
    """Replace the time of the last step by the time when the device has finished it."""
    if step_ends and torch.cuda.is_available():
        torch.cuda.synchronize()
        step_ends[-1] = time.perf_counter()


class StepClock(Callback):
    """Records the end of each training step."""

    def on_train_batch_end(self, *_):
        record_step()

    def on_train_end(self, *_):
        record_last_step()
