"""Resume a training exactly: it ends bitwise identical to one that was never interrupted.

`Resume` writes checkpoints between two optimizer steps and, when the run starts again, loads the
newest. Beside what Lightning saves, such a checkpoint has under "pyclassify.resume" what each rank
needs to continue in the middle of an epoch: random states, those that the epoch's data loader
started with, the counts of torchmetrics' metrics and the sums of values logged with `on_epoch`.

`ResumableEpochLoop` is Lightning's loop over an epoch's batches; it continues at the next batch,
and calls `Resume` between steps. All that leans on Lightning's private loops is in this module;
tests/test_private_names.py lists it by name.
"""

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
_MIN_SECONDS_RATIO = 50  # from one epoch's checkpoint to the next, to the seconds that one takes


class Resume(Callback):
    """Save resumable checkpoints, and resume from the newest when the run starts again.

    Example:
        >>> Trainer(callbacks=[Resume(every_minutes=5)], logger=RunLogger()).fit(model, data)

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
        self.newest = ""  # the checkpoint that this attempt resumes from
        self._step: int | None = None  # of that checkpoint
        self._state: dict[str, Any] = {}  # what that checkpoint has under _STATE_KEY
        self._epoch_means: dict[str, Any] = {}  # not yet added to Lightning's
        self._synchronizer = StopSynchronizer()
        self._last_save = time.monotonic()
        self._save_seconds = 0.0
        self._saving = self._epoch_done = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write checkpoints atomically, and find the newest to resume from."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.folder, self.newest = None, ""
        if stage != "fit" or not self.keep:
            return
        atomic = type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO
        if not atomic or type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            rank_zero_warn(
                "no checkpoints to go on from are written: pyclassify does so on one device and "
                f"with ddp, by its own CheckpointIO, and not with {type(trainer.strategy).__name__}"
            )
            return
        folder = trainer.strategy.broadcast(str(_find_folder(trainer) or ""))
        self.folder = Path(folder) if folder else None
        if self.folder is not None:
            self._synchronizer.open(trainer.world_size)
            # Rank zero alone looks, so that all ranks resume from the same checkpoint.
            newest = trainer.is_global_zero and checkpoints.find_newest(self.folder)
            self.newest = trainer.strategy.broadcast(str(newest or ""))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the newest checkpoint, as Lightning loads for strategies that do so once set up."""
        if self.newest:
            self._step = checkpoints.parse_step(self.newest)
            weights_only = getattr(trainer, "reads_weights_only", None)
            trainer._checkpoint_connector._restore_modules_and_callbacks(self.newest, weights_only)
            callback = trainer.checkpoint_callback
            if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
                for logger in trainer.loggers:
                    # The interrupted attempt may not have logged its best checkpoint.
                    logger.after_save_checkpoint(callback)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn == "fit" and _STATE_KEY in checkpoint:
            self._state = checkpoint[_STATE_KEY]
            processes = self._state["processes"]
            if processes != trainer.world_size and not self.inexact:
                raise MisconfigurationException(
                    f"this run was started with {processes} processes and would not be the same "
                    f"with {trainer.world_size}; give as many --devices and --num_nodes, or "
                    "--resume.inexact=true"
                )
            trainer.should_stop = self._state["should_stop"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore what Lightning has not: progress in the epoch, metrics and random states."""
        if self.folder is not None:
            self._last_save = time.monotonic()
            signals.defer_signals()
        state, self._state = self._state, {}
        if self._step is not None and trainer.global_step != self._step:
            raise MisconfigurationException(
                f"training would go on at step {trainer.global_step}, the checkpoint is of step "
                f"{self._step}; move it out of {self.folder} to go on from the one before"
            )
        if not state:
            return
        self._restore_progress(trainer, state["batches"])
        trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
        trainer.callback_metrics.update(
            {name: value.to(pl_module.device) for name, value in state["callback_metrics"].items()}
        )
        rank_state = state["ranks"][trainer.global_rank % len(state["ranks"])]
        _set_metric_states(pl_module, rank_state["metrics"])
        self._epoch_means = dict(rank_state["means"])
        if state["epoch_done"]:
            _clear_restarting(trainer)
            _set_random_states(rank_state["random"], trainer.strategy.root_device)
        else:
            _get_epoch_loop(trainer).rank_state = rank_state

    def _restore_progress(self, trainer: pl.Trainer, batches: int) -> None:
        """Convert the progress of an epoch that had another number of batches."""
        if batches == trainer.num_training_batches:
            return
        if not self.inexact:
            raise MisconfigurationException(
                f"an epoch has {trainer.num_training_batches} batches, and had "
                f"{batches} before the stop; give the data and the batch size that "
                "the run was started with, or --resume.inexact=true"
            )
        _get_epoch_loop(trainer).scale_progress(trainer.num_training_batches / batches)

    def between_steps(self, trainer: pl.Trainer) -> None:
        """Save or stop, where all ranks agree to; `ResumableEpochLoop` calls it before each step.

        Raises:
            KeyboardInterrupt: A rank got a stop signal.
        """
        if self.folder is None:
            return
        signals.send_heartbeat()
        epoch_starts = trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0
        signum, due = 0, bool(self.every_steps and trainer.global_step % self.every_steps == 0)
        if self._synchronizer.should_sync() or epoch_starts:
            signum, save = self._synchronizer.all_reduce_stop(
                signals.get_pending_signal(), self._is_due(epoch_starts)
            )
            due = due or save
        if (signum or due) and trainer.global_step:
            self._save(trainer, epoch_done=False)
        if signum:
            signals.stop_now(signum)

    def _is_due(self, epoch_starts: bool) -> bool:
        seconds = time.monotonic() - self._last_save
        if seconds >= 60 * self.every_minutes:
            return True
        return epoch_starts and seconds >= _MIN_SECONDS_RATIO * self._save_seconds

    def _save(self, trainer: pl.Trainer, epoch_done: bool) -> None:
        if self.folder is None:
            return
        path = checkpoints.checkpoint_path(self.folder, trainer.global_step)
        if trainer.strategy.broadcast(path.exists()):
            return
        started = time.monotonic()
        self._epoch_done = epoch_done
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
        self._last_save = time.monotonic()
        self._save_seconds = self._last_save - started

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._saving:
            return
        loop = _get_epoch_loop(trainer)
        rank_state = {
            "random": _get_random_states(trainer.strategy.root_device),
            "opened": loop.loader_random_states,
            "metrics": _get_metric_states(pl_module),
            "means": _get_epoch_means(loop._results),
        }
        checkpoint[_STATE_KEY] = {
            "ranks": self._synchronizer.gather(rank_state),
            "processes": trainer.world_size,
            "batches": trainer.num_training_batches,
            "epoch_done": self._epoch_done,
            "should_stop": trainer.should_stop,
            "accumulate_grad_batches": trainer.accumulate_grad_batches,
            "callback_metrics": {
                name: value.detach().cpu() for name, value in trainer.callback_metrics.items()
            },
        }

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        if self._epoch_means:
            _add_epoch_means(trainer.fit_loop.epoch_loop._results, self._epoch_means)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._epoch_means = {}

    def on_train_batch_start(self, *args: Any) -> None:
        signals.send_heartbeat()

    def on_validation_batch_start(self, *args: Any) -> None:
        signals.send_heartbeat()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.folder is None:
            return
        self._save(trainer, epoch_done=True)
        if signum := self._synchronizer.all_reduce_stop(signals.get_pending_signal(), due=False)[0]:
            signals.stop_now(signum)
        self._synchronizer.close()
        signals.restore_handlers()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        # what is wrong may be the stop's doing, such as workers that are gone
        signals.restore_handlers()
        if isinstance(exception, KeyboardInterrupt):
            self._synchronizer.close()


class ResumableEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over an epoch's batches, which can continue between any two of them."""

    # This rank's part of a checkpoint, until it is used.
    rank_state: dict[str, Any] | None = None
    # The random states that this epoch's data loader started with.
    loader_random_states: dict[str, Any]

    def scale_progress(self, factor: float) -> None:
        """Convert the number of this epoch's finished batches to batches of another size."""
        finished = int(self.batch_progress.current.ready * factor)
        finished -= finished % self.trainer.accumulate_grad_batches
        for count in vars(self.batch_progress.current):
            setattr(self.batch_progress.current, count, finished)

    def reset(self) -> None:
        if self.rank_state is None:
            super().reset()
        else:
            _clear_restarting(self.trainer)

    def on_run_start(self, data_fetcher: Any) -> None:
        """Start the loader at the epoch's next batch, with the epoch's random states."""
        device = self.trainer.strategy.root_device
        loaders = data_fetcher.combined_loader.flattened
        # Lightning's own on_run_start calls iter(data_fetcher) where an epoch follows another.
        restarted = self.trainer.current_epoch > 0 and not self.trainer.fit_loop.is_resuming
        if self.rank_state is not None:
            _set_random_states(self.rank_state["opened"], device)
        self.loader_random_states = _get_random_states(device)
        if any(hasattr(loader, "state_dict") for loader in loaders):
            self._load_loader_states(data_fetcher)
        elif self.rank_state is not None:
            self._skip_finished_batches(data_fetcher, loaders)
        elif not restarted and not (self.trainer.current_epoch == 0 and _can_skip(loaders)):
            # Lightning has started it already, with random states and an epoch not known here.
            iter(data_fetcher)
        super().on_run_start(data_fetcher)

    def _load_loader_states(self, data_fetcher: Any) -> None:
        """Load the checkpoint's states of stateful loaders.

        Lightning does so as it sets up the data, which is before it reads the checkpoint's loops
        if `configure_optimizers` has asked for the number of steps, and does not do so again.
        """
        fit_loop = self.trainer.fit_loop
        states = fit_loop._combined_loader_states_to_load
        if states and (self.rank_state is not None or fit_loop.restarting):
            data_fetcher.combined_loader._load_state_dicts(states)
            iter(data_fetcher)
        fit_loop._combined_loader_states_to_load = []

    def _skip_finished_batches(self, data_fetcher: Any, loaders: list[Any]) -> None:
        """Advance loaders without a state: by their samplers' indices, or by reading batches."""
        batches = self.batch_progress.current.ready
        if _can_skip(loaders):
            for loader in loaders:
                loader.sampler.skip(batches * loader.batch_size)
            iter(data_fetcher)
            return
        if any(getattr(loader, "persistent_workers", False) for loader in loaders):
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

    def advance(self, data_fetcher: Any) -> None:
        """Train on a batch; before one that begins an optimizer step, `Resume` may save or stop."""
        if self.rank_state is not None:
            rank_state, self.rank_state = self.rank_state, None
            _set_random_states(rank_state["random"], self.trainer.strategy.root_device)
        if not self._should_accumulate():
            callbacks: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
            for callback in callbacks:
                if isinstance(callback, Resume):
                    callback.between_steps(self.trainer)
        super().advance(data_fetcher)

    def on_advance_end(self, data_fetcher: Any) -> None:
        """Validate where due, without an effect on the random states of training."""
        if not self._should_check_val_fx(data_fetcher):
            super().on_advance_end(data_fetcher)
            return
        # A loader draws a seed where it starts workers, but not where it has persistent ones.
        device = self.trainer.strategy.root_device
        random_states = _get_random_states(device)
        super().on_advance_end(data_fetcher)
        _set_random_states(random_states, device)

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing: ranks agree on a stop between steps, not by the device in each step."""


def _warn(problem: str, error: OSError) -> None:
    rank_zero_warn(
        f"{problem} ({error}); training goes on, and after a stop from the newest there is"
    )


def _find_folder(trainer: pl.Trainer) -> Path | None:
    """The folder of the run's resumable checkpoints; only a run with an id is found again."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if getattr(logger, "run_id", None):
            folder = Path(logger.save_dir or trainer.default_root_dir)
            return folder / str(logger.name) / str(logger.version) / "checkpoints" / "resume"
    return None


def _report_step(step: int) -> None:
    """Report to the job's script that training can resume from a step."""
    if os.environ.get(PROGRESS_ENV):
        files.write_atomically(Path(os.environ[PROGRESS_ENV]), f"{step}\n")


def _clear_restarting(trainer: pl.Trainer) -> None:
    """Tell Lightning's fit loop that no step is half done which it would finish or repeat."""
    # The fit loop's own setter does not take False where `max_steps` is given.
    _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]


