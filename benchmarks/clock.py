"""When training steps end."""

import time

from lightning.pytorch import Callback

ended: list[float] = []


class StepClock(Callback):
    """Note in `ended` when each training step ended, in seconds."""

    def on_train_batch_end(self, *_):
        ended.append(time.perf_counter())
