"""Lightning's loop over an epoch's batches, which can be left and entered between any two steps.

Between two steps is after all that the batch before has led to (its rows in the log, a validation,
the schedules of learning rates), and before the next is fetched. Lightning has no hook there.
"""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from pyclassify.training import randomness
from pyclassify.utils import signals


class BetweenSteps(Callback):
    """A callback with one more hook."""

    def between_steps(self, trainer: pl.Trainer) -> None:
        """Called before each batch that begins an optimizer step, when the last is all done."""


class StepLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch's batches, which can go on between any two of them."""

    resumed: dict[str, Any] | None = None  # this process's part of a checkpoint, until it is used
    opened: dict[str, Any]  # the random states that this epoch's loader started with

    def reset(self) -> None:
        if self.resumed is None:
            super().reset()
        else:
            forget_restart(self.trainer)

    def move(self, factor: float) -> None:
        """Count the batches of this epoch that are done in batches of another size."""
        done = int(self.batch_progress.current.ready * factor)
        done -= done % self.trainer.accumulate_grad_batches
        for count in vars(self.batch_progress.current):
            setattr(self.batch_progress.current, count, done)

    def on_run_start(self, data_fetcher: Any) -> None:
        device = self.trainer.strategy.root_device
        loaders = data_fetcher.combined_loader.flattened
        by_lightning = self.trainer.current_epoch > 0 and not self.trainer.fit_loop.is_resuming
        if self.resumed is not None:
            randomness.restore(self.resumed["opened"], device)
        self.opened = randomness.collect(device)
        if any(hasattr(each, "state_dict") for each in loaders):
            self._give_states(data_fetcher)
        elif self.resumed is not None:
            self._catch_up(data_fetcher, loaders)
        elif not by_lightning and not (self.trainer.current_epoch == 0 and _can_skip(loaders)):
            # Lightning has opened it already, at random states and for an epoch not known here.
            iter(data_fetcher)
        super().on_run_start(data_fetcher)

    def _give_states(self, data_fetcher: Any) -> None:
        """Give loaders that keep a state of their own that of the checkpoint.

        Lightning does so as it sets up the data, which is before it reads the checkpoint's loops
        if `configure_optimizers` has asked for the number of steps, and does not do so again.
        """
        fit_loop = self.trainer.fit_loop
        states = fit_loop._combined_loader_states_to_load
        if states and (self.resumed is not None or fit_loop.restarting):
            data_fetcher.combined_loader._load_state_dicts(states)
            iter(data_fetcher)
        fit_loop._combined_loader_states_to_load = []

    def _catch_up(self, data_fetcher: Any, loaders: list[Any]) -> None:
        """Bring the loader to the batch that comes next."""
        batches = self.batch_progress.current.ready
        if _can_skip(loaders):
            for each in loaders:
                each.sampler.skip(batches * each.batch_size)
            iter(data_fetcher)
            return
        if any(getattr(each, "persistent_workers", False) for each in loaders):
            rank_zero_warn(
                "the data loader has persistent workers, whose random states can't be kept: what "
                "they draw from here on is other than it would have been; no image is seen twice"
            )
        if batches:
            rank_zero_info(f"Reading the epoch's first {batches} batches once more, to go on there")
        iter(data_fetcher)
        for _ in range(batches):
            next(data_fetcher)
            signals.beat()
        data_fetcher.fetched -= batches  # Lightning adds them

    def on_advance_end(self, data_fetcher: Any) -> None:
        if not self._should_check_val_fx(data_fetcher):
            super().on_advance_end(data_fetcher)
            return
        # A loader draws a seed where it starts workers, but not where they are there from before.
        device = self.trainer.strategy.root_device
        before = randomness.collect(device)
        super().on_advance_end(data_fetcher)
        randomness.restore(before, device)

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: processes agree on a stop between steps, and not by the device at each."""

    def advance(self, data_fetcher: Any) -> None:
        if self.resumed is not None:
            resumed, self.resumed = self.resumed, None
            randomness.restore(resumed["random"], self.trainer.strategy.root_device)
        if not self._should_accumulate():
            callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            for callback in callbacks:
                if isinstance(callback, BetweenSteps):
                    callback.between_steps(self.trainer)
        super().advance(data_fetcher)


def forget_restart(trainer: pl.Trainer) -> None:
    # Nothing is half done that Lightning would have to finish or to do again. Its fit loop's own
    # setter can't be told so where `max_steps` is given.
    _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]


def _can_skip(loaders: list[Any]) -> bool:
    return all(getattr(getattr(each, "sampler", None), "can_skip", False) for each in loaders)


def step_loop(trainer: pl.Trainer) -> StepLoop:
    loop = trainer.fit_loop.epoch_loop
    if not isinstance(loop, StepLoop):
        raise MisconfigurationException(
            "Resume needs a loop that it can stop in; use pyclassify.training.trainer.Trainer"
        )
    return loop
