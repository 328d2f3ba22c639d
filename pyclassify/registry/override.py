"""The champion by a person's word: forced, or as it was before."""

import getpass
import os
from typing import Any

from pyclassify.registry import decision_record
from pyclassify.registry.aliases import Standing, find_first, get_version, read_standing
from pyclassify.registry.decision import FORCED, ROLLED_BACK, Decision
from pyclassify.registry.settlement import settle


def force(client: Any, name: str, version: str, why: str) -> Decision:
    """Make a version champion without evidence, and keep who did it, when and why.

    Raises:
        ValueError: It is champion.
        MlflowException: The registry does not know it, or refuses.
    """
    while True:  # until no other changes anything meanwhile
        forced, standing = get_version(client, name, version), read_standing(client, name)
        if standing.champion == forced.number:
            raise ValueError(f"{name} version {version} is champion already")
        before = standing.champion or None
        decision = Decision(name, forced.number, FORCED, before, by=_who(), why=why)
        decision = decision_record.stamp(decision, None)
        if settle(client, standing, forced, decision, standing.led_by(forced.number)):
            return decision


def roll_back(client: Any, name: str, why: str = "") -> Decision:
    """Make the version champion that was before, and keep who did it, when and why.

    Versions that were deleted since are passed over.

    Raises:
        ValueError: No version was champion before.
        MlflowException: The registry does not know the model, or refuses.
    """
    while True:  # until no other changes anything meanwhile
        standing = read_standing(client, name)
        before = [each for each in standing.line if each != standing.champion]
        found = find_first(client, name, before)
        if found is None:
            raise ValueError(_nothing_before(name, standing, before))
        head = standing.line[0]
        last = find_first(client, name, [head]) if head != found.number else None
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
        decision = decision_record.stamp(decision, None)
        line = standing.line[standing.line.index(found.number) :]
        if settle(client, standing, last, decision, line):
            return decision


def _nothing_before(name: str, standing: Standing, before: list[str]) -> str:
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
