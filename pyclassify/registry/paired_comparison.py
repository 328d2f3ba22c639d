"""The comparison of two versions of a registered model by their predictions of the same images.

Predictions are those that the test of each version's run has logged, as predictions.json. Where a
run has none, or those of other images, the version is evaluated by whoever has the images.
"""

from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

from pyclassify.registry.versions import Version
from pyclassify.tracking.capsule import DATA_WARNING_TAG
from pyclassify.utils.text import format_error, shorten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from pyclassify.runs.stats import PairedTest
    from pyclassify.tracking.prediction_table import PredictionsByIndex

_MAX_ERROR_LENGTH = 200  # characters of an error's message in a decision


class EvaluationError(Exception):
    """Why a version can't be compared, in words that continue a sentence after "as"."""


class _TestPredictions(NamedTuple):
    """What a version predicted, and the run that logged it; no run where it was evaluated here."""

    run: "Run | None"
    by_index: "PredictionsByIndex"


class PairedComparison:
    """Compare a challenger with other versions on the challenger's test images.

    Args:
        client: The registry, and the store of the versions' runs.
        challenger: The version that may become champion.
        evaluate: Given the number of a version, returns its predictions of the images that the
            challenger was tested on. Without it only logged predictions count.
        reevaluate: Whether to evaluate both versions even where their runs have predictions: to
            compare them on other images than those of the test.

    Attributes:
        notes: What to keep in mind of a version, by its number.

    Example:
        Two versions, evaluated on two images of which the second version has both right:

        >>> from mlflow import MlflowClient
        >>> first, second = (Version("net", number, "", {}) for number in "12")
        >>> predictions = {
        ...     "1": {0: ("cat", True), 1: ("dog", False)},
        ...     "2": {0: ("cat", True), 1: ("dog", True)},
        ... }
        >>> evaluate = predictions.__getitem__
        >>> comparison = PairedComparison(MlflowClient(), second, evaluate, reevaluate=True)
        >>> comparison.compare_with(first).right
        (1, 2)
    """

    def __init__(
        self,
        client: "MlflowClient",
        challenger: Version,
        evaluate: "Callable[[str], PredictionsByIndex] | None" = None,
        reevaluate: bool = False,
    ) -> None:
        self.client, self.challenger = client, challenger
        self.notes: dict[str, str] = {}
        self._evaluate, self._reevaluate = evaluate, reevaluate
        self._predictions: dict[str, _TestPredictions] = {}

    def check_data(self) -> None:
        """Check that the challenger's training was not warned of its data.

        Raises:
            EvaluationError: It was, so that its test accuracy may say nothing.
        """
        warning = self.challenger.tags.get("data_warning")
        if not warning and self.challenger.run_id:
            with suppress(Exception):  # of a run that is lost, nothing more is known
                run = self.client.get_run(self.challenger.run_id)
                warning = run.data.tags.get(DATA_WARNING_TAG)
        if warning:
            raise EvaluationError(
                f"its training was warned of its data ({shorten(warning, _MAX_ERROR_LENGTH)})"
            )

    def measure_accuracy(self) -> float:
        """Measure the challenger's accuracy on its test images, in [0, 1].

        Its tag `test_accuracy` counts where there are no predictions.

        Raises:
            EvaluationError: There are neither predictions nor a tag.
        """
        try:
            predictions = self._get_predictions(self.challenger).by_index
        except EvaluationError as error:
            with suppress(ValueError):
                accuracy = float(self.challenger.tags.get("test_accuracy", ""))
                if isfinite(accuracy):
                    return accuracy
            raise EvaluationError(
                f"{error}, and no tag test_accuracy tells its accuracy"
            ) from error
        return sum(correct for _, correct in predictions.values()) / len(predictions)

    def compare_with(self, champion: Version) -> "PairedTest":
        """Test the challenger, as the second, against another version.

        The other is evaluated where its run has no predictions, or those of other images.

        Raises:
            EvaluationError: The two can't be compared.
        """
        challenger = self._get_predictions(self.challenger)
        try:
            return self._pair(champion, self._get_predictions(champion), challenger)
        except EvaluationError:
            if self._evaluate is None:
                raise
        return self._pair(champion, self._evaluate_version(champion), challenger)

    def _pair(
        self, champion: Version, first: _TestPredictions, second: _TestPredictions
    ) -> "PairedTest":
        from pyclassify.runs.stats import compare_predictions, describe_image_mismatch

        predictions = (first.by_index, second.by_index)
        difference = describe_image_mismatch((first.run, second.run), predictions)
        if difference is None and first.run and self._has_other_test_data(champion):
            difference = "other content, by the tag test_data"
        if difference:
            raise EvaluationError(
                f"the test images of version {self.challenger.number} are not those of version "
                f"{champion.number} ({difference})"
            )
        return compare_predictions(*predictions)

    def _has_other_test_data(self, champion: Version) -> bool:
        """Whether the digests differ that the tags `test_data` of both versions end with."""
        data = [version.tags.get("test_data", "") for version in (champion, self.challenger)]
        return len({name.rpartition(" ")[2] for name in data if name}) > 1

    def _get_predictions(self, version: Version) -> _TestPredictions:
        """Get a version's predictions from its run; the challenger is evaluated if it has none.

        Raises:
            EvaluationError: There are none.
        """
        if version.number not in self._predictions:
            if self._reevaluate:
                return self._evaluate_version(version)
            try:
                self._predictions[version.number] = self._read_predictions(version)
            except EvaluationError:
                if self._evaluate is None or version is not self.challenger:
                    raise
                return self._evaluate_version(version)
        return self._predictions[version.number]

    def _read_predictions(self, version: Version) -> _TestPredictions:
        from pyclassify.tracking.prediction_table import PREDICTIONS_FILE, read_predictions

        label = f"version {version.number}"
        if not version.run_id:
            raise EvaluationError(f"{label} comes from no run, which would keep its answers")
        try:
            run = self.client.get_run(version.run_id)
        except Exception as error:  # each kind of store fails in its own way
            message = format_error(error, _MAX_ERROR_LENGTH)
            raise EvaluationError(f"the run of {label} can't be read ({message})") from error
        if run.info.lifecycle_stage == "deleted":
            self.notes[version.number] = f"the run of {label} is deleted"
        try:
            predictions = read_predictions(run, self.client)
        except Exception as error:  # each kind of artifact store fails in its own way
            message = format_error(error, _MAX_ERROR_LENGTH)
            reason = f"{PREDICTIONS_FILE} of {label} can't be read ({message})"
            raise EvaluationError(reason) from error
        if predictions is None:
            raise EvaluationError(f"the run of {label} has no {PREDICTIONS_FILE}")
        return _TestPredictions(run, predictions)

    def _evaluate_version(self, version: Version) -> _TestPredictions:
        if self._evaluate is None:
            raise EvaluationError(f"nothing evaluates version {version.number}")
        try:
            predictions = _TestPredictions(None, self._evaluate(version.number))
        except Exception as error:  # the model may be anyone's
            message = format_error(error, _MAX_ERROR_LENGTH)
            reason = f"version {version.number} could not be evaluated ({message})"
            raise EvaluationError(reason) from error
        self._predictions[version.number] = predictions
        return predictions
