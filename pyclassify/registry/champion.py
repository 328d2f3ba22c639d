"""The champion of a registered model: which version has the alias, and how it moves.

A version becomes champion where it is better than the champion on the same test images, or by a
person's command. Each decision is saved with its numbers, and applied while the model is locked.
"""

import getpass
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pyclassify.registry.decision import (
    BELOW_MIN_ACCURACY,
    BY_HAND,
    FIRST,
    FORCED,
    NOT_BETTER,
    NOT_EVALUATED,
    PROMOTED,
    ROLLED_BACK,
    Decision,
    add_time,
    check_bounds,
    ignore_permission_denied,
    is_applied,
    is_better,
    load_decision,
    save_decision,
    write_tags,
)
from pyclassify.registry.lock import lock_model
from pyclassify.registry.paired_comparison import EvaluationError, PairedComparison
from pyclassify.registry.versions import (
    CHALLENGER,
    CHAMPION,
    HISTORY_TAG,
    MAX_HISTORY,
    AliasState,
    Version,
    find_existing_version,
    get_version,
    read_alias_state,
    register_version,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pyclassify.tracking.prediction_table import PredictionsByIndex


def promote_if_better(
    client: "MlflowClient",
    name: str,
    version: str,
    *,
    evaluate: "Callable[[str], PredictionsByIndex] | None" = None,
    reevaluate: bool = False,
    alpha: float = 0.05,
    min_accuracy: float = 0.0,
    recheck: bool = False,
) -> Decision:
    """Make a version champion if it is better than the champion, and save the decision.

    A decision that was saved before is returned as it is, and nothing changes, unless the version
    could not be evaluated then.

    Args:
        client: The registry, and the store of the versions' runs.
        name: The registered model.
        version: Its version, which gets the alias `challenger` where it does not become champion.
        evaluate: Given the number of a version, returns its predictions of the images that this
            version was tested on: for runs that logged none, or were tested on other images.
        reevaluate: Whether to evaluate both versions even where their runs have predictions: to
            compare them on other images than those of the test.
        alpha: The upper bound of the p-value of the test against the champion, in (0, 1).
        min_accuracy: The accuracy that the first version has to reach, in [0, 1].
        recheck: Whether to decide again where a decision was saved.

    Returns:
        The decision, which is saved as decision.json in the version's run and as the version's
        tags.

    Raises:
        ValueError: alpha or min_accuracy is out of range.
        mlflow.exceptions.MlflowException: There is no such version, or the registry refuses.
    """
    check_bounds(alpha, min_accuracy)
    challenger = get_version(client, name, str(version))
    comparison = PairedComparison(client, challenger, evaluate, reevaluate)
    while True:  # until no other process changes anything meanwhile
        aliases = read_alias_state(client, name)
        saved = load_decision(client, challenger)
        if saved and not recheck and is_applied(saved, aliases):
            return saved
        decision = _PromotionCheck(comparison, saved, alpha, min_accuracy).decide(aliases)
        decision = add_time(decision, saved)
        history = aliases.extend_history(challenger.number) if decision.is_champion else ()
        if _apply_decision(client, aliases, challenger, decision, history, saved):
            return decision
        challenger = get_version(client, name, challenger.number)


def register_and_promote(client: "MlflowClient", run_id: str, record: Mapping[str, Any]) -> str:
    """Register the version that a run asked for, and promote it if it is better.

    Done again it changes nothing.

    Args:
        client: The registry, and the store of the run.
        run_id: The run.
        record: The run's record of the kind `version`.

    Returns:
        The result in one line.

    Raises:
        mlflow.exceptions.MlflowException: The registry refuses the version, or does not answer.
    """
    name = record["name"]
    version = register_version(client, run_id, name, record["tags"], record["path"])
    bounds = {key: record[key] for key in ("alpha", "min_accuracy")}
    # Other images than the test's are at the training alone, which compares by them next.
    reevaluate = record["judge_by"] != "test"
    try:
        return promote_if_better(client, name, version, reevaluate=reevaluate, **bounds).text
    except Exception as error:  # the version exists; `pyclassify promote` checks it again
        warnings.warn(f"{name} version {version} was not judged ({error})", stacklevel=2)
        return f"{name} version {version}"


def force_promotion(client: "MlflowClient", name: str, version: str, why: str) -> Decision:
    """Make a version champion without a comparison, and save who did it, when and why.

    Args:
        client: The registry, and the store of the version's run.
        name: The registered model.
        version: Its version.
        why: The user's reason.

    Raises:
        ValueError: It is champion already.
        mlflow.exceptions.MlflowException: There is no such version, or the registry refuses.
    """
    while True:  # until no other process changes anything meanwhile
        forced, aliases = get_version(client, name, version), read_alias_state(client, name)
        if aliases.champion == forced.number:
            raise ValueError(f"{name} version {version} is champion already")
        previous = aliases.champion or None
        decision = Decision(name, forced.number, FORCED, previous, by=_get_user(), why=why)
        decision = add_time(decision, None)
        history = aliases.extend_history(forced.number)
        if _apply_decision(client, aliases, forced, decision, history):
            return decision


def roll_back_champion(client: "MlflowClient", name: str, why: str = "") -> Decision:
    """Make the previous champion champion again, and save who did it, when and why.

    Versions that were deleted since are passed over.

    Args:
        client: The registry, and the store of the champion's run.
        name: The registered model.
        why: The user's reason, if there is one.

    Raises:
        ValueError: No version was champion before.
        mlflow.exceptions.MlflowException: There is no such model, or the registry refuses.
    """
    while True:  # until no other process changes anything meanwhile
        aliases = read_alias_state(client, name)
        candidates = [number for number in aliases.history if number != aliases.champion]
        previous = find_existing_version(client, name, candidates)
        if previous is None:
            raise ValueError(_format_no_previous(name, aliases, candidates))
        last, reason = _find_rolled_back(client, name, aliases.history[0], previous)
        decision = Decision(
            name,
            aliases.history[0],
            ROLLED_BACK,
            previous.number,
            reason=reason,
            by=_get_user(),
            why=why,
        )
        decision = add_time(decision, None)
        history = aliases.history[aliases.history.index(previous.number) :]
        if _apply_decision(client, aliases, last, decision, history):
            return decision


@dataclass(frozen=True)
class _PromotionCheck:
    """Whether a version becomes champion: the comparison, the saved decision, and the bounds."""

    comparison: PairedComparison
    saved: Decision | None
    alpha: float
    min_accuracy: float

    def decide(self, aliases: AliasState) -> Decision:
        version = self.comparison.challenger
        others = [number for number in aliases.history if number != version.number]
        if aliases.champion == version.number:
            if self.saved and self.saved.is_champion:  # which was interrupted
                return self.saved
            previous = others[0] if others else None
            return Decision(version.name, version.number, BY_HAND, previous)
        rival = find_existing_version(self.comparison.client, version.name, others)
        draft = Decision(
            version.name,
            version.number,
            NOT_EVALUATED,
            rival.number if rival else None,
            standing=bool(aliases.champion),
            alpha=self.alpha,
            min_accuracy=self.min_accuracy,
        )
        try:
            return self._evaluate(draft, rival, _format_missing_champion(aliases, draft))
        except EvaluationError as error:
            command = f"`pyclassify promote {version.name} {version.number} --force --why TEXT`"
            reason = f"{error}; {command} makes it champion all the same"
            return replace(draft, reason=reason)

    def _evaluate(self, draft: Decision, rival: Version | None, missing: str) -> Decision:
        self.comparison.check_data()
        if rival is None:
            accuracy = self.comparison.measure_accuracy()
            outcome = FIRST if accuracy >= self.min_accuracy else BELOW_MIN_ACCURACY
            return replace(draft, outcome=outcome, accuracy=accuracy, reason=missing)
        test = self.comparison.compare_with(rival)
        outcome = PROMOTED if is_better(test, self.alpha) else NOT_BETTER
        notes = [missing, *self.comparison.notes.values()]
        if missing and outcome == NOT_BETTER:
            rollback = f"`pyclassify rollback {draft.name}` makes version {rival.number} champion"
            notes.insert(1, rollback)
        return replace(
            draft,
            outcome=outcome,
            accuracy=test.right[1] / test.count,
            paired=test,
            reason="; ".join(filter(None, notes)),
        )


def _format_missing_champion(aliases: AliasState, draft: Decision) -> str:
    """Format what became of the last champion, where none has the alias; empty else."""
    if aliases.champion or not aliases.history:
        return ""
    last = aliases.history[0]
    fate = "has lost the alias" if last in (draft.against, draft.version) else "is deleted"
    return f"version {last}, the last champion, {fate}"


def _find_rolled_back(
    client: "MlflowClient", name: str, number: str, previous: Version
) -> tuple[Version | None, str]:
    """Find the version that a rollback takes back; without one, the reason."""
    if number == previous.number:
        return None, "it had lost the alias"
    version = find_existing_version(client, name, [number])
    return version, "" if version else f"version {number} is deleted"


def _format_no_previous(name: str, aliases: AliasState, deleted: list[str]) -> str:
    if not aliases.history:
        return f"{name} had no champion yet; `pyclassify promote {name} VERSION` makes one"
    exists = f" and is not deleted ({', '.join(deleted)})" if deleted else ""
    return (
        f"no version of {name} was champion before{exists}; `pyclassify promote {name} VERSION "
        "--force --why TEXT` makes another one champion"
    )


def _get_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        return f"user {os.getuid()}"


def _apply_decision(
    client: "MlflowClient",
    aliases: AliasState,
    version: Version | None,
    decision: Decision,
    history: tuple[str, ...] = (),
    saved: Decision | None = None,
) -> bool:
    """Save a decision and move the aliases, unless these changed since it was made.

    Args:
        client: The registry.
        aliases: The aliases by which it was made.
        version: The version that it is about, as it was then; None where that is deleted.
        decision: The decision.
        history: The new champion and those before it; empty where the champion stays.
        saved: The decision about the version that is saved already.

    Returns:
        Whether it was applied; not, where the version or an alias is no longer as it was.
    """
    with lock_model(client, decision.name) as is_locked:
        if read_alias_state(client, decision.name) != aliases:
            return False
        if version and get_version(client, decision.name, version.number) != version:
            return False
        if version and decision != saved:
            save_decision(client, version, decision)
            if not is_locked():  # a slow artifact store may take longer than the lock holds
                return False
            write_tags(client, version, decision)
        if history:
            _move_champion(client, aliases, decision.name, history)
        elif not saved:
            client.set_registered_model_alias(decision.name, CHALLENGER, decision.version)
    return True


def _move_champion(
    client: "MlflowClient", aliases: AliasState, name: str, history: tuple[str, ...]
) -> None:
    champion = history[0]
    client.set_registered_model_alias(name, CHAMPION, champion)
    client.set_registered_model_tag(name, HISTORY_TAG, " ".join(history[:MAX_HISTORY]))
    if aliases.challenger == champion:
        with ignore_permission_denied():
            client.delete_registered_model_alias(name, CHALLENGER)
