"""The champion of a registered model: which version has the alias, and how it moves.

A version becomes champion if it is significantly better than the champion on the same test images,
or by a user's command. Each decision is saved with its numbers, and applied under a lock.
"""

import getpass
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pyclassify.registry.decision import (
    BELOW_MIN_ACCURACY,
    FIRST,
    FORCED,
    NOT_BETTER,
    NOT_EVALUATED,
    PROMOTED,
    ROLLED_BACK,
    SET_MANUALLY,
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

    The call is idempotent: a decision that is already saved is returned, and nothing changes. A
    version that could not be evaluated is evaluated at the next call.

    Args:
        client: The registry, and the store of the versions' runs.
        name: The registered model.
        version: Its version. It gets the alias `champion` or `challenger`.
        evaluate: Given the number of a version, returns its predictions for the test images of
            `version`. It is called for versions whose runs logged no predictions, or those of
            other images. Default: such versions are not compared.
        reevaluate: Whether to evaluate both versions even if their runs have predictions: to
            compare them on other images than those of the test. Default: False.
        alpha: The significance level, in (0, 1): the p-value of McNemar's exact test against the
            champion has to be below it. Default: 0.05.
        min_accuracy: The accuracy that the first version has to reach, in [0, 1]. Default: 0.
        recheck: Whether to decide again if a decision is already saved. Default: False.

    Returns:
        The decision, which is saved as decision.json in the version's run and as the version's
        tags.

    Raises:
        ValueError: alpha is not in (0, 1), or min_accuracy is not in [0, 1].
        mlflow.exceptions.MlflowException: The version does not exist, or the registry refuses.
    """
    check_bounds(alpha, min_accuracy)
    challenger = get_version(client, name, str(version))
    comparison = PairedComparison(client, challenger, evaluate, reevaluate)
    while True:  # until no other process changed an alias in the meantime
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


def register_and_promote(client: "MlflowClient", record: Mapping[str, Any]) -> str:
    """Register the version that a run requested, and promote it if it is better.

    The call is idempotent.

    Args:
        client: The registry, and the store of the run.
        record: The run's record of the kind `version`, with the model's ID at the server.

    Returns:
        The result in one line.

    Raises:
        mlflow.exceptions.MlflowException: The registry refuses the version, or does not answer.
    """
    name = record["name"]
    version = register_version(client, record["model"], name)
    bounds = {key: record[key] for key in ("alpha", "min_accuracy")}
    # Only the training has the validation images; it compares on them after this.
    reevaluate = record["compare_on"] != "test"
    try:
        return promote_if_better(client, name, version, reevaluate=reevaluate, **bounds).text
    except Exception as error:  # the version exists; `pyclassify promote` can still compare it
        warnings.warn(
            f"{name} version {version} is registered, and was not compared with the champion "
            f"({error}); compare it by `pyclassify promote {name} {version}`",
            stacklevel=2,
        )
        return f"{name} version {version}"


def force_promotion(client: "MlflowClient", name: str, version: str, reason: str) -> Decision:
    """Make a version champion without a comparison; save the user, the time and the reason.

    Args:
        client: The registry, and the store of the version's run.
        name: The registered model.
        version: Its version.
        reason: The user's reason.

    Raises:
        ValueError: The version is already champion.
        mlflow.exceptions.MlflowException: The version does not exist, or the registry refuses.
    """
    while True:  # until no other process changed an alias in the meantime
        forced, aliases = get_version(client, name, version), read_alias_state(client, name)
        if aliases.champion == forced.number:
            raise ValueError(f"{name} version {version} is already champion")
        previous = aliases.champion or None
        decision = Decision(
            name, forced.number, FORCED, previous, decided_by=_get_user(), reason=reason
        )
        decision = add_time(decision, None)
        history = aliases.extend_history(forced.number)
        if _apply_decision(client, aliases, forced, decision, history):
            return decision


def roll_back_champion(client: "MlflowClient", name: str, reason: str = "") -> Decision:
    """Restore the previous champion; save the user, the time and the reason.

    Deleted versions are skipped.

    Args:
        client: The registry, and the store of the champion's run.
        name: The registered model.
        reason: The user's reason. Default: none is saved.

    Raises:
        ValueError: There is no previous champion.
        mlflow.exceptions.MlflowException: The model does not exist, or the registry refuses.
    """
    while True:  # until no other process changed an alias in the meantime
        aliases = read_alias_state(client, name)
        candidates = [number for number in aliases.history if number != aliases.champion]
        previous = find_existing_version(client, name, candidates)
        if previous is None:
            raise ValueError(_format_no_previous(name, aliases, candidates))
        last, note = _find_rolled_back(client, name, aliases.history[0], previous)
        decision = Decision(
            name,
            aliases.history[0],
            ROLLED_BACK,
            previous.number,
            note=note,
            decided_by=_get_user(),
            reason=reason,
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
            if self.saved and self.saved.is_champion:  # an interrupted promotion
                return self.saved
            previous = others[0] if others else None
            return Decision(version.name, version.number, SET_MANUALLY, previous)
        rival = find_existing_version(self.comparison.client, version.name, others)
        draft = Decision(
            version.name,
            version.number,
            NOT_EVALUATED,
            rival.number if rival else None,
            against_is_champion=bool(aliases.champion),
            alpha=self.alpha,
            min_accuracy=self.min_accuracy,
        )
        try:
            return self._evaluate(draft, rival, _format_missing_champion(aliases, draft))
        except EvaluationError as error:
            command = f"`pyclassify promote {version.name} {version.number} --force --reason TEXT`"
            note = f"{error}; make it champion without a comparison by {command}"
            return replace(draft, note=note)

    def _evaluate(self, draft: Decision, rival: Version | None, missing: str) -> Decision:
        self.comparison.check_data()
        if rival is None:
            accuracy = self.comparison.measure_accuracy()
            outcome = FIRST if accuracy >= self.min_accuracy else BELOW_MIN_ACCURACY
            return replace(draft, outcome=outcome, accuracy=accuracy, note=missing)
        test = self.comparison.compare_with(rival)
        outcome = PROMOTED if is_better(test, self.alpha) else NOT_BETTER
        notes = [missing, *self.comparison.notes.values()]
        if missing and outcome == NOT_BETTER:
            command = f"`pyclassify rollback {draft.name}`"
            rollback = f"make version {rival.number} champion again by {command}"
            notes.insert(1, rollback)
        return replace(
            draft,
            outcome=outcome,
            accuracy=test.num_correct[1] / test.num_images,
            paired_test=test,
            note="; ".join(filter(None, notes)),
        )


def _format_missing_champion(aliases: AliasState, draft: Decision) -> str:
    """Format what happened to the last champion; empty if a version has the alias."""
    if aliases.champion or not aliases.history:
        return ""
    last = aliases.history[0]
    state = "has lost the alias" if last in (draft.against, draft.version) else "is deleted"
    return f"the last champion, version {last}, {state}"


def _find_rolled_back(
    client: "MlflowClient", name: str, number: str, previous: Version
) -> tuple[Version | None, str]:
    """Find the version that a rollback replaces; if there is none, also a note on it."""
    if number == previous.number:
        return None, "it had lost the alias `champion`"
    version = find_existing_version(client, name, [number])
    return version, "" if version else f"version {number} is deleted"


def _format_no_previous(name: str, aliases: AliasState, deleted: list[str]) -> str:
    if not aliases.history:
        return f"{name} has had no champion; make one by `pyclassify promote {name} VERSION`"
    numbers = f" (deleted: {', '.join(deleted)})" if deleted else ""
    return (
        f"{name} has no previous champion{numbers}; make another version champion by "
        f"`pyclassify promote {name} VERSION --force --reason TEXT`"
    )


def _get_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user of a container may have no name
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
        aliases: The aliases when it was made.
        version: The version that it is about, as it was then; None if that is deleted.
        decision: The decision.
        history: The new champion and those before it; empty if the champion stays.
        saved: The decision about the version that is already saved.

    Returns:
        Whether it was applied; False if the version or an alias has changed since.
    """
    with lock_model(client, decision.name) as is_locked:
        if read_alias_state(client, decision.name) != aliases:
            return False
        if version and get_version(client, decision.name, version.number) != version:
            return False
        if version and decision != saved:
            save_decision(client, version, decision)
            if not is_locked():  # a slow artifact store may take longer than STALE_SECONDS
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
