"""Which checkpoint of a training is kept as the best."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pyclassify.training.checkpoints import WRITE_SECONDS
from pyclassify.utils.signals import busy


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
        with busy(WRITE_SECONDS):  # here and not where it is written, as all processes wait for it
            super()._save_checkpoint(trainer, filepath)

    def _check_monitor(self, trainer: pl.Trainer) -> None:
        logged = sorted(trainer.callback_metrics)
        if self.monitor is not None and self.monitor not in logged and not trainer.sanity_checking:
            rank_zero_warn(
                f"no metric is called {self.monitor!r}, so the last checkpoint is kept instead of "
                f"the best; --checkpoint.monitor takes one of {', '.join(logged) or 'none'}"
            )
            self.monitor = None
