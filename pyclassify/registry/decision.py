"""What was decided about a version of a registered model, with the numbers that it rests on."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.registry.versions import AliasState, Version
from pyclassify.spool.server import open_artifacts
from pyclassify.tracking.run import warn_on_error

if TYPE_CHECKING:
    from pyclassify.runs.stats import PairedTest


# What a decision can be.
FIRST, BELOW_MIN_ACCURACY = "first", "below min_accuracy"
PROMOTED, NOT_BETTER, NOT_EVALUATED = "promoted", "kept", "not judged"
BY_HAND, FORCED, ROLLED_BACK = "by hand", "forced", "rolled back"
_CHAMPION_OUTCOMES = (FIRST, PROMOTED, BY_HAND, FORCED)
_FILE = "decision.json"


@dataclass(frozen=True)
class Decision:
    """What was decided about a version.

    Args:
        name: The registered model.
        version: Its version.
        outcome: One of the words above.
        against: The version that it was compared with, or that it follows; none without one.
        standing: Whether that version is champion, not one that was before.
        accuracy: The version's accuracy on its test images, where it is known.
        paired: The test of both versions on the same images, where there was one.
        alpha: How small the test's p-value has to be.
        min_accuracy: How accurate the first version has to be.
        reason: What else there is to say: why nothing was judged, and the next move.
        by: Who decided, where a person did.
        why: Why, in the person's words.
        time: When, in UTC.
    """

    name: str
    version: str
    outcome: str
    against: str | None = None
    standing: bool = True
    accuracy: float | None = None
    paired: "PairedTest | None" = None
    alpha: float | None = None
    min_accuracy: float | None = None
    reason: str = ""
    by: str = ""
    why: str = ""
    time: str = ""

    @property
    def is_champion(self) -> bool:
        """Whether the version became champion by it."""
        return self.outcome in _CHAMPION_OUTCOMES

    @property
    def text(self) -> str:
        """The decision in one line."""
        return f"{self._subject()}: {self._grounds()}"

    def tags(self) -> dict[str, str]:
        """The decision as tags of the version, each short enough for a column of `mlflow ui`.

        Those that say nothing here are empty.
        """
        test, bound = self.paired, self.min_accuracy
        return {
            "decision": self.outcome,
            "against": f"version {self.against}" if self.against else "",
            "p_value": f"{test.p_value:.2g}" if test else "",
            "difference": format_accuracy_difference(test) if test else "",
            "alpha": f"{self.alpha:g}" if test else "",
            "min_accuracy": f"{bound:g}" if bound is not None and not self.against else "",
            "decided": self.time,
            "decided_by": self.by,
            "why": self.why or (self.reason if self.outcome == NOT_EVALUATED else ""),
        }

    def as_data(self) -> dict[str, Any]:
        """The decision as JSON has it."""
        data = {**asdict(self), "text": self.text}
        if self.paired:
            data["paired"]["difference"] = measure_accuracy_difference(self.paired)
        return data

    def _subject(self) -> str:
        version = f"{self.name} version {self.version}"
        if self.is_champion:
            return f"{version} is champion"
        if self.outcome == ROLLED_BACK:
            return f"{self.name} version {self.against} is champion again"
        if self.against and self.standing:
            return f"{self.name} version {self.against} stays champion"
        return f"{version} is not champion"

    def _grounds(self) -> str:
        who = f"{self.by}: {self.why}" if self.why else self.by
        after = f", after version {self.against}" if self.against else ""
        more = f"; {self.reason}" if self.reason else ""
        if (
            self.outcome in (PROMOTED, NOT_BETTER, FIRST, BELOW_MIN_ACCURACY)
            and self.accuracy is None
        ):
            return f"{self.outcome}{more}"
        if self.paired:
            return self._compare(self.paired) + more
        if self.outcome in (FIRST, BELOW_MIN_ACCURACY):
            side = "is below" if self.outcome == BELOW_MIN_ACCURACY else "reaches"
            which = "the first, and its accuracy" if self.outcome == FIRST else "its accuracy"
            return f"{which} {self.accuracy:.4f} {side} min_accuracy {self.min_accuracy:g}{more}"
        if self.outcome == ROLLED_BACK and self.reason:
            return self.reason
        return {
            NOT_EVALUATED: f"version {self.version} was not judged, as {self.reason}",
            BY_HAND: f"made so by hand{after}{more}",
            FORCED: f"forced{after} by {who}{more}",
            ROLLED_BACK: f"version {self.version} was rolled back by {who}",
        }[self.outcome]

    def _compare(self, test: "PairedTest") -> str:
        shown = "better"
        if self.outcome == NOT_BETTER:
            worse = test.p_value < (self.alpha or 0)
            shown = f"version {self.version} is {'worse' if worse else 'not shown to be better'}"
        return (
            f"{shown} than version {self.against} on {test.count:,} images, by "
            f"{format_accuracy_difference(test)}, p = {test.p_value:.2g}, alpha {self.alpha:g}"
        )


def _parse_decision(data: Mapping[str, Any]) -> Decision:
    """Make the decision that `as_data` told.

    Raises:
        KeyError, TypeError: It is none.
    """
    from pyclassify.runs.stats import PairedTest

    fields = {key: data[key] for key in Decision.__dataclass_fields__}
    if test := fields["paired"]:
        known = {key: test[key] for key in PairedTest.__dataclass_fields__}
        pairs = {key: tuple(known[key]) for key in ("right", "interval")}
        fields["paired"] = PairedTest(**{**known, **pairs})
    return Decision(**fields)


def _parse_tags(name: str, version: str, tags: Mapping[str, str]) -> Decision:
    """Make the decision that a version's tags tell, without its numbers."""
    return Decision(
        name,
        version,
        tags["decision"],
        tags.get("against", "").removeprefix("version ") or None,
        reason="its numbers are in the tags of the version alone, as decision.json is lost",
        by=tags.get("decided_by", ""),
        why=tags.get("why", ""),
        time=tags.get("decided", ""),
    )


