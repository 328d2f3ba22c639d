"""The rule by which a version becomes champion, and the record of what was decided.

A decision is saved as `registry/NAME-VERSION/decision.json` among the artifacts of the version's
run, with the decisions before it under `earlier_decisions`, and in short as tags of the version.
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
FIRST, BELOW_MIN_ACCURACY = "first version", "below min_accuracy"
PROMOTED, NOT_BETTER, NOT_EVALUATED = "promoted", "not better", "not evaluated"
SET_MANUALLY, FORCED, ROLLED_BACK = "set manually", "forced", "rolled back"
_CHAMPION_OUTCOMES = (FIRST, PROMOTED, SET_MANUALLY, FORCED)
_FILE = "decision.json"


@dataclass(frozen=True)
class Decision:
    """A decision about a version; the names of its fields are the keys of decision.json.

    Args:
        name: The registered model.
        version: Its version.
        outcome: One of the outcomes above.
        against: The version that it was compared with, or that it replaces; None without one.
        against_is_champion: Whether `against` has the alias `champion`; False if it lost it.
        accuracy: The version's accuracy on its test images, in [0, 1], where it is known.
        paired_test: The test of both versions on the same images, where there was one.
        alpha: The significance level: the p-value of the test has to be below it.
        min_accuracy: The accuracy that the first version has to reach, in [0, 1].
        note: Why nothing was compared, and the next command.
        decided_by: The user who decided; empty for a decision by a comparison.
        reason: The reason that this user gave.
        decided_at: The time in UTC.

    Example:
        >>> Decision("net", "2", FORCED, "1", decided_by="ada", reason="faster").text
        'net version 2 is champion: forced by ada, replaces version 1 (reason: faster)'
    """

    name: str
    version: str
    outcome: str
    against: str | None = None
    against_is_champion: bool = True
    accuracy: float | None = None
    paired_test: "PairedTest | None" = None
    alpha: float | None = None
    min_accuracy: float | None = None
    note: str = ""
    decided_by: str = ""
    reason: str = ""
    decided_at: str = ""

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

        Tags that do not apply to this decision are empty.
        """
        test, bound = self.paired_test, self.min_accuracy
        return {
            "decision": self.outcome,
            "against": f"version {self.against}" if self.against else "",
            "p_value": f"{test.p_value:.2g}" if test else "",
            "difference": _format_accuracy_difference(test) if test else "",
            "alpha": f"{self.alpha:g}" if test else "",
            "min_accuracy": f"{bound:g}" if bound is not None and not self.against else "",
            "decided_at": self.decided_at,
            "decided_by": self.decided_by,
            "reason": self.reason or (self.note if self.outcome == NOT_EVALUATED else ""),
        }

    def to_dict(self) -> dict[str, Any]:
        """The decision as decision.json has it."""
        data = {**asdict(self), "text": self.text}
        if self.paired_test:
            data["paired_test"]["difference"] = _measure_accuracy_difference(self.paired_test)
        return data

    def _format_subject(self) -> str:
        version = f"{self.name} version {self.version}"
        if self.is_champion:
            return f"{version} is champion"
        if self.outcome == ROLLED_BACK:
            return f"{self.name} version {self.against} is champion again"
        if self.against and self.against_is_champion:
            return f"{self.name} version {self.against} stays champion"
        return f"{version} is not champion"

    def _format_grounds(self) -> str:
        note = f"; {self.note}" if self.note else ""
        if self.paired_test:
            return self._format_comparison(self.paired_test) + note
        if self.outcome in (FIRST, BELOW_MIN_ACCURACY) and self.accuracy is not None:
            return self._format_accuracy() + note
        if self.outcome == ROLLED_BACK and self.note:
            return self.note
        replaced = f", replaces version {self.against}" if self.against else ""
        reason = f" (reason: {self.reason})" if self.reason else ""
        grounds = {
            NOT_EVALUATED: f"version {self.version} was not evaluated because {self.note}",
            SET_MANUALLY: f"the alias was set manually{replaced}{note}",
            FORCED: f"forced by {self.decided_by}{replaced}{reason}{note}",
            ROLLED_BACK: f"{self.decided_by} rolled back version {self.version}{reason}",
        }
        return grounds.get(self.outcome, f"{self.outcome}{note}")

    def _format_accuracy(self) -> str:
        if self.outcome == BELOW_MIN_ACCURACY:
            return f"accuracy {self.accuracy:.4f} < min_accuracy {self.min_accuracy:g}"
        return (
            f"no champion to compare with, accuracy {self.accuracy:.4f} >= min_accuracy "
            f"{self.min_accuracy:g}"
        )

    def _format_comparison(self, test: "PairedTest") -> str:
        result = "better"
        if self.outcome == NOT_BETTER:
            is_worse = test.p_value < (self.alpha or 0)
            result = (
                f"version {self.version} is {'worse' if is_worse else 'not significantly better'}"
            )
        return (
            f"{result} than version {self.against} on {test.num_images:,} images, accuracy "
            f"difference {_format_accuracy_difference(test)}, McNemar's p = {test.p_value:.2g}, "
            f"alpha = {self.alpha:g}"
        )


