"""Log the trained network as an MLflow model of its run (a LoggedModel), one for each training."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from pyclassify.spool.records import MODEL_NAME
from pyclassify.tracking.description import describe_model
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.prediction_table import find_test_data
from pyclassify.tracking.run import warn_on_error

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Metric, Run

_MODEL_TYPE = "image-classifier"


class ModelLogger(Callback):
    """Log the trained network, with its preprocessing, as an MLflow model of its run.

    After `Trainer.train` the model has the weights that were tested, and the test metrics are
    linked to it. After `fit` alone it has the best weights, or the last ones if no checkpoint was
    saved. A training that is continued logs a second model with a higher step. An export that
    fails, also on a full disk, costs a warning: the model is FAILED, the run is not, and the best
    weights are logged as without a model.

    The trainer needs a `RunLogger`, and the data module or the LightningModule a `preprocess`;
    otherwise no model is logged.

    Attributes:
        model_id: The model's ID in the run's spool; None if none is logged.

    Example:
        >>> from pyclassify import AlexNetBN, Classifier, RunLogger, SyntheticDataModule, Trainer
        >>> from pyclassify.tracking.logged_model import ModelLogger
        >>> callback = ModelLogger()
        >>> trainer = Trainer(max_epochs=1, logger=RunLogger(), callbacks=[callback])
        >>> trainer.train(Classifier(AlexNetBN), SyntheticDataModule(batch_size=16))
        >>> callback.model_id.startswith("m-")
        True
    """

    model_id: str | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have the logger leave the weights to the model, if there will be one."""
        logger = find_run_logger(trainer)
        if stage == "fit" and logger is not None and self.will_log(trainer):
            logger.awaits_model = find_preprocess(trainer, pl_module) is not None

    def will_log(self, trainer: Trainer) -> bool:
        """Whether this callback logs a model at the end of the training."""
        return True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that this process trains, so that a model of the same step has other weights."""
        logger = find_run_logger(trainer)
        if logger is not None:
            logger.has_trained = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the model after the last stage of the training."""
        logger = find_run_logger(trainer)
        if logger is None or not is_last_stage(trainer, stage) or not trainer.is_global_zero:
            return
        self.model_id, logger.awaits_model = None, False
        if find_preprocess(trainer, pl_module) is None:
            rank_zero_info(f"no model is logged: {_NO_PREPROCESS}")
            return
        # Without a model, the logger uploads the best weights afterwards, if there are any.
        has_best = bool(getattr(trainer.checkpoint_callback, "best_model_path", ""))
        self.model_id = warn_on_error(
            "log the model", log_model, logger, trainer, pl_module, has_fallback=has_best
        )
        if self.model_id is not None:
            client, run_id = logger.experiment, str(logger.run_id)
            warn_on_error("write the description", describe_model, client, run_id)


_NO_PREPROCESS = (
    "neither the data module nor the LightningModule has an attribute `preprocess`, the module "
    "that converts uint8 images to the network's input; add it to one of them"
)


def find_preprocess(trainer: Trainer, network: LightningModule) -> nn.Module | None:
    """Find the module that converts uint8 images to the network's input; None without one."""
    data = getattr(trainer, "datamodule", None)
    return getattr(data, "preprocess", None) or getattr(network, "preprocess", None)


def is_last_stage(trainer: Trainer, stage: str) -> bool:
    """Whether a stage is the last one of a training: the test of `train`, or `fit` alone."""
    return stage == ("test" if getattr(trainer, "tests_after_fit", False) else "fit")


