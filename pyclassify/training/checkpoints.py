"""Write, verify and find checkpoint files that survive a kill, a full disk and a flipped bit."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pyclassify.utils import files
from pyclassify.utils.signals import pause_heartbeat

_STEP = re.compile(r"step=(\d+)\.ckpt")
WRITE_SECONDS = 120.0  # that a checkpoint may take after a stop signal

_pre_save_hook: Callable[[], None] | None = None


def set_pre_save_hook(hook: Callable[[], None]) -> None:
    """Set a function to call before each resumable checkpoint, such as a flush of the run's log.

    A checkpoint must not be ahead of the log, which a resumed run continues.

    Args:
        hook: Called by the process that writes; where it raises an OSError, nothing is written.
    """
    global _pre_save_hook
    _pre_save_hook = hook


def find_data_state(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Find the data module's state in a checkpoint: the item that has the names of classes.

    Lightning saves the data module's `state_dict` under its class's name.

    Returns:
        That one item of the checkpoint, or an empty dictionary.
    """
    return {
        key: state
        for key, state in checkpoint.items()
        if isinstance(state, dict) and isinstance(state.get("classes"), list)
    }


def read_data_state(path: str | Path) -> dict[str, Any]:
    """Read the data module's state of a checkpoint file; empty where it is not one of ours."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return next(iter(find_data_state(checkpoint).values()), {})


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically: whole or not at all under their final name.

    Lightning itself writes elsewhere and moves, which on another file system is a copy.

    Example:
        >>> Trainer(plugins=[AtomicCheckpointIO()])
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            OSError: It can't be written; what was there before is still there.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            hashed = _STEP.fullmatch(Path(path).name) is not None
            if hashed and _pre_save_hook is not None:
                _pre_save_hook()
            write_checkpoint(checkpoint, Path(path), hashed)


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def write_checkpoint(checkpoint: dict[str, Any], path: Path, hashed: bool) -> None:
    """Write a checkpoint to a temporary file, flush it to the disk, and rename it.

    Args:
        checkpoint: Anything that `torch.save` can write.
        path: The checkpoint's path.
        hashed: Whether to write its SHA-256 too, to PATH.sha256 in the format of sha256sum.

    Raises:
        OSError: It can't be written; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            hashing = _Hashing(file)
            try:
                torch.save(checkpoint, hashing)  # type: ignore[arg-type]
            except RuntimeError as error:  # how torch reports that a write has failed
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise
            file.flush()
            os.fsync(file.fileno())
        if hashed:
            line = f"{hashing.digest.hexdigest()}  {path.name}\n"
            files.write_atomically(_digest_path(path), line)
        part.replace(path)
        _fsync_folder(path.parent)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as write(2) leaves it
            error.filename = str(path)
        raise


def _fsync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Get the path of a step's checkpoint, step=00000300.ckpt: sorted names are sorted steps."""
    return folder / f"step={step:08}.ckpt"


def parse_step(path: Path | str) -> int:
    """Get the step of a resumable checkpoint from its name."""
    return int(_STEP.fullmatch(Path(path).name)[1])  # type: ignore[index]


def find_newest(folder: Path) -> Path | None:
    """Find the newest intact checkpoint; rename damaged ones to NAME.damaged.

    Args:
        folder: The folder of resumable checkpoints, which need not exist.
    """
    for path in _newest_first(folder):
        damage = _find_damage(path)
        if not damage:
            return path
        rank_zero_warn(
            f"the checkpoint {path} is damaged ({damage}) and now called {path.name}.damaged; "
            "going on from the one before"
        )
        _quarantine(path)
    return None


def _quarantine(path: Path) -> None:
    """Rename a damaged checkpoint and its digest."""
    for file in (path, _digest_path(path)):
        if file.exists():
            file.replace(f"{file}.damaged")


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and partial files that a kill has left."""
    for path in list(_newest_first(folder))[keep:]:
        path.unlink(missing_ok=True)
        _digest_path(path).unlink(missing_ok=True)
    for path in folder.glob(".step=*.part"):
        path.unlink(missing_ok=True)


def _newest_first(folder: Path) -> Iterator[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    yield from sorted((p for p in found if _STEP.fullmatch(p.name)), key=parse_step, reverse=True)


def _digest_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _find_damage(path: Path) -> str:
    """Describe the damage of a checkpoint; empty if it is intact."""
    try:
        expected = _digest_path(path).read_text().split(" ")[0]
    except (OSError, UnicodeDecodeError):
        return "its .sha256 is missing"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == expected else "its content is not what was written"


class BestCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint, or the last where nothing called `monitor` is logged.

    Example:
        >>> Trainer(callbacks=[BestCheckpoint(monitor="val_loss", mode="min")])

    Args:
        monitor: The metric that says which is best.
        mode: Whether its max or its min is best.
        filename: The checkpoint's name, which may have metrics in it.
    """

    def __init__(
        self,
        monitor: str | None = "val_accuracy",
        mode: str = "max",
        filename: str | None = "best",
        **kwargs: Any,
    ) -> None:
        # In a run's own folder a file that is there was written by this run, before it was killed.
        own = kwargs.get("dirpath") is None and kwargs.get("save_top_k", 1) == 1
        counts = kwargs.pop("enable_version_counter", not own)
        super().__init__(
            monitor=monitor, mode=mode, filename=filename, enable_version_counter=counts, **kwargs
        )

    @property
    def state_key(self) -> str:
        return type(self).__qualname__  # whatever becomes of `monitor`

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(self._rebase(state_dict))
        self.monitor = state_dict["monitor"]

    def _rebase(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Call the files of this run by the names that they have from where it goes on."""
        before, now = str(state_dict.get("dirpath")), str(self.dirpath)
        if before == now or Path(before).parts[-3:] != Path(now).parts[-3:]:
            return state_dict  # another run's, which Lightning forgets
        text = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: state_dict[name].replace(before, now, 1) for name in text}
        best = {
            path.replace(before, now, 1): score
            for path, score in state_dict["best_k_models"].items()
        }
        return {**state_dict, **moved, "best_k_models": best, "dirpath": now}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_monitor(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.enable_validation:  # else a later validation may log it
            self._check_monitor(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        # Here and not where it is written, as all processes wait for it.
        with pause_heartbeat(WRITE_SECONDS):
            super()._save_checkpoint(trainer, filepath)

    def _check_monitor(self, trainer: pl.Trainer) -> None:
        logged = sorted(trainer.callback_metrics)
        if self.monitor is not None and self.monitor not in logged and not trainer.sanity_checking:
            rank_zero_warn(
                f"no metric is called {self.monitor!r}, so the last checkpoint is kept instead of "
                f"the best; --checkpoint.monitor takes one of {', '.join(logged) or 'none'}"
            )
            self.monitor = None
