"""Lightning's Trainer with the commands of this project."""

import inspect
import os
import sys
from collections.abc import Iterable
from functools import wraps
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
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
from pyclassify.utils.launch_check import (
    Launch,
    check_launch,
    count_devices,
    detect_launch,
    refuse_strategy,
)
from pyclassify.utils.launcher import choose_slurm_port
from pyclassify.utils.signals import raise_on_stop


class Trainer(pl.Trainer):
    """Lightning's Trainer and two more commands; a command's docstring is its help.

    In a SLURM job requeueing is left to the job's script: SLURMEnvironment has auto_requeue=False
    where no other environment is given.

    Example:
        >>> trainer = Trainer(max_epochs=10, devices=2)
        >>> trainer.train(Classifier(AlexNet), CIFAR10DataModule())
    """

    # The command line reads its options from this signature.
    @wraps(pl.Trainer.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = [*inspect.signature(pl.Trainer.__init__).parameters][1:]
        kwargs.update(zip(names, args, strict=False))  # as Lightning's own wrapper takes them
        plugins = kwargs.get("plugins") or []
        plugins = [*plugins] if isinstance(plugins, Iterable) else [plugins]
        environment = getattr(kwargs.get("strategy"), "cluster_environment", None)
        if not any(isinstance(each, ClusterEnvironment) for each in (*plugins, environment)):
            kwargs["plugins"] = [*plugins, *_list_slurm_environment()]
        super().__init__(**kwargs)

    tests_after_fit = False
    reads_weights_only: bool | None = None
    starts_from: str | None = None  # the checkpoint that `fit` was given

    @property
    def resumes_training(self) -> bool:
        """Whether the training that is being set up resumes from a checkpoint, given or found."""
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
        """Fit, then test with the best checkpoint.

        Args:
            ckpt_path: A checkpoint to go on from.
            weights_only: Whether to read nothing but tensors and plain values out of checkpoints.
        """
        self.tests_after_fit = True
        self.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=weights_only)
        best = "best" if getattr(self.checkpoint_callback, "best_model_path", "") else None
        self.test(model, datamodule=datamodule, ckpt_path=best, weights_only=weights_only)

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """Train, and keep the best checkpoint."""
        self.reads_weights_only = kwargs.get("weights_only")
        self.starts_from = kwargs.get("ckpt_path")
        before = self.fit_loop.epoch_loop
        if not isinstance(before, ResumableEpochLoop):
            self.fit_loop.epoch_loop = ResumableEpochLoop(self, before.min_steps, before.max_steps)
        super().fit(*args, **kwargs)

    def validate(self, *args: Any, **kwargs: Any) -> Any:
        """Score a trained network on the validation images."""
        return super().validate(*args, **kwargs)

    def test(self, *args: Any, **kwargs: Any) -> Any:
        """Score a trained network on the test images."""
        return super().test(*args, **kwargs)

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
        """Classify the images of a folder, or the test images, and write a table of the answers.

        Args:
            ckpt_path: A checkpoint file, the id of a run that kept its best weights, or a
                registered model: models:/NAME@ALIAS or models:/NAME/VERSION.
            weights_only: Whether to read nothing but tensors and plain values out of a checkpoint.
            output: The table, a file that ends in .parquet or .csv, with a row an image: file,
                label, probability; null for none.
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
        """Download data and weights, look at every image file, report what there is; train nothing.

        Args:
            ckpt_path: Not used, as the next; here so that one configuration serves every command.
            weights_only: Not used.
        """
        model.prepare_data()
        if isinstance(datamodule, ImageDataModule):
            datamodule.check_files()  # first: what caches images would stop at one that is damaged
        if datamodule is not None:
            datamodule.prepare_data()
            for stage in ("fit", "test"):
                datamodule.setup(stage)


# Lightning means `int | float`, but typing may hand out a `float | int` that some other library has
# made before, and `--trainer.limit_val_batches=1` would be 1.0: all batches instead of one.
for _limited in ("train", "val", "test", "predict"):
    pl.Trainer.__init__.__annotations__[f"limit_{_limited}_batches"] = int | float | None


def _register_strategies() -> None:
    """Have ddp's gradients stay in the buckets that are sent, and not be copied at each step."""
    for name, entry in list(StrategyRegistry.items()):
        if entry["strategy"] is DDPStrategy:
            options = {**entry["init_params"], "gradient_as_bucket_view": True}
            StrategyRegistry.register(
                name, DDPStrategy, entry["description"], override=True, **options
            )


