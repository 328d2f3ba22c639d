"""A training that notes beside its run what it logs, and ends when it is told."""

import os
from pathlib import Path

from lightning.pytorch import Callback

from pyclassify.spool import upload_thread

EVERY = 10  # steps between two files that it logs
# What fails, and what is well again, is soon found to be so.
upload_thread.UPLOAD_SECONDS, upload_thread._MAX_PAUSE_SECONDS = 0.5, 1.0


class Noting(Callback):
    """Writes each step and its loss into `NOTES/steps`; the training ends once `NOTES/end` is.

    `NOTES` is a folder, by the environment's variable of that name. Each tenth step logs a file.
    """

    def __init__(self):
        self.folder = Path(os.environ["NOTES"])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        step = trainer.global_step - 1
        with (self.folder / "steps").open("a") as notes:
            # As few digits as tell a number of 32 bits from all others, which is how it is logged.
            notes.write(f"{step} {trainer.logged_metrics['train_loss'].numpy()!s}\n")
        if step % EVERY == 0:
            logger = trainer.logger
            logger.experiment.log_text(logger.run_id, f"at {step}", f"notes/{step}.txt")
        trainer.should_stop = (self.folder / "end").exists()
