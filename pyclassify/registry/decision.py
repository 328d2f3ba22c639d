"""The rule by which a version becomes champion, and the record of what was decided.

A decision is saved as `registry/NAME-VERSION/decision.json` among the artifacts of the version's
run, with the decisions before it under `earlier`, and in short as tags of the version.
"""

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
    from mlflow import MlflowClient

    from pyclassify.runs.stats import PairedTest

# The outcomes of a decision, as the tag `decision` has them.
FIRST, BELOW_MIN_ACCURACY = "first", "below min_accuracy"
PROMOTED, NOT_BETTER, NOT_EVALUATED = "promoted", "kept", "not judged"
BY_HAND, FORCED, ROLLED_BACK = "by hand", "forced", "rolled back"
_CHAMPION_OUTCOMES = (FIRST, PROMOTED, BY_HAND, FORCED)
_FILE = "decision.json"


@dataclass(frozen=True)
class Decision:
    """A decision about a version; the names of its fields are those of decision.json.

    Args:
        name: The registered model.
        version: Its version.
        outcome: One of the outcomes above.
        against: The version that it was compared with, or that it follows; None without one.
        standing: Whether `against` has the alias `champion`, rather than having lost it.
        accuracy: The version's accuracy on its test images, where it is known.
        paired: The test of both versions on the same images, where there was one.
        alpha: The upper bound of the test's p-value.
        min_accuracy: The accuracy that the first version has to reach.
        reason: Further notes: why nothing was compared, and the next command.
        by: The user who decided, where a person did.
        why: That person's reason.
        time: The time in UTC.

    Example:
        >>> Decision("net", "2", FORCED, against="1", by="ada", why="half the size").text
        'net version 2 is champion: forced, after version 1 by ada: half the size'
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
        """Whether the decision makes the version champion."""
        return self.outcome in _CHAMPION_OUTCOMES

    @property
    def text(self) -> str:
        """The decision in one line."""
        return f"{self._format_subject()}: {self._format_grounds()}"

    def tags(self) -> dict[str, str]:
        """The decision as tags of the version, each short enough for a column of `mlflow ui`.

        Tags that say nothing about this decision are empty.
        """
        test, bound = self.paired, self.min_accuracy
        return {
            "decision": self.outcome,
            "against": f"version {self.against}" if self.against else "",
            "p_value": f"{test.p_value:.2g}" if test else "",
            "difference": _format_accuracy_difference(test) if test else "",
            "alpha": f"{self.alpha:g}" if test else "",
            "min_accuracy": f"{bound:g}" if bound is not None and not self.against else "",
            "decided": self.time,
            "decided_by": self.by,
            "why": self.why or (self.reason if self.outcome == NOT_EVALUATED else ""),
        }

    def to_dict(self) -> dict[str, Any]:
        """The decision as decision.json has it."""
        data = {**asdict(self), "text": self.text}
        if self.paired:
            data["paired"]["difference"] = _measure_accuracy_difference(self.paired)
        return data

    def _format_subject(self) -> str:
        version = f"{self.name} version {self.version}"
        if self.is_champion:
            return f"{version} is champion"
        if self.outcome == ROLLED_BACK:
            return f"{self.name} version {self.against} is champion again"
        if self.against and self.standing:
            return f"{self.name} version {self.against} stays champion"
        return f"{version} is not champion"

    def _format_grounds(self) -> str:
        who = f"{self.by}: {self.why}" if self.why else self.by
        after = f", after version {self.against}" if self.against else ""
        more = f"; {self.reason}" if self.reason else ""
        if (
            self.outcome in (PROMOTED, NOT_BETTER, FIRST, BELOW_MIN_ACCURACY)
            and self.accuracy is None
        ):
            return f"{self.outcome}{more}"
        if self.paired:
            return self._format_comparison(self.paired) + more
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

    def _format_comparison(self, test: "PairedTest") -> str:
        result = "better"
        if self.outcome == NOT_BETTER:
            worse = test.p_value < (self.alpha or 0)
            result = f"version {self.version} is {'worse' if worse else 'not shown to be better'}"
        return (
            f"{result} than version {self.against} on {test.count:,} images, by "
            f"{_format_accuracy_difference(test)}, p = {test.p_value:.2g}, alpha {self.alpha:g}"
        )


def check_bounds(alpha: float, min_accuracy: float) -> None:
    """Check the bounds of a promotion.

    Raises:
        ValueError: alpha is not in (0, 1), or min_accuracy is not in [0, 1].
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha:g}; it takes a number between 0 and 1, such as 0.05")
    if not 0 <= min_accuracy <= 1:
        raise ValueError(f"min_accuracy is {min_accuracy:g}; it takes a number from 0 to 1")


