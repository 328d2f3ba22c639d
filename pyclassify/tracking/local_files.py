"""Reduce the local files of a finished run: its checkpoints take several times the weights.

While a run trains, it has its best checkpoint and the newest resumable ones, each with the state of
the optimizer. Once it is FINISHED, it needs one of them to be trained further, and the weights.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from pyclassify.spool.records import MODEL_NAME
from pyclassify.tracking import run
from pyclassify.tracking.logged_model import is_last_stage
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.run import warn_on_error
from pyclassify.training import checkpoints
from pyclassify.training.exact_resume import Resume

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel


class CheckpointCleaner(Callback):
    """Remove the checkpoints that a FINISHED run does not need any more.

    Of the resumable checkpoints, the newest `Resume.keep_after` stay. The best checkpoint is
    removed if the server has a model with its weights; otherwise it stays without the state of the
    optimizer. Those of `save_top_k` and `save_last` stay without this state, too. A run that failed
    or was stopped keeps all that it needs to resume. Only files in the run's own folder are
    removed.

    If a finished run is trained further, the best checkpoint is restored from its model. Place this
    callback after `Resume`, which finds out which checkpoint that was.

    Example:
        >>> from pyclassify import RunLogger, Trainer
        >>> from pyclassify.tracking.local_files import CheckpointCleaner
        >>> trainer = Trainer(callbacks=[CheckpointCleaner()], logger=RunLogger())
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the best checkpoint of a finished run that is trained further."""
        checkpoint, logger = trainer.checkpoint_callback, find_run_logger(trainer)
        if not isinstance(checkpoint, ModelCheckpoint) or logger is None:
            return
        path = trainer.strategy.broadcast(checkpoint.best_model_path)
        if not path or "://" in path or not trainer.strategy.broadcast(not Path(path).exists()):
            return
        is_restored = False
        if trainer.is_global_zero:
            action = "restore the best checkpoint of the run from its model"
            is_restored = warn_on_error(action, _restore_best, logger, Path(path)) is not None
        if not trainer.strategy.broadcast(is_restored):  # the best of the epochs to come
            checkpoint.best_model_path, checkpoint.best_model_score = "", None
            checkpoint.best_k_models = {}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the files removed once the run is FINISHED."""
        logger = find_run_logger(trainer)
        if logger is None or not is_last_stage(trainer, stage) or not trainer.is_global_zero:
            return
        folder = _get_folder(logger)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        resume = next((found for found in callbacks if isinstance(found, Resume)), None)
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        run.call_after_success(
            partial(
                _clean,
                logger,
                folder,
                resume.keep_after if resume else None,
                Path(best) if best and is_in_folder(best, logger) else None,
            )
        )


def is_in_folder(path: str, logger: RunLogger) -> bool:
    """Whether a checkpoint is in the folder of the logger's run, whose files are managed here."""
    return "://" not in path and Path(path).absolute().parent == _get_folder(logger).absolute()


def _get_folder(logger: RunLogger) -> Path:
    return Path(logger.save_dir, str(logger.name), str(logger.version), "checkpoints")


def _clean(
    logger: RunLogger, folder: Path, keep_after: int | None, best: Path | None, uploaded: bool
) -> None:
    if keep_after is not None:
        checkpoints.prune_checkpoints(folder / "resume", keep_after)
    # The paths in ModelCheckpoint are those of the moment when the tested checkpoint was written.
    for path in sorted(folder.glob("*.ckpt")):
        is_own_file = path.is_file() and not path.is_symlink()  # FSDP makes folders
        if is_own_file and path.absolute() != (best and best.absolute()):
            checkpoints.remove_optimizer_state(path)
    if best is None or not best.is_file():
        return
    if uploaded and logger.model_id is not None and _is_ready(logger, logger.model_id):
        best.unlink()
    else:
        checkpoints.remove_optimizer_state(best)


def _is_ready(logger: RunLogger, model_id: str) -> bool:
    """Whether the server has the model with all its files."""
    spooled_run = logger.spooled_run
    if spooled_run.upload_thread is None:  # a later upload by another process may lose a file
        return False
    if not spooled_run.get_server_model_id(model_id):  # a server of MLflow 2 has no models
        return False
    return bool(spooled_run.get_server_model(model_id).status == "READY")


def _list_ready_models(logger: RunLogger) -> "list[tuple[int, LoggedModel]]":
    """List the READY models of the run's trainings, each with its step, except deleted ones."""
    from mlflow.exceptions import MlflowException

    outputs = logger.spooled_run.get_run().outputs
    models = []
    for output in outputs.model_outputs if outputs else []:
        try:
            model = logger.spooled_run.get_server_model(output.model_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            continue
        if (model.name, model.status) == (MODEL_NAME, "READY"):
            models.append((output.step, model))
    return models


def _restore_best(logger: RunLogger, path: Path) -> Path:
    """Write the best checkpoint of a run from the newest model that the run has logged.

    Raises:
        OSError: The run has no model, or the file can't be written.
        mlflow.exceptions.MlflowException: The server does not respond.
    """
    import mlflow

    from pyclassify.serving.export import PROGRAM_FILE, read_checkpoint

    spooled_run = logger.spooled_run
    models = _list_ready_models(logger)
    if not models:
        raise OSError(f"{path} does not exist, and the run has no READY model")
    step, model = max(models, key=lambda found: (found[0], found[1].creation_timestamp))
    with tempfile.TemporaryDirectory() as downloads:
        program = mlflow.artifacts.download_artifacts(
            f"{model.artifact_location}/artifacts/{PROGRAM_FILE}",
            dst_path=downloads,
            tracking_uri=spooled_run.get_server_client().tracking_uri,
        )
        checkpoint = read_checkpoint(program)
        checkpoint["global_step"] = step
        checkpoints.write_checkpoint(checkpoint, path, hashed=False)
    return path
