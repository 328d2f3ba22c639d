"""What tells whether a version is better than another: their answers to the same images."""

from collections.abc import Callable
from contextlib import suppress
from math import isfinite
from typing import TYPE_CHECKING, Any

from pyclassify.registry.versions import Version
from pyclassify.utils.text import format_error

if TYPE_CHECKING:
    from pyclassify.runs.stats import PairedTest
    from pyclassify.tracking.prediction_table import PredictionsByIndex


class EvaluationError(Exception):
    """Why a version can't be judged, in words that go on after "as"."""


class PairedComparison:
    """What there is about a version that wants to be champion.

    Args:
        client: An `MlflowClient`.
        challenger: The version.
        evaluate: Given a version, gives its answers on the images that this one was tested on.
        reevaluate: Whether to evaluate both, whatever their runs kept: on other images than the
            test's.

    Attributes:
        notes: What to keep in mind of a version, by its number.
    """

    def __init__(
        self,
        client: Any,
        challenger: Version,
        evaluate: "Callable[[str], PredictionsByIndex] | None" = None,
        reevaluate: bool = False,
    ) -> None:
        self.client, self.challenger = client, challenger
        self._evaluate, self._reevaluate = evaluate, reevaluate
        self.notes: dict[str, str] = {}
        self._found: dict[str, tuple[Any, PredictionsByIndex]] = {}

    def measure_accuracy(self) -> float:
        """The version's accuracy on its test images, by its answers or else its tag, in [0, 1].

        Raises:
            NoEvidence: Nothing tells it; why.
        """
        try:
            _, answers = self._find(self.challenger)
        except EvaluationError as error:
            told = self.challenger.tags.get("test_accuracy", "")
            with suppress(ValueError):
                if isfinite(accuracy := float(told)):
                    return accuracy
            raise EvaluationError(
                f"{error}, and no tag test_accuracy tells its accuracy"
            ) from error
        return sum(right for _, right in answers.values()) / len(answers)

    def weigh(self, champion: Version) -> "PairedTest":
        """Compare the version, as the second, to another.

        The other is evaluated afresh where its run has no answers, or answers to other images.

        Raises:
            NoEvidence: It can't be done; why.
        """
        own = self._find(self.challenger)
        try:
            return self._pair(champion, self._find(champion), own)
        except EvaluationError:
            if self._evaluate is None:
                raise
        return self._pair(champion, self._answer_afresh(champion), own)

    def _pair(
        self,
        champion: Version,
        first: "tuple[Any, PredictionsByIndex]",
        second: "tuple[Any, PredictionsByIndex]",
    ) -> "PairedTest":
        from pyclassify.runs.stats import compare_predictions, describe_image_mismatch

        runs, answers = zip(first, second, strict=True)
        how = describe_image_mismatch(runs, answers)
        data = [each.tags.get("test_data", "") for each in (champion, self.challenger)]
        digests = {each.rpartition(" ")[2] for each in data if each}
        if how is None and runs[0] and len(digests) > 1:
            how = "other content, by the tag test_data"
        if how:
            this, other = self.challenger.number, champion.number
            raise EvaluationError(
                f"the test images of version {this} are not those of version {other} ({how})"
            )
        return compare_predictions(*answers)

    def _find(self, version: Version) -> "tuple[Any, PredictionsByIndex]":
        """A version's answers as its run keeps them, and the run; the challenger's afresh if not.

        Raises:
            NoEvidence: There are none; why.
        """
        if version.number not in self._found:
            if self._reevaluate:
                return self._answer_afresh(version)
            try:
                self._found[version.number] = self._read(version)
            except EvaluationError:
                if self._evaluate is None or version is not self.challenger:
                    raise
                return self._answer_afresh(version)
        return self._found[version.number]

    def _read(self, version: Version) -> "tuple[Any, PredictionsByIndex]":
        from pyclassify.tracking.prediction_table import PREDICTIONS_FILE, read_predictions

        who = f"version {version.number}"
        if not version.run_id:
            raise EvaluationError(f"{who} comes from no run, which would keep its answers")
        try:
            run = self.client.get_run(version.run_id)
        except Exception as error:  # whatever the store has to say
            raise EvaluationError(
                f"the run of {who} can't be read ({format_error(error, 200)})"
            ) from error
        if run.info.lifecycle_stage == "deleted":
            self.notes[version.number] = f"the run of {who} is deleted"
        try:
            answers = read_predictions(run, self.client)
        except Exception as error:  # each kind of artifact store fails in its own way
            reason = f"{PREDICTIONS_FILE} of {who} can't be read ({format_error(error, 200)})"
            raise EvaluationError(reason) from error
        if answers is None:
            raise EvaluationError(f"the run of {who} has no {PREDICTIONS_FILE}")
        return run, answers

    def _answer_afresh(self, version: Version) -> "tuple[Any, PredictionsByIndex]":
        if self._evaluate is None:
            raise EvaluationError(f"nothing evaluates version {version.number}")
        try:
            answers = self._evaluate(version.number)
        except Exception as error:  # of a model that may be anyone's
            reason = f"version {version.number} could not be evaluated ({format_error(error, 200)})"
            raise EvaluationError(reason) from error
        self._found[version.number] = (None, answers)
        return None, answers
