"""Going on where a run was stopped, so that its training is the very one that nothing disturbed."""

import os
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pyclassify.training import checkpoints, randomness
from pyclassify.training.checkpoints import WRITE_SECONDS, AtomicCheckpointIO
from pyclassify.training.distributed import Agreement
from pyclassify.training.steps import BetweenSteps, forget_restart, step_loop
from pyclassify.utils import files, signals

PROGRESS = "PYCLASSIFY_PROGRESS"  # the file that the last saved step is written to
KEY = "pyclassify.resume"  # in a checkpoint
SHARE = 50  # a checkpoint each epoch must take less than 1 in so many seconds


class Resume(BetweenSteps):
    """Write checkpoints to go on from, and go on from the newest when the run starts again.

    Args:
        every_minutes: The time between two checkpoints, beside the one at each epoch's end.
        every_steps: Write one each so many optimizer steps too.
        keep: How many of them are kept, the newest; with 0 none is written.
        inexact: Whether to go on with another number of processes or images a step than before,
            so that training is not the one that nothing disturbed.
    """

    def __init__(
        self,
        every_minutes: float = 10.0,
        every_steps: int | None = None,
        keep: int = 2,
        inexact: bool = False,
    ) -> None:
        if every_minutes <= 0 or (every_steps is not None and every_steps < 1) or keep < 0:
            raise MisconfigurationException(
                f"every_minutes is {every_minutes}, every_steps {every_steps} and keep {keep}; "
                "give a time above 0, 1 step or more, and 0 or more checkpoints to keep"
            )
        self.every_minutes, self.every_steps, self.keep = every_minutes, every_steps, keep
        self.inexact = inexact
        self.folder: Path | None = None
        self.newest = ""  # the checkpoint that this attempt goes on from
        self._agreement = Agreement()
        self._saved = time.monotonic()
        self._took = 0.0
        self._saving = False
        self._step: int | None = None  # of that checkpoint
        self._state: dict[str, Any] = {}
        self._means: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.folder, self.newest = None, ""
        if stage != "fit" or not self.keep:
            return
        kept_whole = type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO
        if not kept_whole or type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            rank_zero_warn(
                "no checkpoints to go on from are written: pyclassify does so on one device and "
                f"with ddp, by its own CheckpointIO, and not with {type(trainer.strategy).__name__}"
            )
            return
        found = trainer.strategy.broadcast(str(_folder(trainer) or ""))
        self.folder = Path(found) if found else None
        if self.folder is not None:
            self._agreement.open(trainer.world_size)
            # Rank zero alone looks, so that all go on from the same.
            newest = trainer.is_global_zero and checkpoints.newest(self.folder)
            self.newest = trainer.strategy.broadcast(str(newest or ""))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.newest:
            self._step = checkpoints.step_of(self.newest)
            weights_only = getattr(trainer, "reads_weights_only", None)
            # As Lightning does for strategies that load once all is set up.
            trainer._checkpoint_connector._restore_modules_and_callbacks(self.newest, weights_only)
            best = trainer.checkpoint_callback
            if isinstance(best, ModelCheckpoint) and best.best_model_path:
                for logger in trainer.loggers:
                    logger.after_save_checkpoint(best)  # which this attempt may not do again

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit" and KEY in checkpoint:
            self._state = checkpoint[KEY]
            before = self._state["processes"]
            if before != trainer.world_size and not self.inexact:
                raise MisconfigurationException(
                    f"this run was started with {before} processes and would not be the same with "
                    f"{trainer.world_size}; give as many --devices and --num_nodes, or "
                    "--resume.inexact=true"
                )
            trainer.should_stop = self._state["should_stop"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.folder is not None:
            self._saved = time.monotonic()
            signals.defer()
        state, self._state = self._state, {}
        if self._step is not None and trainer.global_step != self._step:
            raise MisconfigurationException(
                f"training would go on at step {trainer.global_step}, the checkpoint is of step "
                f"{self._step}; move it out of {self.folder} to go on from the one before"
            )
        if not state:
            return
        if state["batches"] != trainer.num_training_batches:
            if not self.inexact:
                raise MisconfigurationException(
                    f"an epoch has {trainer.num_training_batches} batches, and had "
                    f"{state['batches']} before the stop; give the data and the batch size that "
                    "the run was started with, or --resume.inexact=true"
                )
            step_loop(trainer).move(trainer.num_training_batches / state["batches"])
        trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
        trainer.callback_metrics.update(
            {name: each.to(pl_module.device) for name, each in state["callback_metrics"].items()}
        )
        mine = state["ranks"][trainer.global_rank % len(state["ranks"])]
        randomness.restore_metrics(pl_module, mine["metrics"])
        self._means = dict(mine["means"])
        if state["epoch_done"]:
            forget_restart(trainer)
            randomness.restore(mine["random"], trainer.strategy.root_device)
        else:
            step_loop(trainer).resumed = mine

    def between_steps(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint, or stop, where all processes are to; called between two batches."""
        if self.folder is None:
            return
        signals.beat()
        at_start = trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0
        signum, due = 0, bool(self.every_steps and trainer.global_step % self.every_steps == 0)
        if self._agreement.is_next() or at_start:
            signum, agreed = self._agreement.reach(signals.asked(), self._is_due(at_start))
            due = due or agreed
        if (signum or due) and trainer.global_step:
            self._save(trainer, epoch_done=False)
        if signum:
            signals.stop(signum)

    def _is_due(self, at_start: bool) -> bool:
        passed = time.monotonic() - self._saved
        return passed >= 60 * self.every_minutes or (at_start and passed >= SHARE * self._took)

    def _save(self, trainer: pl.Trainer, epoch_done: bool) -> None:
        if self.folder is None:
            return
        path = checkpoints.name(self.folder, trainer.global_step)
        started = time.monotonic()
        self._epoch_done = epoch_done
        if trainer.strategy.broadcast(path.exists()):
            return
        with signals.busy(WRITE_SECONDS):
            self._saving = True
            try:
                trainer.save_checkpoint(path, weights_only=False)
            except OSError as error:  # rank zero's, which alone writes
                _warn(f"there is no checkpoint of step {trainer.global_step}", error)
                trainer.strategy.barrier("Trainer.save_checkpoint")  # where the others wait for it
            finally:
                self._saving = False
            if trainer.is_global_zero and path.exists():
                try:
                    report(trainer.global_step)
                    checkpoints.prune(self.folder, self.keep)
                except OSError as error:
                    _warn("old checkpoints are left, or the job's script is not told", error)
        self._saved = time.monotonic()
        self._took = self._saved - started

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._saving:
            return
        device, loop = trainer.strategy.root_device, step_loop(trainer)
        mine = {
            "random": randomness.collect(device),
            "opened": loop.opened,
            "metrics": randomness.collect_metrics(pl_module),
            "means": randomness.collect_means(loop._results),
        }
        checkpoint[KEY] = {
            "ranks": self._agreement.gather(mine),
            "processes": trainer.world_size,
            "batches": trainer.num_training_batches,
            "epoch_done": self._epoch_done,
            "should_stop": trainer.should_stop,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "callback_metrics": {
                name: each.detach().cpu() for name, each in trainer.callback_metrics.items()
            },
        }

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        if self._means:
            randomness.add_means(trainer.fit_loop.epoch_loop._results, self._means)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._means = {}

    def on_train_batch_start(self, *args: Any) -> None:
        signals.beat()

    def on_validation_batch_start(self, *args: Any) -> None:
        signals.beat()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.folder is None:
            return
        self._save(trainer, epoch_done=True)
        if signum := self._agreement.reach(signals.asked(), due=False)[0]:
            signals.stop(signum)
        self._agreement.close()
        signals.act_again()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        signals.act_again()  # what is wrong may be the stop's doing, such as workers that are gone
        if isinstance(exception, KeyboardInterrupt):
            self._agreement.close()


def goes_on(trainer: pl.Trainer) -> bool:
    """Whether a training that is being set up goes on from a checkpoint, given or found."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    found = any(each.newest for each in callbacks if isinstance(each, Resume))
    # Where there is no last one, Lightning starts from the beginning.
    return found or getattr(trainer, "starts_from", None) not in (None, "last")


def _warn(what: str, error: OSError) -> None:
    rank_zero_warn(f"{what} ({error}); training goes on, and after a stop from the newest there is")


def _folder(trainer: pl.Trainer) -> Path | None:
    """Where the run's checkpoints to go on from are; only a run with an id is found again."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if getattr(logger, "run_id", None):
            folder = Path(logger.save_dir or trainer.default_root_dir)
            return folder / str(logger.name) / str(logger.version) / "checkpoints" / "resume"
    return None


def report(step: int) -> None:
    """Tell whoever started this process that training can go on from a step."""
    if os.environ.get(PROGRESS):
        files.write_atomically(Path(os.environ[PROGRESS]), f"{step}\n")
