"""The comparison of two versions of a registered model by their predictions of the same images.

Predictions are those that the test of each version's run logged, as predictions.json. If a run has
none, or those of other images, the version is evaluated by a process that has the images.
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
    """A version can't be compared; the message is a clause that follows "because"."""


class _TestPredictions(NamedTuple):
    """The predictions of a version, and the run that logged them; None if evaluated here."""

    run: "Run | None"
    by_index: "PredictionsByIndex"


class PairedComparison:
    """Compare a challenger with other versions on the challenger's test images.

    Args:
        client: The registry, and the store of the versions' runs.
        challenger: The version that may become champion.
        evaluate: Given the number of a version, returns its predictions for the challenger's test
            images. Default: only logged predictions are used.
        reevaluate: Whether to evaluate both versions even if their runs have predictions: to
            compare them on other images than those of the test. Default: False.

    Attributes:
        notes: Remarks on a version, by its number.

    Example:
        Two versions, evaluated on two images, both of which the second version predicts correctly:

        >>> from mlflow import MlflowClient
        >>> first, second = (Version("net", number, "", {}) for number in "12")
        >>> predictions = {
        ...     "1": {0: ("cat", True), 1: ("dog", False)},
        ...     "2": {0: ("cat", True), 1: ("dog", True)},
        ... }
        >>> evaluate = predictions.__getitem__
        >>> comparison = PairedComparison(MlflowClient(), second, evaluate, reevaluate=True)
        >>> comparison.compare_with(first).num_correct
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
        """Check that the challenger's training logged no warning about its data.

        Raises:
            EvaluationError: It logged one, so that the test accuracy may be meaningless.
        """
        warning = self.challenger.tags.get("data_warning")
        if not warning and self.challenger.run_id:
            with suppress(Exception):  # the run may be deleted
                run = self.client.get_run(self.challenger.run_id)
                warning = run.data.tags.get(DATA_WARNING_TAG)
        if warning:
            raise EvaluationError(
                f"its data have a warning ({shorten(warning, _MAX_ERROR_LENGTH)})"
            )

    def measure_accuracy(self) -> float:
        """Measure the challenger's accuracy on its test images, in [0, 1].

        Without predictions, it is read from the tag `test_accuracy`.

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
            reason = f"{error}, and the version has no tag test_accuracy"
            raise EvaluationError(reason) from error
        return sum(correct for _, correct in predictions.values()) / len(predictions)

    def compare_with(self, champion: Version) -> "PairedTest":
        """Test the challenger, as the second, against another version.

        The other version is evaluated if its run has no predictions, or those of other images.

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
            difference = "different content, by the tag test_data"
        if difference:
            raise EvaluationError(
                f"its test images differ from those of version {champion.number} ({difference})"
            )
        return compare_predictions(*predictions)

    def _has_other_test_data(self, champion: Version) -> bool:
        """Whether the digests in the tags `test_data` of both versions differ."""
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
            raise EvaluationError(f"{label} has no run with predictions")
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
            raise EvaluationError("the images to compare on are only available in its training")
        try:
            predictions = _TestPredictions(None, self._evaluate(version.number))
        except Exception as error:  # a model of any kind
            message = format_error(error, _MAX_ERROR_LENGTH)
            reason = f"version {version.number} could not be evaluated ({message})"
            raise EvaluationError(reason) from error
        self._predictions[version.number] = predictions
        return predictions
