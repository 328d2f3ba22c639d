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
# The arguments of `Classifier` in a checkpoint, by name, the network as a recipe has it.
CLASSIFIER_KEY = "classifier"
# The items of a checkpoint that an evaluation needs.
_WEIGHTS_KEYS = (
    "state_dict",
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "hparams_name",
    "hyper_parameters",
    CLASSIFIER_KEY,
)
# The items with the state of a training, several times as large as the weights.
_TRAINING_KEYS = (
    "optimizer_states",
    "lr_schedulers",
    "loops",
    "averaging_state",
    "current_model_state",
)
WRITE_SECONDS = 120.0  # the time to write a checkpoint after a stop signal

_pre_save_hook: Callable[[], None] | None = None


def set_pre_save_hook(hook: Callable[[], None]) -> None:
    """Set a function to call before each resumable checkpoint, such as a flush of the run's log.

    A checkpoint must not be ahead of the log, which a resumed run continues.

    Args:
        hook: A function that the writing process calls. If it raises an OSError, no checkpoint is
            written.
    """
    global _pre_save_hook
    _pre_save_hook = hook


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file, whose tensors are read from the disk when they are used.

    Raises:
        OSError: The file can't be read.
        Exception: It is not a checkpoint, or contains Python objects, whose unpickling could run
            code; torch raises various types.
    """
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return found


def find_data_state(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Find the data module's state in a checkpoint: the item with the names of the classes.

    Lightning saves the data module's `state_dict` under the name of its class.

    Returns:
        A dictionary of this one item, or an empty dictionary.
    """
    return {
        key: state
        for key, state in checkpoint.items()
        if isinstance(state, dict) and isinstance(state.get("classes"), list)
    }


def read_data_state(path: str | Path) -> dict[str, Any]:
    """Read the data module's state from a checkpoint file; empty if it has none."""
    return next(iter(find_data_state(read_checkpoint(path)).values()), {})


def extract_weights(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without the state of its training, which is two thirds of it with Adam.

    Args:
        path: A file that this process wrote; callbacks may have saved any object in it.

    Returns:
        The weights, the epoch and step, the hyperparameters and the data module's state.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    kept = {key: checkpoint[key] for key in _WEIGHTS_KEYS if key in checkpoint}
    return {**kept, **find_data_state(checkpoint)}


def remove_optimizer_state(path: Path) -> None:
    """Rewrite a checkpoint without the state of its training, if it has one.

    Raises:
        OSError: The file can't be written; it is unchanged then.
    """
    # Callbacks and modules may have saved items that they need to load the weights.
    checkpoint = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    if not isinstance(checkpoint, dict) or checkpoint.keys().isdisjoint(_TRAINING_KEYS):
        return
    kept = {key: value for key, value in checkpoint.items() if key not in _TRAINING_KEYS}
    write_checkpoint(kept, path, hashed=False)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically: a file has its final name only once it is complete.

    Lightning writes to a temporary folder and moves the file, which is a copy if the folder is on
    another file system. Checkpoints at remote paths (with ://) are written by Lightning.

    Example:
        >>> from pyclassify import Trainer
        >>> from pyclassify.training.checkpoints import AtomicCheckpointIO
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()])
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; one that is named step=N.ckpt gets a .sha256 file too.

        Raises:
            OSError: The file can't be written; a previous file is unchanged.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
        else:
            hashed = _STEP.fullmatch(Path(path).name) is not None
            if hashed and _pre_save_hook is not None:
                _pre_save_hook()
            write_checkpoint(checkpoint, Path(path), hashed)


class _Hashing:
    """A file that hashes the bytes written to it."""

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
        path: The path of the checkpoint.
        hashed: Whether to write its SHA-256 too, to PATH.sha256 in the format of sha256sum.

    Raises:
        OSError: The file can't be written; a previous file is unchanged.
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
            f"the checkpoint {path} is damaged ({damage}); it was renamed to {path.name}.damaged, "
            "and training resumes from the previous checkpoint, if there is one"
        )
        _quarantine(path)
    return None