def log_model(logger: RunLogger, trainer: Trainer, network: LightningModule) -> str:
    """Log a network with its preprocessing as a model of the run.

    Args:
        logger: The logger of the run.
        trainer: The trainer that trained the network.
        network: The network.

    Returns:
        The model's ID in the run's spool. If this process has not trained, as after an interrupted
        test, it is the one of the same training step, if there is one.

    Raises:
        MisconfigurationException: Neither data module nor LightningModule has a `preprocess`.
        Exception: The network can't be exported; torch raises various types. The model is FAILED.
    """
    from mlflow.entities import LoggedModelStatus

    logger.model_id = None  # an earlier model has other weights, if this one fails
    preprocess = find_preprocess(trainer, network)
    if preprocess is None:
        raise MisconfigurationException(_NO_PREPROCESS)
    client, run = logger.experiment, logger.spooled_run.get_run()
    if not logger.has_trained:  # this process repeats the test of a finished training
        logger.model_id = _find_logged(logger, run, trainer.global_step)
    if logger.model_id is not None:
        return logger.model_id
    facts = _collect_facts(trainer, run, preprocess)
    model = client.create_logged_model(
        str(run.info.experiment_id),
        name=MODEL_NAME,
        source_run_id=str(logger.run_id),
        tags={key: str(value) for key, value in facts.items() if value is not None},
        params=run.data.params,
        model_type=_MODEL_TYPE,
    )
    status = LoggedModelStatus.FAILED
    try:
        with _best_weights(trainer, network):
            _log_files(logger, model, network, preprocess, trainer)
        _link_to_run(logger, run, model.model_id, trainer.global_step)
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(model.model_id, status)
    logger.model_id = model.model_id
    return model.model_id


def _find_logged(logger: RunLogger, run: "Run", step: int) -> str | None:
    """Find the READY model of a training step; None without one."""
    from mlflow.exceptions import MlflowException

    # A run that was resumed on another machine has models that only the server knows.
    clients = (logger.experiment, logger.spooled_run.get_server_client())
    for output in run.outputs.model_outputs if run.outputs else []:
        for client in clients if output.step == step else ():
            with suppress(MlflowException):
                model = client.get_logged_model(output.model_id)
                if (model.name, model.status) == (MODEL_NAME, "READY"):
                    return str(output.model_id)
    return None


def _collect_facts(trainer: Trainer, run: "Run", preprocess: nn.Module) -> dict[str, Any]:
    """Collect what a list of models shows of each one: its input, result, data and code."""
    accuracy = trainer.callback_metrics.get("test_accuracy")
    data = find_test_data(run)
    return {
        "input_size": getattr(preprocess, "crop", None),
        "test_accuracy": None if accuracy is None else round(float(accuracy), 6),
        "test_data": data and f"{data.dataset.name} {data.dataset.digest}",
        "git_commit": run.data.tags.get("mlflow.source.git.commit"),
    }


@contextmanager
def _best_weights(trainer: Trainer, network: LightningModule) -> Iterator[None]:
    """Load the best checkpoint within this context, after a `fit` that no test has followed."""
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    if trainer.state.fn != TrainerFn.FITTING or not path:
        yield
        return
    last = {name: value.detach().clone() for name, value in network.state_dict().items()}
    # This process wrote the file, and callbacks may have saved any object in it.
    checkpoint = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    network.load_state_dict(checkpoint["state_dict"])
    try:
        yield
    finally:
        network.load_state_dict(last)


def _log_files(
    logger: RunLogger,
    model: "LoggedModel",
    network: LightningModule,
    preprocess: nn.Module,
    trainer: Trainer,
) -> None:
    from mlflow.models import Model

    from pyclassify.serving.artifact import save_model

    classes = getattr(getattr(trainer, "datamodule", None), "classes", ())
    origin = Model(
        artifact_path=model.artifact_location,
        run_id=logger.run_id,
        model_uuid=model.model_id,
        model_id=model.model_id,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, MODEL_NAME)
        names = save_model(folder, network, preprocess, classes, origin=origin)
        logger.experiment.log_model_artifacts(model.model_id, str(folder))
    logger.experiment.set_logged_model_tags(model.model_id, {"classes": str(len(names))})


def _link_to_run(logger: RunLogger, run: "Run", model_id: str, step: int) -> None:
    """Name the model among the run's outputs, and link the test metrics to it."""
    from mlflow.entities import LoggedModelOutput

    client, run_id = logger.experiment, str(logger.run_id)
    client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])
    metrics = [_link_metric(metric, run, model_id) for metric in _list_test_metrics(run)]
    if metrics:
        client.log_batch(run_id, metrics=metrics)


def _list_test_metrics(run: "Run") -> "list[Metric]":
    return [metric for metric in run.data._metric_objs if metric.key.startswith("test_")]


def _link_metric(metric: "Metric", run: "Run", model_id: str) -> "Metric":
    from mlflow.entities import Metric

    data = find_test_data(run)
    name, digest = (data.dataset.name, data.dataset.digest) if data else (None, None)
    point = (metric.key, metric.value, metric.timestamp, metric.step)
    return Metric(*point, model_id, name, digest, run.info.run_id)