_register_strategies()


class LaunchCheck(Callback):
    """Refuse at the start what would fail later, and keep stop signals ours.

    Args:
        run_id: The id of the run that this process was started for, if any.
    """

    def __init__(self, run_id: str | None = None) -> None:
        self._run_id = run_id

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        if world != trainer.num_devices * trainer.num_nodes:
            raise MisconfigurationException(
                f"{world} of {trainer.num_devices} x {trainer.num_nodes} processes (devices x "
                "num_nodes) were launched; in a SLURM job ask for one task a device and start "
                "them by srun, else give --devices and --num_nodes as they are"
            )
        self._check_run(trainer, world)
        if stage == "fit" and getattr(trainer, "tests_after_fit", False):
            data = getattr(trainer, "datamodule", None)
            # That test images are missing is better known now than after the last epoch; a data
            # module of another's may hold but one stage's data.
            if isinstance(data, ImageDataModule):
                data.setup("test")

    def _check_run(self, trainer: pl.Trainer, world: int) -> None:
        """Refuse processes of one training that were started for several runs."""
        if world == 1:
            return
        run_ids: list[str | None] = [None] * world
        torch.distributed.all_gather_object(run_ids, self._run_id)
        count = len({run_id for run_id in run_ids if run_id is not None})
        if count > 1:
            raise MisconfigurationException(
                f"the {world} processes of this training were started by {count} `mlflow run`, "
                "each of which made a run; have the launcher start `python -m pyclassify train "
                f"... --devices {trainer.num_devices} --num_nodes {trainer.num_nodes}` in place of "
                "`mlflow run`"
            )

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End the progress bar's line, so that the error has one of its own."""
        if trainer.is_global_zero and trainer.progress_bar_callback is not None:
            sys.stdout.write("\n")

    # Lightning sets a SIGTERM handler that broadcasts: in two processes it can wait for ever.
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        raise_on_stop()

    on_train_start = on_validation_start = on_test_start = on_sanity_check_start
    on_predict_start = on_sanity_check_start


def check_processes(trainer: pl.Trainer, devices: Any, num_nodes: int) -> None:
    """Check that a Trainer will train in as many processes as were asked for, as one run.

    Args:
        trainer: The Trainer, before it starts processes.
        devices: The option `devices`, a number or a list; nothing is checked of `auto` and -1.
        num_nodes: The option `num_nodes`.

    Raises:
        ValueError: Its strategy or the launcher of this process makes another number of them.
    """
    strategy = trainer.strategy
    name = getattr(strategy, "strategy_name", type(strategy).__name__)
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        refuse_strategy(name)
    asked = count_devices(devices) or trainer.num_devices
    if (asked, num_nodes) != (trainer.num_devices, trainer.num_nodes):
        raise ValueError(
            f"strategy {name} trains in {trainer.num_devices} x {trainer.num_nodes} processes, and "
            f"{asked} x {num_nodes} (devices x num_nodes) are asked for; leave --trainer.strategy "
            "out"
        )
    environment = getattr(strategy, "cluster_environment", None)
    known = (type(None), LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment)
    check_launch(trainer.num_devices, trainer.num_nodes, not isinstance(environment, known))


def _list_slurm_environment() -> list[ClusterEnvironment]:
    """List the environment for a SLURM job, if Lightning would choose none or another by itself.

    Lightning goes by the job's name: tasks of srun that are called `bash` or `interactive` would
    each start the processes of a run, and a shell of salloc has no variables of a task.
    """
    launch = detect_launch()
    if launch is not None and launch.launcher in ("srun", "sbatch"):
        if launch.world_size > 1:
            _export_slurm_step(launch)
        # Lightning's own requeue would save a checkpoint in the middle of a step, which any later
        # job in this folder would resume from.
        return [SLURMEnvironment(auto_requeue=False)]
    return [LightningEnvironment()] if launch is None and "SLURM_NTASKS" in os.environ else []


def _export_slurm_step(launch: Launch) -> None:
    """Set the variables that Lightning reads to those of the step, in place of the job's."""
    os.environ["SLURM_NTASKS_PER_NODE"] = str(launch.processes)
    if launch.nodes == 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    elif nodes := os.environ.get("SLURM_STEP_NODELIST"):
        os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    if "SLURM_JOB_ID" in os.environ:
        os.environ.setdefault("MASTER_PORT", str(choose_slurm_port()))
