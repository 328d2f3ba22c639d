"""What was decided about a version of a registered model, with the numbers that it rests on."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pyclassify.registry.gate import measure_difference, spell_difference

if TYPE_CHECKING:
    from pyclassify.runs.stats import PairedTest

# What a decision can be.
FIRST, BELOW = "first", "below min_accuracy"
PROMOTED, KEPT, NOT_JUDGED = "promoted", "kept", "not judged"
BY_HAND, FORCED, ROLLED_BACK = "by hand", "forced", "rolled back"

CHAMPIONS = (FIRST, PROMOTED, BY_HAND, FORCED)


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
        return self.outcome in CHAMPIONS

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
            "difference": spell_difference(test) if test else "",
            "alpha": f"{self.alpha:g}" if test else "",
            "min_accuracy": f"{bound:g}" if bound is not None and not self.against else "",
            "decided": self.time,
            "decided_by": self.by,
            "why": self.why or (self.reason if self.outcome == NOT_JUDGED else ""),
        }

    def as_data(self) -> dict[str, Any]:
        """The decision as JSON has it."""
        data = {**asdict(self), "text": self.text}
        if self.paired:
            data["paired"]["difference"] = measure_difference(self.paired)
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
        if self.outcome in (PROMOTED, KEPT, FIRST, BELOW) and self.accuracy is None:
            return f"{self.outcome}{more}"
        if self.paired:
            return self._compare(self.paired) + more
        if self.outcome in (FIRST, BELOW):
            side = "is below" if self.outcome == BELOW else "reaches"
            which = "the first, and its accuracy" if self.outcome == FIRST else "its accuracy"
            return f"{which} {self.accuracy:.4f} {side} min_accuracy {self.min_accuracy:g}{more}"
        if self.outcome == ROLLED_BACK and self.reason:
            return self.reason
        return {
            NOT_JUDGED: f"version {self.version} was not judged, as {self.reason}",
            BY_HAND: f"made so by hand{after}{more}",
            FORCED: f"forced{after} by {who}{more}",
            ROLLED_BACK: f"version {self.version} was rolled back by {who}",
        }[self.outcome]

    def _compare(self, test: "PairedTest") -> str:
        shown = "better"
        if self.outcome == KEPT:
            worse = test.p_value < (self.alpha or 0)
            shown = f"version {self.version} is {'worse' if worse else 'not shown to be better'}"
        return (
            f"{shown} than version {self.against} on {test.count:,} images, by "
            f"{spell_difference(test)}, p = {test.p_value:.2g}, alpha {self.alpha:g}"
        )


def restore(data: Mapping[str, Any]) -> Decision:
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


def restore_from_tags(name: str, version: str, tags: Mapping[str, str]) -> Decision:
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
