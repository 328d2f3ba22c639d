"""A network that was trained and tested becomes a version of a registered model by itself."""

from typing import TYPE_CHECKING, Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pyclassify.registry.champion import judge
from pyclassify.registry.delivered import make_version
from pyclassify.registry.gate import check_bounds
from pyclassify.registry.keeping import keep
from pyclassify.registry.versions import find_version, source_of
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.tracking.predictions import KeepPredictions
from pyclassify.tracking.run import attempt

if TYPE_CHECKING:
    from pyclassify.tracking.prediction_table import Answers

WAIT_SECONDS = 60.0  # for the model's files to arrive; later ones are registered as they do


class RegisterModel(Callback):
    """Keep the network that was trained and tested as a model in the run, and register it.

    Args:
        name: The registered model that gets a version; none is registered without it.
        min_accuracy: The test accuracy that a model's first version needs to become champion.
        alpha: A later version becomes champion where it is more accurate on the same images and
            McNemar's exact test says so with a p-value below this.
        judge_by: The images that champion and challenger are compared by: test, or val.

    Attributes:
        told: What became of the last model, for the end of the training; empty before.
    """

    told = ""
    version: str | None = None

    def __init__(
        self,
        name: str | None = None,
        min_accuracy: float = 0.0,
        alpha: float = 0.05,
        judge_by: Literal["test", "val"] = "test",
    ) -> None:
        if name is not None and (not name.strip() or set(name) & set("/:")):
            raise MisconfigurationException(
                f"the registered model's name is {name!r}; it takes a text without / and :"
            )
        try:
            check_bounds(alpha, min_accuracy)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        self.name, self.min_accuracy, self.alpha = name, min_accuracy, alpha
        self.judge_by = judge_by

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Once all callbacks have told of the test what they have to: the judge reads that."""
        logger = find_run_logger(trainer)
        trained = stage == "test" and getattr(trainer, "tests_after_fit", False)
        if self.name is None or logger is None or not trained or not trainer.is_global_zero:
            return
        self.version, self.told = None, ""
        kept = attempt("the model", keep, logger, trainer, pl_module)
        if kept is not None:
            attempt("the version", self._register, logger, self.name, kept)
        if self.version is not None:
            attempt("the decision", self._judge, logger, self.name, trainer)

    def _register(self, logger: RunLogger, name: str, kept: dict[str, Any]) -> None:
        """Ask for the version, and say which it is or what becomes of it without the registry."""
        written, delivery = logger.written, logger.written.delivery
        bounds = {"min_accuracy": self.min_accuracy, "alpha": self.alpha}
        record = {"kind": "version", "name": name, "judge_by": self.judge_by, **bounds}
        if delivery is not None:
            delivery.make_version = make_version
        written.append({**record, **kept})
        if delivery is None or not delivery.ask(WAIT_SECONDS):
            why = (delivery and delivery.trouble) or "its files are on their way"
            rank_zero_warn(
                f"the model is in the run, and not yet registered as {name!r} ({why}); it will be "
                f"when all has arrived, by `pyclassify sync {written.folder}` if not before"
            )
            return
        client, path = written.server(), kept["path"]
        source = source_of(client.get_run(written.server_id), path)
        self.version = find_version(client, written.server_id, name, source)
        if self.version is not None:
            self.told = f"{name} version {self.version}"
            return
        how = f"import mlflow; mlflow.register_model('runs:/{written.server_id}/{path}', '{name}')"
        rank_zero_warn(  # the registry refused, and the delivery has told its words
            f'the model is in the run, but not registered; once that is mended: python -c "{how}"'
        )

    def _judge(self, logger: RunLogger, name: str, trainer: Trainer) -> None:
        """Compare it with the champion by what this process has of the images, where need be."""
        from pyclassify.registry.judgement import answer

        client = logger.written.server()
        data: Any = getattr(trainer, "datamodule", None)
        callbacks: list[Callback] = getattr(trainer, "callbacks", [])
        kept = next((each.kept for each in callbacks if isinstance(each, KeepPredictions)), None)

        def evaluate(version: str) -> "Answers":
            tested = {*kept.places.tolist()} if kept and self.judge_by == "test" else None
            return answer(client, name, version, getattr(data, self.judge_by), data.classes, tested)

        decision = judge(
            client,
            name,
            str(self.version),
            evaluate=evaluate,
            afresh=self.judge_by != "test",
            alpha=self.alpha,
            min_accuracy=self.min_accuracy,
        )
        self.told = decision.text
