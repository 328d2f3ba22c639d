"""Checkpoint files that survive a kill, a full disk and a flipped bit."""

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
_CHUNK = 1 << 20
WRITE_SECONDS = 120.0  # that a checkpoint may take once a stop is asked for


_pre_save_hooks: list[Callable[[], None]] = []


def set_pre_save_hook(keep: Callable[[], None]) -> None:
    """Have a log kept by the disk before each checkpoint to go on from, which must not be ahead.

    Args:
        keep: Called by the process that writes; an OSError of its own means that none is written.
    """
    _pre_save_hooks[:] = [keep]


def find_data_state(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Find what a checkpoint keeps of its data module: what has the names of classes.

    Lightning keeps what the data module's `state_dict` gives, under its class's name.

    Returns:
        That one item of the checkpoint, or none.
    """
    return {
        key: state
        for key, state in checkpoint.items()
        if isinstance(state, dict) and isinstance(state.get("classes"), list)
    }


def read_data_state(path: str | Path) -> dict[str, Any]:
    """What a checkpoint file keeps of its data module; nothing where that is not one of ours."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return next(iter(find_data_state(checkpoint).values()), {})


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way to write checkpoints, made whole or not at all under their final name.

    Lightning itself writes elsewhere and moves, which on another file system is a copy.
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
            for keep in _pre_save_hooks if hashed else ():
                keep()
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
    """Write a checkpoint under another name, have the disk keep it, and only then name it.

    Args:
        checkpoint: What `torch.save` can write.
        path: The checkpoint's name.
        hashed: Whether to write its SHA-256 too, to PATH.sha256 as `sha256sum -c` reads it.

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
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _fsync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def checkpoint_path(folder: Path, step: int) -> Path:
    """The checkpoint of a step, by which they are in order: step=00000300.ckpt."""
    return folder / f"step={step:08}.ckpt"


def parse_step(path: Path | str) -> int:
    """The step that a resumable checkpoint was written at."""
    return int(_STEP.fullmatch(Path(path).name)[1])  # type: ignore[index]


def find_newest(folder: Path) -> Path | None:
    """Find the newest checkpoint that is whole; those that are not are set aside.

    Args:
        folder: That of resumable checkpoints; it need not be there.
    """
    for path in _newest_first(folder):
        why = _find_damage(path)
        if not why:
            return path
        rank_zero_warn(
            f"the checkpoint {path} is damaged ({why}) and now called {path.name}.damaged; "
            "going on from the one before"
        )
        _quarantine(path)
    return None


def _quarantine(path: Path) -> None:
    """Rename a checkpoint that is not whole, and its hash."""
    for each in (path, _digest_path(path)):
        if each.exists():
            each.replace(f"{each}.damaged")


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the newest checkpoints, and what a kill has left half written."""
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
    """What is wrong with a checkpoint, nothing if it is whole."""
    try:
        expected = _digest_path(path).read_text().split(" ")[0]
    except (OSError, UnicodeDecodeError):
        return "its .sha256 is missing"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == expected else "its content is not what was written"


class BestCheckpoint(ModelCheckpoint):
    """Keep the best checkpoint, or the last where nothing called `monitor` is logged.

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
        with pause_heartbeat(
            WRITE_SECONDS
        ):  # here and not where it is written, as all processes wait for it
            super()._save_checkpoint(trainer, filepath)

    def _check_monitor(self, trainer: pl.Trainer) -> None:
        logged = sorted(trainer.callback_metrics)
        if self.monitor is not None and self.monitor not in logged and not trainer.sanity_checking:
            rank_zero_warn(
                f"no metric is called {self.monitor!r}, so the last checkpoint is kept instead of "
                f"the best; --checkpoint.monitor takes one of {', '.join(logged) or 'none'}"
            )
            self.monitor = None
