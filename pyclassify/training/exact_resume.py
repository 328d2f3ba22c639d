"""Resume a training exactly: it ends bitwise identical to one that was never interrupted.

`Resume` writes checkpoints between two optimizer steps and, when the run starts again, loads the
newest. Beside Lightning's items, such a checkpoint has the item "pyclassify.resume" with the state
that each rank needs to continue in the middle of an epoch: its random states, the random states
that the epoch's data loader started with, the states of torchmetrics' metrics and the sums of
values logged with `on_epoch`.

`ResumableEpochLoop` is Lightning's loop over the batches of an epoch. It continues at the next
batch, and calls `Resume` between steps. All use of Lightning's private loops is in this module, and
tests/test_private_names.py lists their names.
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
_MIN_SECONDS_RATIO = 50  # of the time between checkpoints of epochs to the time to write one


class Resume(Callback):
    """Save resumable checkpoints, and resume from the newest when the run starts again.

    On a CPU, a resumed training ends bitwise identical to one that was never interrupted.
    Checkpoints are written between two optimizer steps to `checkpoints/resume` in the folder of the
    logger's run: every `every_minutes`, at the end of each epoch and, in a command of pyclassify,
    on SIGINT, SIGTERM, SIGUSR1 or SIGHUP. Without a logger that has a `run_id` the callback does
    nothing. It works on one device and with DDP, in `pyclassify.Trainer`.

    Args:
        every_minutes: Write a checkpoint every N minutes, above 0. One is written at the end of
            each epoch too, unless that would take more than 2% of the time.
        every_n_train_steps: Write a checkpoint every N optimizer steps too; null does not.
        max_checkpoints: Keep the newest N checkpoints; 0 writes none, and the run can't resume.
        keep_after: Keep the newest N of them after the run is FINISHED, so that it can be trained
            further; 0 keeps none.
        allow_inexact: Resume even if the number of processes, or of batches in an epoch, has
            changed. The result then differs from that of an uninterrupted training.

    Raises:
        MisconfigurationException: An argument is out of range; or, as training starts, the number
            of processes or batches has changed and `allow_inexact` is False.

    Example:
        >>> from pyclassify import RunLogger, Trainer
        >>> from pyclassify.training.exact_resume import Resume
        >>> trainer = Trainer(callbacks=[Resume(every_minutes=5)], logger=RunLogger())
    """

    def __init__(
        self,
        every_minutes: float = 10.0,
        every_n_train_steps: int | None = None,
        max_checkpoints: int = 2,
        keep_after: int = 1,
        allow_inexact: bool = False,
    ) -> None:
        if not every_minutes > 0:
            raise MisconfigurationException(
                f"invalid every_minutes: {every_minutes} (expected a number above 0)"
            )
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise MisconfigurationException(
                f"invalid every_n_train_steps: {every_n_train_steps} (expected 1 or more, or null)"
            )
        if max_checkpoints < 0:
            raise MisconfigurationException(
                f"invalid max_checkpoints: {max_checkpoints} (expected 0 or more; 0 writes none)"
            )
        self.every_minutes = every_minutes
        self.every_n_train_steps = every_n_train_steps
        if keep_after < 0:
            raise MisconfigurationException(
                f"invalid keep_after: {keep_after} (expected 0 or more; 0 keeps none)"
            )
        self.max_checkpoints = max_checkpoints
        self.keep_after = keep_after
        self.allow_inexact = allow_inexact
        self.folder: Path | None = None
        self.newest = ""  # the checkpoint that this attempt resumes from
        self._step: int | None = None  # the step of that checkpoint
        self._state: dict[str, Any] = {}  # the item _STATE_KEY of that checkpoint
        self._epoch_means: dict[str, Any] = {}  # sums to be added to Lightning's
        self._synchronizer = StopSynchronizer()
        self._last_save = time.monotonic()
        self._save_seconds = 0.0
        self._saving = self._epoch_done = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write checkpoints atomically, and find the newest to resume from."""
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.folder, self.newest = None, ""
        if stage != "fit" or not self.max_checkpoints:
            return
        atomic = type(trainer.strategy.checkpoint_io) is AtomicCheckpointIO
        if not atomic or type(trainer.strategy) not in (SingleDeviceStrategy, DDPStrategy):
            rank_zero_warn(
                "no resumable checkpoints are written: they need one device or ddp, and the "
                "CheckpointIO of pyclassify, but this training uses "
                f"{type(trainer.strategy).__name__} and "
                f"{type(trainer.strategy.checkpoint_io).__name__}"
            )
            return
        folder = trainer.strategy.broadcast(str(_find_folder(trainer) or ""))
        self.folder = Path(folder) if folder else None
        if self.folder is not None:
            self._synchronizer.open(trainer.world_size)
            # Only rank zero searches, so that all ranks resume from the same checkpoint.
            newest = trainer.is_global_zero and checkpoints.find_newest(self.folder)
            self.newest = trainer.strategy.broadcast(str(newest or ""))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Load the newest checkpoint."""
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
            if processes != trainer.world_size and not self.allow_inexact:
                raise MisconfigurationException(
                    f"this run was started with {processes} processes and can't resume exactly "
                    f"with {trainer.world_size}; give the same --devices and --num_nodes, or "
                    "--resume.allow_inexact=true"
                )
            trainer.should_stop = self._state["should_stop"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore what Lightning does not: progress in the epoch, metrics and random states."""
        if self.folder is not None:
            self._last_save = time.monotonic()
            signals.defer_signals()
        state, self._state = self._state, {}
        if self._step is not None and trainer.global_step != self._step:
            raise MisconfigurationException(
                f"the checkpoint of step {self._step} contains the state of step "
                f"{trainer.global_step}; move it out of {self.folder} to resume from the previous "
                "checkpoint"
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
        """Convert the progress in an epoch to the present number of batches.

        Raises:
            MisconfigurationException: The number has changed and allow_inexact is False.
        """
        if batches == trainer.num_training_batches:
            return
        if not self.allow_inexact:
            raise MisconfigurationException(
                f"an epoch has {trainer.num_training_batches} batches, but had {batches} before "
                "the interruption; give the data and batch size that the run was started with, or "
                "--resume.allow_inexact=true"
            )
        _get_epoch_loop(trainer).scale_progress(trainer.num_training_batches / batches)

    def between_steps(self, trainer: pl.Trainer) -> None:
        """Save a checkpoint or stop, on all ranks; called before each optimizer step.

        Raises:
            KeyboardInterrupt: A rank received a stop signal.
        """
        if self.folder is None:
            return
        signals.send_heartbeat()
        epoch_starts = trainer.fit_loop.epoch_loop.batch_progress.current.ready == 0
        signum, every = 0, self.every_n_train_steps
        due = bool(every and trainer.global_step % every == 0)
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
            except OSError as error:  # on rank zero, which writes
                _warn(f"the checkpoint of step {trainer.global_step} could not be written", error)
                trainer.strategy.barrier("Trainer.save_checkpoint")  # the other ranks wait there
            finally:
                self._saving = False
            if trainer.is_global_zero and path.exists():
                try:
                    _report_step(trainer.global_step)
                    checkpoints.prune_checkpoints(self.folder, self.max_checkpoints)
                except OSError as error:
                    _warn("could not report the step or remove old checkpoints", error)
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
        # A stop signal can cause the error: it also ends data workers.
        signals.restore_handlers()
        if isinstance(exception, KeyboardInterrupt):
            self._synchronizer.close()


class ResumableEpochLoop(_TrainingEpochLoop):
    """Lightning's loop over the batches of an epoch, able to continue between any two batches."""

    # This rank's state in the checkpoint, until it is restored.
    rank_state: dict[str, Any] | None = None
    # The random states that this epoch's data loader started with.
    loader_random_states: dict[str, Any]

    def scale_progress(self, factor: float) -> None:
        """Multiply the number of finished batches in this epoch, for batches of another size."""
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
        # After the first epoch, Lightning's on_run_start calls iter(data_fetcher).
        restarted = self.trainer.current_epoch > 0 and not self.trainer.fit_loop.is_resuming
        if self.rank_state is not None:
            _set_random_states(self.rank_state["opened"], device)
        self.loader_random_states = _get_random_states(device)
        if any(hasattr(loader, "state_dict") for loader in loaders):
            self._load_loader_states(data_fetcher)
        elif self.rank_state is not None:
            self._skip_finished_batches(data_fetcher, loaders)
        elif not restarted and not (self.trainer.current_epoch == 0 and _can_skip(loaders)):
            # Lightning has already started the loader, with other random states and epoch.
            iter(data_fetcher)
        super().on_run_start(data_fetcher)

    def _load_loader_states(self, data_fetcher: Any) -> None:
        """Load the states of stateful data loaders from the checkpoint.

        Lightning loads them when it sets up the data. If `configure_optimizers` needs the number of
        steps, that is before the states are read from the checkpoint, and they are never loaded.
        """
        fit_loop = self.trainer.fit_loop
        states = fit_loop._combined_loader_states_to_load
        if states and (self.rank_state is not None or fit_loop.restarting):
            data_fetcher.combined_loader._load_state_dicts(states)
            iter(data_fetcher)
        fit_loop._combined_loader_states_to_load = []

    def _skip_finished_batches(self, data_fetcher: Any, loaders: list[Any]) -> None:
        """Advance data loaders without a state: by skipping indices, or by reading batches."""
        batches = self.batch_progress.current.ready
        if _can_skip(loaders):
            for loader in loaders:
                loader.sampler.skip(batches * loader.batch_size)
            iter(data_fetcher)
            return
        if any(getattr(loader, "persistent_workers", False) for loader in loaders):
            rank_zero_warn(
                "the random states of persistent data workers can't be saved, so their random "
                "numbers differ from those of an uninterrupted training; no image is read twice"
            )
        if batches:
            rank_zero_info(
                f"Skipping the first {batches} batches of the epoch, to resume after them"
            )
        iter(data_fetcher)
        for _ in range(batches):
            next(data_fetcher)
            signals.send_heartbeat()
        data_fetcher.fetched -= batches  # Lightning adds them

    def advance(self, data_fetcher: Any) -> None:
        """Train on a batch; before an optimizer step begins, `Resume` may save or stop."""
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
        """Validate if due, without an effect on the random states of training."""
        if not self._should_check_val_fx(data_fetcher):
            super().on_advance_end(data_fetcher)
            return
        # A loader that starts workers takes a random number; one with persistent workers does not.
        device = self.trainer.strategy.root_device
        random_states = _get_random_states(device)
        super().on_advance_end(data_fetcher)
        _set_random_states(random_states, device)

    def _broadcast_sigterm_tensor(self) -> None:
        """Do nothing: `Resume` synchronizes stops on the host, not on the device at each step."""


def _warn(problem: str, error: OSError) -> None:
    rank_zero_warn(
        f"{problem} ({error}); training continues, and a restart resumes from the newest "
        "checkpoint that was written"
    )


def _find_folder(trainer: pl.Trainer) -> Path | None:
    """Find the folder of the run's resumable checkpoints; None for a run without an id."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if getattr(logger, "run_id", None):
            folder = Path(logger.save_dir or trainer.default_root_dir)
            return folder / str(logger.name) / str(logger.version) / "checkpoints" / "resume"
    return None


def _report_step(step: int) -> None:
    """Report to the batch script that training can resume from a step."""
    if os.environ.get(PROGRESS_ENV):
        files.write_atomically(Path(os.environ[PROGRESS_ENV]), f"{step}\n")


def _clear_restarting(trainer: pl.Trainer) -> None:
    """Reset `restarting` of Lightning's fit loop, which would repeat or finish a partial step."""
    # The fit loop's own setter ignores False if `max_steps` is given.
    _Loop.restarting.fset(trainer.fit_loop, False)  # type: ignore[attr-defined]


def _can_skip(loaders: list[Any]) -> bool:
    return all(getattr(getattr(loader, "sampler", None), "can_skip", False) for loader in loaders)


def _get_epoch_loop(trainer: pl.Trainer) -> ResumableEpochLoop:
    loop = trainer.fit_loop.epoch_loop
    if not isinstance(loop, ResumableEpochLoop):
        raise MisconfigurationException(
            "Resume needs ResumableEpochLoop as its training loop; use pyclassify.Trainer"
        )
    return loop


def _get_random_states(device: torch.device) -> dict[str, Any]:
    """Return the random states of Python, NumPy, torch and, on a GPU, the device."""
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
    """Return the states of all torchmetrics metrics in a module, as accumulated by this rank."""
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
    """Return Lightning's running sums of values logged with `on_epoch`, by key."""
    return {
        key: {state: _copy(getattr(result, state)) for state in result._defaults}
        for key, result in results.items()
        if result.is_tensor and result.meta.on_epoch and not result.has_reset
    }


def _add_epoch_means(results: dict[str, Any], saved: dict[str, Any]) -> None:
    """Add the sums from before an interruption to Lightning's, and remove them from `saved`.

    Call it after the first batch that logs: Lightning creates its sums then.
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