def is_better(test: "PairedTest", alpha: float) -> bool:
    """Return whether the second of two versions is better than the first, by more than luck.

    It has more images right, and of two that are equally good as large a difference is seen less
    than `alpha` of the time (McNemar's exact test, two-sided). Luck has two sides: of versions that
    are as good as the champion at most alpha/2 pass.
    """
    return _measure_accuracy_difference(test) > 0 and test.p_value < alpha


def load_decision(client: "MlflowClient", version: Version) -> Decision | None:
    """Load the last decision about a version.

    Args:
        client: The registry, and the store of the version's run.
        version: The version.

    Returns:
        None where there is none; without its numbers, from the tags, where its file is lost.
    """
    if "decision" not in version.tags:
        return None
    try:
        return _parse_decision(_load_data(client, version))
    except Exception:  # each kind of store fails in its own way
        return _parse_tags(version)


def add_time(decision: Decision, saved: Decision | None) -> Decision:
    """Add the time of now to a decision; return the saved decision where that says the same."""
    if saved and replace(decision, time=saved.time) == saved:
        return saved
    now = datetime.now(UTC).isoformat(" ", "seconds").replace("+00:00", " UTC")
    return replace(decision, time=now)


def save_decision(client: "MlflowClient", version: Version, decision: Decision) -> None:
    """Save a decision as decision.json, which keeps the decisions before it under `earlier`.

    A failure costs a warning, as the tags have the decision too.
    """
    if version.run_id:
        file = f"{_get_folder(version)}/{_FILE}"
        warn_on_error(f"save {file}", _save_data, client, version, decision.to_dict())


def write_tags(client: "MlflowClient", version: Version, decision: Decision) -> None:
    """Write a decision into the tags of its version."""
    tags = decision.tags()
    # The tag `decision` comes last: whoever reads it finds the others.
    for key in sorted(tags, key=lambda key: key == "decision"):
        if tags[key]:
            client.set_model_version_tag(version.name, version.number, key, tags[key])
        elif key in version.tags:
            with ignore_permission_denied():
                client.delete_model_version_tag(version.name, version.number, key)


def is_applied(decision: Decision, aliases: AliasState) -> bool:
    """Return whether a saved decision is final, and the alias moved accordingly.

    A process may be killed between the two.
    """
    moved = not decision.is_champion or decision.version in aliases.recorded
    return moved and decision.outcome != NOT_EVALUATED


@contextmanager
def ignore_permission_denied() -> Iterator[None]:
    """Ignore that the registry refuses: a user who may create versions may not delete tags."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise


def _measure_accuracy_difference(test: "PairedTest") -> float:
    """The accuracy of the second version minus that of the first, in [-1, 1]."""
    return (test.right[1] - test.right[0]) / test.count


def _format_accuracy_difference(test: "PairedTest") -> str:
    low, high = test.interval
    return f"{_measure_accuracy_difference(test):+.4f} (95%: {low:+.4f} to {high:+.4f})"


def _parse_decision(data: Mapping[str, Any]) -> Decision:
    """Parse the content of decision.json, as `Decision.to_dict` returns it."""
    from pyclassify.runs.stats import PairedTest

    fields = {key: data[key] for key in Decision.__dataclass_fields__}
    if test := fields["paired"]:
        known = {key: test[key] for key in PairedTest.__dataclass_fields__}
        pairs = {key: tuple(known[key]) for key in ("right", "interval")}
        fields["paired"] = PairedTest(**{**known, **pairs})
    return Decision(**fields)


def _parse_tags(version: Version) -> Decision:
    """Parse the tags of a version into its decision, without the numbers."""
    tags = version.tags
    return Decision(
        version.name,
        version.number,
        tags["decision"],
        tags.get("against", "").removeprefix("version ") or None,
        reason="its numbers are in the tags of the version alone, as decision.json is lost",
        by=tags.get("decided_by", ""),
        why=tags.get("why", ""),
        time=tags.get("decided", ""),
    )


def _get_folder(version: Version) -> str:
    """The folder of a version's decision among its run's artifacts, which other versions share."""
    return f"registry/{version.name}-{version.number}"


def _load_data(client: "MlflowClient", version: Version) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = _open_artifacts(client, version)
        path = files.download_artifacts(f"{_get_folder(version)}/{_FILE}", folder)
        data: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return data


def _save_data(client: "MlflowClient", version: Version, data: dict[str, Any]) -> None:
    earlier: list[dict[str, Any]] = []
    if "decision" in version.tags:
        with suppress(Exception):  # a lost file has no decisions to keep
            last = _load_data(client, version)
            earlier = [*last.pop("earlier"), last]
    text = json.dumps({**data, "earlier": earlier}, indent=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, _FILE)
        path.write_text(f"{text}\n", encoding="utf-8")
        _open_artifacts(client, version).log_artifact(str(path), _get_folder(version))


def _open_artifacts(client: "MlflowClient", version: Version) -> Any:
    return open_artifacts(client, client.get_run(version.run_id).info.artifact_uri)
