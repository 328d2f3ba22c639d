"""Lightning's Trainer with the verbs of this project."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy

from pyclassify.training.prediction_writer import WriteTable
from pyclassify.training.steps import StepLoop


class Trainer(pl.Trainer):
    """Lightning's Trainer and two more verbs; a verb's docstring is its help."""

    tests_after_fit = False
    reads_weights_only: bool | None = None
    starts_from: str | None = None  # the checkpoint that `fit` was given

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
        if not isinstance(before, StepLoop):
            self.fit_loop.epoch_loop = StepLoop(self, before.min_steps, before.max_steps)
        if isinstance(self.strategy, DDPStrategy):
            # Gradients are where they are sent from, and not copied there at each step.
            self.strategy._ddp_kwargs.setdefault("gradient_as_bucket_view", True)
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
            self.callbacks.append(WriteTable(output))  # type: ignore[attr-defined]
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
        """Download the data, or check that it is there, and train nothing.

        Args:
            ckpt_path: Not used, as the next; here so that one configuration serves every verb.
            weights_only: Not used.
        """
        if datamodule is not None:
            datamodule.prepare_data()
            for stage in ("fit", "test"):
                datamodule.setup(stage)


# Lightning means `int | float`, but typing may hand out a `float | int` that some other library has
# made before, and `--trainer.limit_val_batches=1` would be 1.0: all batches instead of one.
for _limited in ("train", "val", "test", "predict"):
    pl.Trainer.__init__.__annotations__[f"limit_{_limited}_batches"] = int | float | None