def check_bounds(alpha: float, min_accuracy: float) -> None:
    """Check the bounds of a promotion.

    Raises:
        ValueError: alpha is not in (0, 1), or min_accuracy is not in [0, 1].
    """
    if not 0 < alpha < 1:
        raise ValueError(f"invalid alpha: {alpha:g} (expected 0 < alpha < 1, such as 0.05)")
    if not 0 <= min_accuracy <= 1:
        raise ValueError(
            f"invalid min_accuracy: {min_accuracy:g} (expected 0 <= min_accuracy <= 1)"
        )


def is_better(test: "PairedTest", alpha: float) -> bool:
    """Return whether the second of two versions is significantly better than the first.

    It predicts more images correctly, and McNemar's exact test has a p-value below `alpha`. The
    test is two-sided: of versions that are only as good as the champion, at most alpha/2 pass.
    """
    return _measure_accuracy_difference(test) > 0 and test.p_value < alpha


def load_decision(client: "MlflowClient", version: Version) -> Decision | None:
    """Load the last decision about a version.

    Args:
        client: The registry, and the store of the version's run.
        version: The version.

    Returns:
        The decision; without its numbers, from the tags, if its file is lost; None without one.
    """
    if "decision" not in version.tags:
        return None
    try:
        return _parse_decision(_load_data(client, version))
    except Exception:  # each kind of store fails in its own way
        return _parse_tags(version)


def add_time(decision: Decision, saved: Decision | None) -> Decision:
    """Add the current time to a decision; return the saved decision if they are equal otherwise."""
    if saved and replace(decision, decided_at=saved.decided_at) == saved:
        return saved
    now = datetime.now(UTC).isoformat(" ", "seconds").replace("+00:00", " UTC")
    return replace(decision, decided_at=now)


def save_decision(client: "MlflowClient", version: Version, decision: Decision) -> None:
    """Save a decision as decision.json, with the previous ones under `earlier_decisions`.

    A failure only warns, because the tags have the decision too.
    """
    if version.run_id:
        file = f"{_get_folder(version)}/{_FILE}"
        warn_on_error(f"save {file}", _save_data, client, version, decision.to_dict())


def write_tags(client: "MlflowClient", version: Version, decision: Decision) -> None:
    """Write a decision into the tags of its version."""
    tags = decision.tags()
    # The tag `decision` comes last: once it is there, the others are too.
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
    """Ignore PERMISSION_DENIED: a user may be allowed to create versions and not to delete tags."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "PERMISSION_DENIED":
            raise


def _measure_accuracy_difference(test: "PairedTest") -> float:
    """The accuracy of the second version minus that of the first, in [-1, 1]."""
    return (test.num_correct[1] - test.num_correct[0]) / test.num_images


def _format_accuracy_difference(test: "PairedTest") -> str:
    low, high = test.interval_95
    return f"{_measure_accuracy_difference(test):+.4f} (95% CI {low:+.4f} to {high:+.4f})"


def _parse_decision(data: Mapping[str, Any]) -> Decision:
    """Parse the content of decision.json, as `Decision.to_dict` returns it."""
    from pyclassify.runs.stats import PairedTest

    fields = {key: data[key] for key in Decision.__dataclass_fields__}
    if test := fields["paired_test"]:
        known = {key: test[key] for key in PairedTest.__dataclass_fields__}
        pairs = {key: tuple(known[key]) for key in ("num_correct", "interval_95")}
        fields["paired_test"] = PairedTest(**{**known, **pairs})
    return Decision(**fields)


def _parse_tags(version: Version) -> Decision:
    """Parse the tags of a version into its decision, without the numbers."""
    tags = version.tags
    return Decision(
        version.name,
        version.number,
        tags["decision"],
        tags.get("against", "").removeprefix("version ") or None,
        note="decision.json is lost; the numbers are in the tags of the version",
        decided_by=tags.get("decided_by", ""),
        reason=tags.get("reason", ""),
        decided_at=tags.get("decided_at", ""),
    )


def _get_folder(version: Version) -> str:
    """The folder of a version's decision; several versions may share the artifacts of one run."""
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
        with suppress(Exception):  # the file is lost, and with it the earlier decisions
            last = _load_data(client, version)
            earlier = [*last.pop("earlier_decisions"), last]
    text = json.dumps({**data, "earlier_decisions": earlier}, indent=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, _FILE)
        path.write_text(f"{text}\n", encoding="utf-8")
        _open_artifacts(client, version).log_artifact(str(path), _get_folder(version))


def _open_artifacts(client: "MlflowClient", version: Version) -> Any:
    return open_artifacts(client, client.get_run(version.run_id).info.artifact_uri)
