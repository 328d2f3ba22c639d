"""Going on where a run was stopped, so that its training is the very one that nothing disturbed."""

import os
import random
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torchmetrics import Metric

from pyclassify.training import checkpoints
from pyclassify.training.checkpoints import WRITE_SECONDS, AtomicCheckpointIO
from pyclassify.training.distributed import StopSynchronizer
from pyclassify.utils import files, signals
from pyclassify.utils.launcher import PROGRESS_ENV

_STATE_KEY = "pyclassify.resume"  # in a checkpoint
_MIN_SAVE_INTERVAL = 50  # a checkpoint each epoch must take less than 1 in so many seconds


class BetweenSteps(Callback):
    """A callback with one more hook."""

    def between_steps(self, trainer: pl.Trainer) -> None:
        """Called before each batch that begins an optimizer step, when the last is all done."""


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
        self._agreement = StopSynchronizer()
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
            newest = trainer.is_global_zero and checkpoints.find_newest(self.folder)
            self.newest = trainer.strategy.broadcast(str(newest or ""))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.newest:
            self._step = checkpoints.parse_step(self.newest)
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
        if trainer.state.fn == "fit" and _STATE_KEY in checkpoint:
            self._state = checkpoint[_STATE_KEY]
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
            signals.defer_signals()
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
            _get_step_loop(trainer).move(trainer.num_training_batches / state["batches"])
        trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
        trainer.callback_metrics.update(
            {name: each.to(pl_module.device) for name, each in state["callback_metrics"].items()}
        )
        mine = state["ranks"][trainer.global_rank % len(state["ranks"])]
        _set_metric_states(pl_module, mine["metrics"])
        self._means = dict(mine["means"])
        if state["epoch_done"]:
            _clear_restarting(trainer)
            _set_random_states(mine["random"], trainer.strategy.root_device)
        else:
            _get_step_loop(trainer).resumed = mine

    def between_steps(self, trainer: pl.Trainer) -> None:
        """Write a checkpoint, or stop, where all processes are to; called between two batches."""
        if self.folder is None:
            return
        signals.send_heartbeat()
        at_start = trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0
        signum, due = 0, bool(self.every_steps and trainer.global_step % self.every_steps == 0)
        if self._agreement.should_sync() or at_start:
            signum, agreed = self._agreement.all_reduce_stop(
                signals.get_pending_signal(), self._is_due(at_start)
            )
            due = due or agreed
        if (signum or due) and trainer.global_step:
            self._save(trainer, epoch_done=False)
        if signum:
            signals.stop_now(signum)

    def _is_due(self, at_start: bool) -> bool:
        passed = time.monotonic() - self._saved
        return passed >= 60 * self.every_minutes or (
            at_start and passed >= _MIN_SAVE_INTERVAL * self._took
        )

    def _save(self, trainer: pl.Trainer, epoch_done: bool) -> None:
        if self.folder is None:
            return
        path = checkpoints.checkpoint_path(self.folder, trainer.global_step)
        started = time.monotonic()
        self._epoch_done = epoch_done
        if trainer.strategy.broadcast(path.exists()):
            return
        with signals.pause_heartbeat(WRITE_SECONDS):
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
                    _report_step(trainer.global_step)
                    checkpoints.prune_checkpoints(self.folder, self.keep)
                except OSError as error:
                    _warn("old checkpoints are left, or the job's script is not told", error)
        self._saved = time.monotonic()
        self._took = self._saved - started

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._saving:
            return
        device, loop = trainer.strategy.root_device, _get_step_loop(trainer)
        mine = {
            "random": _get_random_states(device),
            "opened": loop.opened,
            "metrics": _get_metric_states(pl_module),
            "means": _get_epoch_means(loop._results),
        }
        checkpoint[_STATE_KEY] = {
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
            _add_epoch_means(trainer.fit_loop.epoch_loop._results, self._means)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._means = {}

    def on_train_batch_start(self, *args: Any) -> None:
        signals.send_heartbeat()

    def on_validation_batch_start(self, *args: Any) -> None:
        signals.send_heartbeat()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.folder is None:
            return
        self._save(trainer, epoch_done=True)
        if signum := self._agreement.all_reduce_stop(signals.get_pending_signal(), due=False)[0]:
            signals.stop_now(signum)
        self._agreement.close()
        signals.restore_handlers()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        # what is wrong may be the stop's doing, such as workers that are gone
        signals.restore_handlers()
        if isinstance(exception, KeyboardInterrupt):
            self._agreement.close()


def _warn(what: str, error: OSError) -> None:
    rank_zero_warn(f"{what} ({error}); training goes on, and after a stop from the newest there is")


def _folder(trainer: pl.Trainer) -> Path | None:
    """Where the run's checkpoints to go on from are; only a run with an id is found again."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if getattr(logger, "run_id", None):
            folder = Path(logger.save_dir or trainer.default_root_dir)
            return folder / str(logger.name) / str(logger.version) / "checkpoints" / "resume"
    return None


def _report_step(step: int) -> None:
    """Tell whoever started this process that training can go on from a step."""
    if os.environ.get(PROGRESS_ENV):
        files.write_atomically(Path(os.environ[PROGRESS_ENV]), f"{step}\n")


def _get_random_states(device: torch.device) -> dict[str, Any]:
    """The random states of Python, NumPy, torch and, on a GPU, of the device."""
    state: Any = np.random.get_state()
    kind, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.as_tensor(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_random_states(states: dict[str, Any], device: torch.device) -> None:
    """Set the random states that `_get_random_states` found."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def _get_metric_states(module: torch.nn.Module) -> dict[str, Any]:
    """What each of torchmetrics' metrics in a module has counted in this process so far."""
    return {
        name: {
            "count": metric._update_count,
            "states": {key: _copy(getattr(metric, key)) for key in metric._defaults},
        }
        for name, metric in module.named_modules()
        if isinstance(metric, Metric)
    }


def _set_metric_states(module: torch.nn.Module, saved: dict[str, Any]) -> None:
    """Have the metrics of a module go on counting from what `_get_metric_states` found."""
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and name in saved:
            metric.reset()
            metric._update_count = saved[name]["count"]
            for key, value in saved[name]["states"].items():
                setattr(metric, key, _copy(value, metric.device))


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().to(device or "cpu")
    return [_copy(each, device) for each in value]


def _get_epoch_means(results: dict[str, Any]) -> dict[str, Any]:
    """What Lightning itself has summed up of values logged with `on_epoch`, by their key."""
    return {
        key: {state: _copy(getattr(item, state)) for state in item._defaults}
        for key, item in results.items()
        if item.is_tensor and item.meta.on_epoch and not item.has_reset
    }


def _add_epoch_means(results: dict[str, Any], saved: dict[str, Any]) -> None:
    """Add what was summed up before a stop to what was logged since; `saved` loses what is added.

    Call it after the first batch that logs, when Lightning has made its sums.
    """
    for key in [key for key in saved if key in results and not results[key].has_reset]:
        item, before = results[key], saved.pop(key)
        before = {state: _copy(value, item.value.device) for state, value in before.items()}
        if item.meta.is_max_reduction or item.meta.is_min_reduction:
            item.value = item.meta.reduce_fx(before["value"], item.value)
            continue
        for state, value in before.items():
            setattr(item, state, value + getattr(item, state))
        item._computed = None


class StepLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch's batches, which can go on between any two of them."""

    resumed: dict[str, Any] | None = None  # this process's part of a checkpoint, until it is used
    opened: dict[str, Any]  # the random states that this epoch's loader started with

    def reset(self) -> None:
        if self.resumed is None:
            super().reset()
        else:
            _clear_restarting(self.trainer)

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
            _set_random_states(self.resumed["opened"], device)
        self.opened = _get_random_states(device)
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
            signals.send_heartbeat()
        data_fetcher.fetched -= batches  # Lightning adds them

    def on_advance_end(self, data_fetcher: Any) -> None:
        if not self._should_check_val_fx(data_fetcher):
            super().on_advance_end(data_fetcher)
            return
        # A loader draws a seed where it starts workers, but not where they are there from before.
        device = self.trainer.strategy.root_device
        before = _get_random_states(device)
        super().on_advance_end(data_fetcher)
        _set_random_states(before, device)

    def _broadcast_sigterm_tensor(self) -> None:
        """Nothing: processes agree on a stop between steps, and not by the device at each."""

    def advance(self, data_fetcher: Any) -> None:
        if self.resumed is not None:
            resumed, self.resumed = self.resumed, None
            _set_random_states(resumed["random"], self.trainer.strategy.root_device)
        if not self._should_accumulate():
            callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            for callback in callbacks:
                if isinstance(callback, BetweenSteps):
                    callback.between_steps(self.trainer)
        super().advance(data_fetcher)


def _clear_restarting(trainer: pl.Trainer) -> None:
    # Nothing is half done that Lightning would have to finish or to do again. Its fit loop's own
    # setter can't be told so where `max_steps` is given.
    _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]


def _can_skip(loaders: list[Any]) -> bool:
    return all(getattr(getattr(each, "sampler", None), "can_skip", False) for each in loaders)


def _get_step_loop(trainer: pl.Trainer) -> StepLoop:
    loop = trainer.fit_loop.epoch_loop
    if not isinstance(loop, StepLoop):
        raise MisconfigurationException(
            "Resume needs a loop that it can stop in; use pyclassify.training.trainer.Trainer"
        )
    return loop
