"""A callback that writes what a training logs to a file too, and ends the training on request."""

import os
from pathlib import Path

from lightning.pytorch import Callback

from pyclassify.spool import upload_thread

FILE_STEPS = 10  # between two files that it logs
# So that a failure, and its end, are noticed soon.
upload_thread.UPLOAD_SECONDS, upload_thread._MAX_PAUSE_SECONDS = 0.5, 1.0


class StepRecorder(Callback):
    """Writes each step and its loss to the file `steps`, and ends the training if `end` exists.

    Both are in the folder RECORDER_FOLDER of the environment. Every tenth step logs a file.
    """

    def __init__(self):
        self.folder = Path(os.environ["RECORDER_FOLDER"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        step = trainer.global_step - 1
        with (self.folder / "steps").open("a") as file:
            # The shortest decimal of a 32-bit float, which is how it is logged.
            file.write(f"{step} {trainer.logged_metrics['train_loss'].numpy()!s}\n")
        if step % FILE_STEPS == 0:
            logger = trainer.logger
            logger.experiment.log_text(logger.run_id, f"at {step}", f"notes/{step}.txt")
        trainer.should_stop = (self.folder / "end").exists()
