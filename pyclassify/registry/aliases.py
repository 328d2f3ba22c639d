"""Who is champion of a registered model, who challenges, and who was champion before."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CHAMPION, CHALLENGER = "champion", "challenger"
HISTORY = "champions"  # a tag of the registered model: versions, the newest first
LONGEST = 1000  # of the history


@dataclass(frozen=True)
class Version:
    """A version of a registered model: its name, its number as text, its run, its tags."""

    name: str
    number: str
    run_id: str
    tags: Mapping[str, str]


@dataclass(frozen=True)
class Standing:
    """What a registered model's aliases and history say.

    Args:
        champion: The version with the alias, empty where none has it.
        challenger: The same of the other alias.
        history: The versions that were champion, the newest first; the alias may have been moved by
            hand since, and some may be deleted.
    """

    champion: str
    challenger: str
    history: tuple[str, ...]

    @property
    def line(self) -> tuple[str, ...]:
        """The champion and those before it, the newest first."""
        if not self.champion or self.history[:1] == (self.champion,):
            return self.history
        return (self.champion, *self.history)

    def led_by(self, version: str) -> tuple[str, ...]:
        """The same once a version is champion."""
        return self.line if self.line[:1] == (version,) else (version, *self.line)


def read_standing(client: Any, name: str) -> Standing:
    """Ask the registry."""
    model = client.get_registered_model(name)
    aliases = {alias: str(version) for alias, version in model.aliases.items()}
    history = tuple(model.tags.get(HISTORY, "").split())
    return Standing(aliases.get(CHAMPION, ""), aliases.get(CHALLENGER, ""), history)


def get_version(client: Any, name: str, number: str) -> Version:
    """Ask the registry for a version, which gives its number as one type or another."""
    found = client.get_model_version(name, number)
    return Version(name, str(found.version), found.run_id or "", dict(found.tags))


def find_first(client: Any, name: str, versions: Iterable[str]) -> Version | None:
    """The first of some versions that is not deleted."""
    from mlflow.exceptions import MlflowException

    for version in versions:
        try:
            return get_version(client, name, version)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
    return None
