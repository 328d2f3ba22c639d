"""Lightning's Trainer with the commands `train` and `prepare`, and checks of the launch."""

import inspect
import os
import sys
from collections.abc import Iterable
from functools import wraps
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar, TQDMProgressBar
from lightning.pytorch.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.data.loaders import ImageDataModule
from pyclassify.training.exact_resume import ResumableEpochLoop, Resume
from pyclassify.training.prediction_writer import PredictionWriter
from pyclassify.training.progress import ModelSummaryLine, Progress
from pyclassify.utils.launch_check import (
    Launch,
    check_launch,
    count_devices,
    detect_launch,
    refuse_strategy,
)
from pyclassify.utils.launcher import choose_slurm_port
from pyclassify.utils.options import UsageError
from pyclassify.utils.signals import raise_on_stop


class Trainer(pl.Trainer):
    """Lightning's Trainer with two more methods: `train` (fit, then test) and `prepare` (download).

    It takes the arguments of lightning.pytorch.Trainer, with their defaults. With the callback
    `Resume` it can stop and resume between any two optimizer steps. Its default progress bar is
    `Progress`, and its default model summary `ModelSummaryLine`. In a SLURM job, requeueing is
    left to the batch script: unless a cluster environment is given, it is
    SLURMEnvironment(auto_requeue=False).

    Example:
        >>> from pyclassify import AlexNetBN, Classifier, SyntheticDataModule, Trainer, WhitenStem
        >>> trainer = Trainer(max_epochs=2, callbacks=[WhitenStem()])
        >>> trainer.train(Classifier(AlexNetBN), SyntheticDataModule(batch_size=16))
        >>> "test_accuracy" in trainer.callback_metrics
        True
    """

    # The command line reads its options from this signature.
    @wraps(pl.Trainer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = [*inspect.signature(pl.Trainer.__init__).parameters][1:]
        kwargs.update(zip(names, args, strict=False))  # Lightning takes positional arguments too
        plugins = kwargs.get("plugins") or []
        plugins = [*plugins] if isinstance(plugins, Iterable) else [plugins]
        environment = getattr(kwargs.get("strategy"), "cluster_environment", None)
        if not any(isinstance(plugin, ClusterEnvironment) for plugin in (*plugins, environment)):
            kwargs["plugins"] = [*plugins, *_list_slurm_environment()]
        super().__init__(**_set_display_callbacks(kwargs))

    tests_after_fit = False
    reads_weights_only: bool | None = None
    starts_from: str | None = None  # the checkpoint that `fit` was given

    @property
    def resumes_training(self) -> bool:
        """Whether this training resumes from a checkpoint, given by `ckpt_path` or by `Resume`."""
        callbacks: list[Any] = self.callbacks  # type: ignore[attr-defined]
        found = any(isinstance(callback, Resume) and callback.newest for callback in callbacks)
        # With "last" and no such checkpoint, Lightning starts from the beginning.
        return found or self.starts_from not in (None, "last")

    def train(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train a network, then test the best checkpoint.

        Args:
            model: The network's LightningModule.
            datamodule: The data module, with training, validation and test images.
            ckpt_path: Resume the training from this checkpoint file.
            weights_only: Load only tensors and plain values from checkpoints.
        """
        self.tests_after_fit = True
        try:
            self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only)
            best = "best" if getattr(self.checkpoint_callback, "best_model_path", "") else None
            self.test(model, datamodule=datamodule, ckpt_path=best, weights_only=weights_only)
        finally:
            self.tests_after_fit = False  # callbacks of a later `fit` would wait for a test

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train a network and save the best checkpoint."""
        self.reads_weights_only = kwargs.get("weights_only")
        self.starts_from = kwargs.get("ckpt_path")
        before = self.fit_loop.epoch_loop
        if not isinstance(before, ResumableEpochLoop):
            self.fit_loop.epoch_loop = ResumableEpochLoop(self, before.min_steps, before.max_steps)
        super().fit(*args, **kwargs)

    def validate(
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: Any = None,
        verbose: bool = False,
        datamodule: pl.LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Evaluate a trained network on the validation images.

        Args:
            ckpt_path: Load the weights from this checkpoint file, or from the best checkpoint of
                the run with this ID.
            verbose: Also print Lightning's table of the metrics.
            weights_only: Load only tensors and plain values from a checkpoint.
        """
        return super().validate(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def test(
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: Any = None,
        verbose: bool = False,
        datamodule: pl.LightningDataModule | None = None,
        weights_only: bool | None = None,
    ) -> Any:
        """Evaluate a trained network on the test images.

        Args:
            ckpt_path: Load the weights from this checkpoint file, or from the best checkpoint of
                the run with this ID.
            verbose: Also print Lightning's table of the metrics.
            weights_only: Load only tensors and plain values from a checkpoint.
        """
        return super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

    def predict(  # type: ignore[override]
        self,
        model: pl.LightningModule | None = None,
        dataloaders: Any = None,
        datamodule: pl.LightningDataModule | None = None,
        return_predictions: bool | None = False,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        output: str | None = "predictions.parquet",
    ) -> Any:
        """Classify the images of a folder, or the test images, and write the predictions to a file.

        Args:
            model: The network's LightningModule.
            dataloaders: Data loaders, in place of a data module.
            datamodule: The data module.
            return_predictions: Return the predictions of all batches too.
            ckpt_path: Load the weights from this checkpoint file, from the best checkpoint of the
                run with this ID, or from a registered model: models:/NAME@ALIAS or
                models:/NAME/VERSION.
            weights_only: Load only tensors and plain values from a checkpoint.
            output: Write a table to this new file, which ends in .parquet or .csv, with one row an
                image (file, label, probability); null writes none.

        Raises:
            MisconfigurationException: output has another ending or exists, or its folder is
                missing.
        """
        if output is not None:
            self.callbacks.append(PredictionWriter(output))  # type: ignore[attr-defined]
        return super().predict(
            model, dataloaders, datamodule, return_predictions, ckpt_path, weights_only
        )

    def prepare(
        self,
        model: pl.LightningModule,
        datamodule: pl.LightningDataModule | None = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Download data and weights, check every image file and write a report; do not train.

        Args:
            model: The LightningModule, whose `prepare_data` downloads weights.
            datamodule: The data module, whose data is downloaded and checked.
            ckpt_path: Not used; accepted so that every command takes the same configuration.
            weights_only: Not used; accepted so that every command takes the same configuration.
        """
        model.prepare_data()
        if isinstance(datamodule, ImageDataModule):
            datamodule.check_files()  # first: caching would stop at the first damaged image
        if datamodule is not None:
            datamodule.prepare_data()
            for stage in ("fit", "test"):
                datamodule.setup(stage)


# Lightning declares `int | float`, but typing may return a cached `float | int` of another library.
# `--trainer.limit_val_batches=1` would then be 1.0: all batches instead of one.
for _limited in ("train", "val", "test", "predict"):
    pl.Trainer.__init__.__annotations__[f"limit_{_limited}_batches"] = int | float | None


def _register_strategies() -> None:
    """Set gradient_as_bucket_view for ddp, so that gradients are not copied at each step."""
    for name, entry in list(StrategyRegistry.items()):
        if entry["strategy"] is DDPStrategy:
            options = {**entry["init_params"], "gradient_as_bucket_view": True}
            StrategyRegistry.register(
                name, DDPStrategy, entry["description"], override=True, **options
            )


_register_strategies()


class LaunchCheck(Callback):
    """Check at the start what would fail later, and replace Lightning's signal handlers.

    Args:
        run_id: The id of the run that this process was started for, if any.
    """

    def __init__(self, run_id: str | None = None) -> None:
        self._run_id = run_id

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if world != trainer.num_devices * trainer.num_nodes:
            raise MisconfigurationException(
                f"invalid number of launched processes: {world} (expected {trainer.num_devices} x "
                f"{trainer.num_nodes}, devices x num_nodes); in a SLURM job, request one task per "
                "device and start them by srun; otherwise change --devices and --num_nodes"
            )
        self._check_run(trainer, world)
        if stage == "fit" and getattr(trainer, "tests_after_fit", False):
            data = getattr(trainer, "datamodule", None)
            # Missing test images would otherwise be an error after the last epoch. Data modules of
            # users are left alone: they may support one stage at a time.
            if isinstance(data, ImageDataModule):
                data.setup("test")

    def _check_run(self, trainer: pl.Trainer, world: int) -> None:
        """Check that all processes of this training were started for the same run."""
        if world == 1:
            return
        run_ids: list[str | None] = [None] * world
        torch.distributed.all_gather_object(run_ids, self._run_id)
        count = len({run_id for run_id in run_ids if run_id is not None})
        if count > 1:
            raise MisconfigurationException(
                f"the {world} processes of this training were started by {count} `mlflow run` "
                "commands, and each created a run; let the launcher start `python -m pyclassify "
                f"train ... --devices {trainer.num_devices} --num_nodes {trainer.num_nodes}` "
                "instead of `mlflow run`"
            )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End the line of Lightning's progress bar, so that the error starts on a new line."""
        if trainer.is_global_zero and isinstance(trainer.progress_bar_callback, TQDMProgressBar):
            sys.stdout.write("\n")

    # Lightning's SIGTERM handler broadcasts, which in two processes can wait forever.
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise_on_stop()

    on_train_start = on_validation_start = on_test_start = on_sanity_check_start
    on_predict_start = on_sanity_check_start


def _set_display_callbacks(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Set the Trainer's progress display and model summary where no others were given.

    Args:
        kwargs: The arguments of Lightning's Trainer.
    """
    callbacks = kwargs.get("callbacks") or []
    callbacks = [callbacks] if isinstance(callbacks, Callback) else [*callbacks]
    defaults = {
        "enable_progress_bar": (ProgressBar, Progress),
        "enable_model_summary": (ModelSummary, ModelSummaryLine),
    }
    for option, (base, default) in defaults.items():
        is_off = kwargs.get(option) is False or kwargs.get("barebones")
        if not is_off and not any(isinstance(callback, base) for callback in callbacks):
            callbacks.append(default())
    if any(isinstance(callback, ModelSummary) for callback in callbacks):
        kwargs = {**kwargs, "enable_model_summary": False}  # Lightning would announce it
    return {**kwargs, "callbacks": callbacks}


def check_processes(trainer: pl.Trainer, devices: Any, num_nodes: int) -> None:
    """Check that a Trainer will use the requested number of processes, as one run.

    Args:
        trainer: The Trainer, before it starts processes.
        devices: The option `devices`, a number or a list; `auto` and -1 are not checked.
        num_nodes: The option `num_nodes`.

    Raises:
        UsageError: The strategy uses another number of processes.
        ValueError: The launcher of this process has started another number of processes.
    """
    strategy = trainer.strategy
    name = getattr(strategy, "strategy_name", type(strategy).__name__)
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        refuse_strategy(name)
    requested = count_devices(devices) or trainer.num_devices
    if (requested, num_nodes) != (trainer.num_devices, trainer.num_nodes):
        raise UsageError(
            f"strategy {name} trains in {trainer.num_devices} x {trainer.num_nodes} processes, but "
            f"devices x num_nodes is {requested} x {num_nodes}; leave out --trainer.strategy"
        )
    environment = getattr(strategy, "cluster_environment", None)
    known = (type(None), LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment)
    check_launch(trainer.num_devices, trainer.num_nodes, not isinstance(environment, known))


def _list_slurm_environment() -> list[ClusterEnvironment]:
    """List the cluster environment of a SLURM job, where Lightning would choose a wrong one.

    Lightning decides by the job's name: each task of an srun named `bash` or `interactive` would
    start all processes of a run. And it would take a shell of salloc for a task.
    """
    launch = detect_launch()
    if launch is not None and launch.launcher in ("srun", "sbatch"):
        if launch.world_size > 1:
            _export_slurm_step(launch)
        # Lightning's auto_requeue would save a checkpoint in the middle of a step, and any later
        # job in this folder would resume from it.
        return [SLURMEnvironment(auto_requeue=False)]
    return [LightningEnvironment()] if launch is None and "SLURM_NTASKS" in os.environ else []


def _export_slurm_step(launch: Launch) -> None:
    """Set the environment variables that Lightning reads to the values of the SLURM step."""
    os.environ["SLURM_NTASKS_PER_NODE"] = str(launch.processes)
    if launch.nodes == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    elif nodes := os.environ.get("SLURM_STEP_NODELIST"):
        os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    if "SLURM_JOB_ID" in os.environ:
        os.environ.setdefault("MASTER_PORT", str(choose_slurm_port()))
