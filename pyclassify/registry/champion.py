"""A version of a registered model becomes champion by evidence: its answers to the same images."""

import getpass
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

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
    from pyclassify.tracking.prediction_table import PredictionsByIndex


POLL = 0.05  # seconds between two tries
STALE = 60.0  # seconds after which a lock is one of a process that is dead; it takes a second


def promote_if_better(
    client: Any,
    name: str,
    version: str,
    *,
    evaluate: "Callable[[str], PredictionsByIndex] | None" = None,
    reevaluate: bool = False,
    alpha: float = 0.05,
    min_accuracy: float = 0.0,
    recheck: bool = False,
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
        reevaluate: Whether to evaluate both, whatever their runs kept: to judge by other images.
        alpha: How small the p-value of the test against the champion has to be.
        min_accuracy: How accurate the first version has to be.
        recheck: Judge it again where it was judged before.

    Returns:
        The decision. It is kept as decision.json in the version's run and as tags of the version.

    Raises:
        ValueError: alpha or min_accuracy is none.
        MlflowException: The registry does not know the version, or refuses.
    """
    check_bounds(alpha, min_accuracy)
    challenger = get_version(client, name, str(version))
    evidence = PairedComparison(client, challenger, evaluate, reevaluate)
    while True:  # until no other changes anything meanwhile
        standing = read_alias_state(client, name)
        kept = load_decision(client, challenger)
        if kept and not recheck and is_applied(kept, standing):
            return kept
        decision = _PromotionCheck(evidence, kept, alpha, min_accuracy).decide(standing)
        decision = add_time(decision, kept)
        line = standing.led_by(challenger.number) if decision.is_champion else ()
        if _apply_decision(client, standing, challenger, decision, line, kept):
            return decision
        challenger = get_version(client, name, challenger.number)


@dataclass(frozen=True)
class _PromotionCheck:
    """A version to judge, and by what."""

    evidence: PairedComparison
    kept: Decision | None
    alpha: float
    min_accuracy: float

    def decide(self, standing: AliasState) -> Decision:
        version = self.evidence.challenger
        others = [each for each in standing.line if each != version.number]
        if standing.champion == version.number:
            if self.kept and self.kept.is_champion:  # which was cut off
                return self.kept
            before = others[0] if others else None
            return Decision(version.name, version.number, BY_HAND, before)
        rival = find_existing_version(self.evidence.client, version.name, others)
        told = Decision(
            version.name,
            version.number,
            NOT_EVALUATED,
            rival.number if rival else None,
            standing=bool(standing.champion),
            alpha=self.alpha,
            min_accuracy=self.min_accuracy,
        )
        try:
            return self._weigh(told, rival, _tell_gap(standing, told))
        except EvaluationError as error:
            way = f"`pyclassify promote {version.name} {version.number} --force --why TEXT`"
            return replace(told, reason=f"{error}; {way} makes it champion all the same")

    def _weigh(self, told: Decision, rival: Version | None, gap: str) -> Decision:
        if rival is None:
            accuracy = self.evidence.measure_accuracy()
            outcome = FIRST if accuracy >= self.min_accuracy else BELOW_MIN_ACCURACY
            return replace(told, outcome=outcome, accuracy=accuracy, reason=gap)
        test = self.evidence.weigh(rival)
        outcome = PROMOTED if is_better(test, self.alpha) else NOT_BETTER
        back = f"`pyclassify rollback {told.name}` makes version {rival.number} champion"
        notes = [gap, back if gap and outcome == NOT_BETTER else "", *self.evidence.notes.values()]
        return replace(
            told,
            outcome=outcome,
            accuracy=test.right[1] / test.count,
            paired=test,
            reason="; ".join(filter(None, notes)),
        )


def _tell_gap(standing: AliasState, told: Decision) -> str:
    """Say where the champion is missing that there was."""
    if told.standing or not standing.line:
        return ""
    last = standing.line[0]
    fate = "has lost the alias" if last in (told.against, told.version) else "is deleted"
    return f"version {last}, the last champion, {fate}"


def register_and_promote(client: Any, run_id: str, record: Mapping[str, Any]) -> str:
    """Make a version and judge it, as far as that needs no images; done again it changes nothing.

    Args:
        client: An `MlflowClient` of the server.
        run_id: The run.
        record: That of the spool, of the kind `version`.

    Returns:
        What became of it, in a line.

    Raises:
        mlflow.exceptions.MlflowException: The registry does not answer, or refuses the version.
    """
    name = record["name"]
    version = register_version(client, run_id, name, record["tags"], record["path"])
    bounds = {key: record[key] for key in ("alpha", "min_accuracy")}
    # By other images than the test's only the training can judge, which has them, and does next.
    others = record["judge_by"] != "test"
    try:
        return promote_if_better(client, name, version, reevaluate=others, **bounds).text
    except Exception as error:  # the version is there; `pyclassify promote` judges it again
        warnings.warn(f"{name} version {version} was not judged ({error})", stacklevel=2)
        return f"{name} version {version}"


@contextmanager
def alone(client: Any, name: str) -> Iterator[Callable[[], bool]]:
    """Keep others from moving a model's champion meanwhile, on whatever machine they are.

    MLflow moves an alias whatever it was, but makes a registered model of a name only once: one
    that is called `NAME (being judged)` is the lock. It is there for the second that a decision is
    written in. What a process leaves behind that is killed in that second is removed by the next,
    after a minute.

    Yields:
        What tells whether it still is so: who takes longer may be taken for dead.
    """
    lock, mine = f"{name} (being judged)", uuid4().hex
    told = f"Keeps others from moving the aliases of {name}; it may be deleted after a minute."
    where = f"By process {os.getpid()} on {socket.gethostname()}, {mine}."
    _take(client, lock, mine, f"{told} {where}")
    try:
        yield lambda: mine in _read_holder(client, lock)
    finally:
        _let_go(client, lock, mine)


def _take(client: Any, lock: str, mine: str, description: str) -> None:
    from mlflow.exceptions import MlflowException

    holder, since = "", time.monotonic()
    while True:
        try:
            client.create_registered_model(lock, description=description)
            return
        except MlflowException as error:
            # The other one is told of a lock that was let go while MLflow looked for it.
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
                raise
        now = _read_holder(client, lock)
        if mine in now:  # a request was repeated whose answer got lost
            return
        if not now or now != holder:
            holder, since = now, time.monotonic()
        elif time.monotonic() - since > STALE:
            _break(client, lock, holder)
        time.sleep(POLL)


def _break(client: Any, lock: str, holder: str) -> None:
    """Remove the lock of a process that is dead.

    Raises:
        PermissionError: It is another user's, and not to be removed by this one.
    """
    from mlflow.exceptions import MlflowException

    try:
        if _read_holder(client, lock) == holder:
            client.delete_registered_model(lock)
    except MlflowException as error:
        if error.error_code == "PERMISSION_DENIED":
            raise PermissionError(
                f"the registered model {lock!r} was left by a process that died and is another "
                "user's; have that user or an admin delete it"
            ) from error


def _let_go(client: Any, lock: str, holder: str) -> None:
    """Remove a lock, if it is still that one's."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):
        if holder in _read_holder(client, lock):
            client.delete_registered_model(lock)


def _read_holder(client: Any, lock: str) -> str:
    """Who holds a lock; empty where nobody does."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(lock).description or "made by hand"
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return ""


def force_promotion(client: Any, name: str, version: str, why: str) -> Decision:
    """Make a version champion without evidence, and keep who did it, when and why.

    Raises:
        ValueError: It is champion.
        MlflowException: The registry does not know it, or refuses.
    """
    while True:  # until no other changes anything meanwhile
        forced, standing = get_version(client, name, version), read_alias_state(client, name)
        if standing.champion == forced.number:
            raise ValueError(f"{name} version {version} is champion already")
        before = standing.champion or None
        decision = Decision(name, forced.number, FORCED, before, by=_who(), why=why)
        decision = add_time(decision, None)
        if _apply_decision(client, standing, forced, decision, standing.led_by(forced.number)):
            return decision


def roll_back_champion(client: Any, name: str, why: str = "") -> Decision:
    """Make the version champion that was before, and keep who did it, when and why.

    Versions that were deleted since are passed over.

    Raises:
        ValueError: No version was champion before.
        MlflowException: The registry does not know the model, or refuses.
    """
    while True:  # until no other changes anything meanwhile
        standing = read_alias_state(client, name)
        before = [each for each in standing.line if each != standing.champion]
        found = find_existing_version(client, name, before)
        if found is None:
            raise ValueError(_nothing_before(name, standing, before))
        head = standing.line[0]
        last = find_existing_version(client, name, [head]) if head != found.number else None
        gone = f"version {head} is deleted" if head != found.number else "it had lost the alias"
        decision = Decision(
            name,
            head,
            ROLLED_BACK,
            found.number,
            reason="" if last else gone,
            by=_who(),
            why=why,
        )
        decision = add_time(decision, None)
        line = standing.line[standing.line.index(found.number) :]
        if _apply_decision(client, standing, last, decision, line):
            return decision


def _nothing_before(name: str, standing: AliasState, before: list[str]) -> str:
    if not standing.line:
        return f"{name} had no champion yet; `pyclassify promote {name} VERSION` makes one"
    gone = f" and is not deleted ({', '.join(before)})" if before else ""
    return (
        f"no version of {name} was champion before{gone}; `pyclassify promote {name} VERSION "
        "--force --why TEXT` makes another one champion"
    )


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user of a container, who has no name
        return f"user {os.getuid()}"


def _apply_decision(
    client: Any,
    standing: AliasState,
    version: Version | None,
    decision: Decision,
    line: tuple[str, ...] = (),
    kept: Decision | None = None,
) -> bool:
    """Carry out a decision.

    Args:
        client: An `MlflowClient`.
        standing: How the aliases stood when it was made.
        version: The version that it is about, as it was then; none where that is gone.
        decision: The decision.
        line: The versions that are champion from now on, and were before it; none where the
            champion stays.
        kept: The decision about it that is kept already.

    Returns:
        Whether it was carried out; not, where the version or an alias is no longer as it was.
    """
    name = decision.name
    with alone(client, name) as is_alone:
        if read_alias_state(client, name) != standing:
            return False
        if version and get_version(client, name, version.number) != version:
            return False
        if version and decision != kept:
            save_decision(client, version, decision)
            if not is_alone():  # artifacts may be kept in a slow place
                return False
            write_tags(client, version, decision)
        if line:
            client.set_registered_model_alias(name, CHAMPION, line[0])
            client.set_registered_model_tag(name, HISTORY_TAG, " ".join(line[:MAX_HISTORY]))
            if standing.challenger == line[0]:
                with ignore_permission_denied():
                    client.delete_registered_model_alias(name, CHALLENGER)
        elif not kept:  # it is new
            client.set_registered_model_alias(name, CHALLENGER, decision.version)
    return True
