"""A decision is carried out: the aliases move, if nothing has moved meanwhile."""

from typing import Any

from pyclassify.registry import decision_record
from pyclassify.registry.aliases import (
    CHALLENGER,
    CHAMPION,
    HISTORY,
    LONGEST,
    Standing,
    Version,
    get_version,
    read_standing,
)
from pyclassify.registry.decision import Decision
from pyclassify.registry.lock import alone


def settle(
    client: Any,
    standing: Standing,
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
        if read_standing(client, name) != standing:
            return False
        if version and get_version(client, name, version.number) != version:
            return False
        if version and decision != kept:
            decision_record.save(client, version, decision)
            if not is_alone():  # artifacts may be kept in a slow place
                return False
            decision_record.mark(client, version, decision)
        if line:
            client.set_registered_model_alias(name, CHAMPION, line[0])
            client.set_registered_model_tag(name, HISTORY, " ".join(line[:LONGEST]))
            if standing.challenger == line[0]:
                with decision_record.unless_refused():
                    client.delete_registered_model_alias(name, CHALLENGER)
        elif not kept:  # it is new
            client.set_registered_model_alias(name, CHALLENGER, decision.version)
    return True