def _get_folder(version: Version) -> str:
    """The folder of a version's decision among its run's artifacts, which others may share."""
    return f"registry/{version.name}-{version.number}"


def load_decision(client: Any, version: Version) -> Decision | None:
    """Read the last decision about a version.

    Args:
        client: An `MlflowClient`.
        version: The version.

    Returns:
        None where there is none; what its tags tell, where its file is lost.
    """
    if "decision" not in version.tags:
        return None
    try:
        return _parse_decision(_load(client, version))
    except Exception:  # each kind of store fails in its own way
        return _parse_tags(version.name, version.number, version.tags)


def add_time(decision: Decision, kept: Decision | None) -> Decision:
    """A decision with its time; the one that is kept already, where that says the same."""
    if kept and replace(decision, time=kept.time) == kept:
        return kept
    now = datetime.now(UTC).isoformat(" ", "seconds").replace("+00:00", " UTC")
    return replace(decision, time=now)


def save_decision(client: Any, version: Version, decision: Decision) -> None:
    """Write a decision into its file, where those before it stay, under `earlier`."""
    if version.run_id:
        warn_on_error(f"{_get_folder(version)}/{_FILE}", _save, client, version, decision.as_data())


def write_tags(client: Any, version: Version, decision: Decision) -> None:
    """Tell a decision in the version's tags."""
    told = decision.tags()
    # The decision itself comes last: who reads it finds the rest.
    for key in sorted(told, key=lambda key: key == "decision"):
        if told[key]:
            client.set_model_version_tag(version.name, version.number, key, told[key])
        elif key in version.tags:
            with ignore_permission_denied():
                client.delete_model_version_tag(version.name, version.number, key)


@contextmanager
def ignore_permission_denied() -> Iterator[None]:
    """Within this context what is refused is left: who may make versions may not delete tags."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise


def is_applied(kept: Decision, standing: AliasState) -> bool:
    """Whether there is no more to do: a process may have been killed before it moved the alias."""
    moved = not kept.is_champion or kept.version in standing.history
    return moved and kept.outcome != NOT_EVALUATED


def _save(client: Any, version: Version, data: dict[str, Any]) -> None:
    earlier: list[dict[str, Any]] = []
    if "decision" in version.tags:
        with suppress(Exception):  # what is lost can't be kept
            last = _load(client, version)
            earlier = [*last.pop("earlier"), last]
    text = json.dumps({**data, "earlier": earlier}, indent=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, _FILE)
        path.write_text(f"{text}\n", encoding="utf-8")
        _open_files(client, version).log_artifact(str(path), _get_folder(version))


def _load(client: Any, version: Version) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = _open_files(client, version).download_artifacts(
            f"{_get_folder(version)}/{_FILE}", folder
        )
        data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return data


def _open_files(client: Any, version: Version) -> Any:
    return open_artifacts(client, client.get_run(version.run_id).info.artifact_uri)


def is_better(test: "PairedTest", alpha: float) -> bool:
    """Whether the second of two is better, and by more than luck.

    It has more images right, and of two that are equally good as large a difference is seen less
    than `alpha` of the time (McNemar's exact test, two-sided). Luck has two sides: of versions that
    are as good as the champion at most alpha/2 pass.
    """
    return measure_accuracy_difference(test) > 0 and test.p_value < alpha


def measure_accuracy_difference(test: "PairedTest") -> float:
    """How much more accurate the second of two was on the images, in [-1, 1]."""
    return (test.right[1] - test.right[0]) / test.count


def format_accuracy_difference(test: "PairedTest") -> str:
    """The same with its interval."""
    low, high = test.interval
    return f"{measure_accuracy_difference(test):+.4f} (95%: {low:+.4f} to {high:+.4f})"


def check_bounds(alpha: float, min_accuracy: float) -> None:
    """Refuse what is no probability.

    Raises:
        ValueError: Which, and what it takes.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha:g}; it takes a number between 0 and 1, such as 0.05")
    if not 0 <= min_accuracy <= 1:
        raise ValueError(f"min_accuracy is {min_accuracy:g}; it takes a number from 0 to 1")