def _quarantine(path: Path) -> None:
    """Rename a damaged checkpoint and its digest."""
    for file in (path, _digest_path(path)):
        if file.exists():
            file.replace(f"{file}.damaged")


def prune_checkpoints(folder: Path, max_checkpoints: int) -> None:
    """Remove all but the newest checkpoints, and the partial files of killed processes."""
    for path in list(_newest_first(folder))[max_checkpoints:]:
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
    """Compare a checkpoint with its SHA-256, and describe the damage; empty if it is intact."""
    try:
        expected = _digest_path(path).read_text().split(" ")[0]
    except (OSError, UnicodeDecodeError):
        return "its .sha256 is missing"
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if found == expected else "its SHA-256 differs from the one in the .sha256 file"


class BestCheckpoint(ModelCheckpoint):
    """Save the best checkpoint, or the last one if the metric `monitor` is not logged.

    It is Lightning's ModelCheckpoint with other defaults. A run that is started again replaces its
    previous file, where ModelCheckpoint writes best-v1.ckpt beside it.

    Args:
        monitor: Compare checkpoints by this metric, such as val_loss; null saves the last one.
        mode: Choose the highest value of the metric (max) or the lowest (min).
        filename: Name the file FILENAME.ckpt; it may contain metrics, such as {val_accuracy:.3f}.
        enable_version_counter: Add -v1, -v2, ... to the name if the file exists; by default,
            replace the file in the run's folder, and add a version in a given `dirpath`.
        **kwargs: Arguments of lightning.pytorch.callbacks.ModelCheckpoint.

    Example:
        >>> from pyclassify import Trainer
        >>> from pyclassify.training.checkpoints import BestCheckpoint
        >>> trainer = Trainer(callbacks=[BestCheckpoint(monitor="val_loss", mode="min")])
    """

    def __init__(
        self,
        monitor: str | None = "val_accuracy",
        mode: str = "max",
        filename: str | None = "best",
        enable_version_counter: bool | None = None,
        **kwargs: Any,
    ) -> None:
        # In the run's folder, an existing file was written by this run, before it was killed.
        replaces = kwargs.get("dirpath") is None and kwargs.get("save_top_k", 1) == 1
        if enable_version_counter is None:
            enable_version_counter = not replaces
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=filename,
            enable_version_counter=enable_version_counter,
            **kwargs,
        )

    @property
    def state_key(self) -> str:
        return type(self).__qualname__  # ModelCheckpoint's has `monitor`, which may become None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(self._rebase(state_dict))
        self.monitor = state_dict["monitor"]

    def _rebase(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Change the paths of this run's files, if the run resumes in another working directory."""
        before, now = str(state_dict.get("dirpath")), str(self.dirpath)
        if before == now or Path(before).parts[-3:] != Path(now).parts[-3:]:
            return state_dict  # of another run: Lightning ignores its paths
        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: state_dict[name].replace(before, now, 1) for name in names}
        best = {
            path.replace(before, now, 1): score
            for path, score in state_dict["best_k_models"].items()
        }
        return {**state_dict, **moved, "best_k_models": best, "dirpath": now}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check_monitor(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.enable_validation:  # a later validation could still log the metric
            self._check_monitor(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        # Here, because all processes wait while one writes.
        with pause_heartbeat(WRITE_SECONDS):
            super()._save_checkpoint(trainer, filepath)

    def _check_monitor(self, trainer: pl.Trainer) -> None:
        logged = sorted(trainer.callback_metrics)
        if self.monitor is not None and self.monitor not in logged and not trainer.sanity_checking:
            rank_zero_warn(
                f"the metric {self.monitor!r} is not logged, so the last checkpoint is saved "
                "instead of the best; set --checkpoint.monitor to one of the logged metrics: "
                f"{', '.join(logged) or 'none'}"
            )
            self.monitor = None