def _can_skip(loaders: list[Any]) -> bool:
    return all(getattr(getattr(loader, "sampler", None), "can_skip", False) for loader in loaders)


def _get_epoch_loop(trainer: pl.Trainer) -> ResumableEpochLoop:
    loop = trainer.fit_loop.epoch_loop
    if not isinstance(loop, ResumableEpochLoop):
        raise MisconfigurationException(
            "Resume needs a loop that it can stop in; use pyclassify.training.trainer.Trainer"
        )
    return loop


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
    """Set the random states that `_get_random_states` returned."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def _get_metric_states(module: torch.nn.Module) -> dict[str, Any]:
    """The states of all torchmetrics metrics in a module, as accumulated by this rank."""
    return {
        name: {
            "count": metric._update_count,
            "states": {key: _copy(getattr(metric, key)) for key in metric._defaults},
        }
        for name, metric in module.named_modules()
        if isinstance(metric, Metric)
    }


def _set_metric_states(module: torch.nn.Module, saved: dict[str, Any]) -> None:
    """Set the states that `_get_metric_states` returned."""
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and name in saved:
            metric.reset()
            metric._update_count = saved[name]["count"]
            for key, value in saved[name]["states"].items():
                setattr(metric, key, _copy(value, metric.device))


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().to(device or "cpu")
    return [_copy(item, device) for item in value]


def _get_epoch_means(results: dict[str, Any]) -> dict[str, Any]:
    """Lightning's running sums of values logged with `on_epoch`, by their key."""
    return {
        key: {state: _copy(getattr(result, state)) for state in result._defaults}
        for key, result in results.items()
        if result.is_tensor and result.meta.on_epoch and not result.has_reset
    }


def _add_epoch_means(results: dict[str, Any], saved: dict[str, Any]) -> None:
    """Add sums from before an interruption to Lightning's; those added are removed from `saved`.

    Call it after the first batch that logs, when Lightning has made its sums.
    """
    for key in [key for key in saved if key in results and not results[key].has_reset]:
        result = results[key]
        previous = {
            state: _copy(value, result.value.device) for state, value in saved.pop(key).items()
        }
        if result.meta.is_max_reduction or result.meta.is_min_reduction:
            result.value = result.meta.reduce_fx(previous["value"], result.value)
            continue
        for state, value in previous.items():
            setattr(result, state, value + getattr(result, state))
        result._computed = None
