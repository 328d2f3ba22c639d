"""A version of a registered model becomes champion by evidence: its answers to the same images."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pyclassify.registry import decision_record
from pyclassify.registry.aliases import Standing, Version, find_first, get_version, read_standing
from pyclassify.registry.decision import BELOW, BY_HAND, FIRST, KEPT, NOT_JUDGED, PROMOTED, Decision
from pyclassify.registry.evidence import Evidence, NoEvidence
from pyclassify.registry.gate import check_bounds, is_better
from pyclassify.registry.settlement import settle

if TYPE_CHECKING:
    from pyclassify.tracking.prediction_table import Answers


def judge(
    client: Any,
    name: str,
    version: str,
    *,
    evaluate: "Callable[[str], Answers] | None" = None,
    afresh: bool = False,
    alpha: float = 0.05,
    min_accuracy: float = 0.0,
    again: bool = False,
) -> Decision:
    """Decide whether a version becomes champion, and keep the decision.

    A version that was judged is not judged again: the decision that was kept is the answer, and
    nothing changes. One that could not be judged is.

    Args:
        client: An `MlflowClient`.
        name: The registered model.
        version: Its version; it gets the alias `challenger` where it does not become champion.
        evaluate: Given a version, gives its answers on the images that this one was tested on; for
            where a run did not keep them, or was tested on others.
        afresh: Whether to evaluate both, whatever their runs kept: to judge by other images.
        alpha: How small the p-value of the test against the champion has to be.
        min_accuracy: How accurate the first version has to be.
        again: Judge it again where it was judged before.

    Returns:
        The decision. It is kept as decision.json in the version's run and as tags of the version.

    Raises:
        ValueError: alpha or min_accuracy is none.
        MlflowException: The registry does not know the version, or refuses.
    """
    check_bounds(alpha, min_accuracy)
    challenger = get_version(client, name, str(version))
    evidence = Evidence(client, challenger, evaluate, afresh)
    while True:  # until no other changes anything meanwhile
        standing = read_standing(client, name)
        kept = decision_record.read(client, challenger)
        if kept and not again and decision_record.is_carried_out(kept, standing):
            return kept
        decision = _Case(evidence, kept, alpha, min_accuracy).decide(standing)
        decision = decision_record.stamp(decision, kept)
        line = standing.led_by(challenger.number) if decision.is_champion else ()
        if settle(client, standing, challenger, decision, line, kept):
            return decision
        challenger = get_version(client, name, challenger.number)


@dataclass(frozen=True)
class _Case:
    """A version to judge, and by what."""

    evidence: Evidence
    kept: Decision | None
    alpha: float
    min_accuracy: float

    def decide(self, standing: Standing) -> Decision:
        version = self.evidence.challenger
        others = [each for each in standing.line if each != version.number]
        if standing.champion == version.number:
            if self.kept and self.kept.is_champion:  # which was cut off
                return self.kept
            before = others[0] if others else None
            return Decision(version.name, version.number, BY_HAND, before)
        rival = find_first(self.evidence.client, version.name, others)
        told = Decision(
            version.name,
            version.number,
            NOT_JUDGED,
            rival.number if rival else None,
            standing=bool(standing.champion),
            alpha=self.alpha,
            min_accuracy=self.min_accuracy,
        )
        try:
            return self._weigh(told, rival, _tell_gap(standing, told))
        except NoEvidence as error:
            way = f"`pyclassify promote {version.name} {version.number} --force --why TEXT`"
            return replace(told, reason=f"{error}; {way} makes it champion all the same")

    def _weigh(self, told: Decision, rival: Version | None, gap: str) -> Decision:
        if rival is None:
            accuracy = self.evidence.measure_accuracy()
            outcome = FIRST if accuracy >= self.min_accuracy else BELOW
            return replace(told, outcome=outcome, accuracy=accuracy, reason=gap)
        test = self.evidence.weigh(rival)
        outcome = PROMOTED if is_better(test, self.alpha) else KEPT
        back = f"`pyclassify rollback {told.name}` makes version {rival.number} champion"
        notes = [gap, back if gap and outcome == KEPT else "", *self.evidence.notes.values()]
        return replace(
            told,
            outcome=outcome,
            accuracy=test.right[1] / test.count,
            paired=test,
            reason="; ".join(filter(None, notes)),
        )


def _tell_gap(standing: Standing, told: Decision) -> str:
    """Say where the champion is missing that there was."""
    if told.standing or not standing.line:
        return ""
    last = standing.line[0]
    fate = "has lost the alias" if last in (told.against, told.version) else "is deleted"
    return f"version {last}, the last champion, {fate}"
