"""`pyclassify promote` and `pyclassify rollback`: the champion, moved by hand."""

import argparse
import sys
from collections.abc import Callable, Sequence

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pyclassify.registry.champion import force_promotion, promote_if_better, roll_back_champion
from pyclassify.registry.decision import Decision
from pyclassify.registry.versions import find_existing_version, read_alias_state
from pyclassify.spool.server import configure_mlflow
from pyclassify.tracking.search import open_store, suggest_names
from pyclassify.utils.masking import mask
from pyclassify.utils.options import CommandParser
from pyclassify.utils.text import format_error


def promote(args: Sequence[str]) -> int:
    """Judge a version again, or make it champion without.

    Args:
        args: The command line after the verb.

    Returns:
        The exit code: 1 where the version is not champion after all.

    Raises:
        ValueError: The command line is wrong, or there is no such version, or it is champion.
        OSError: There is no store.
    """
    asked = _parse_promote(args)

    def decide(client: MlflowClient) -> Decision:
        _find_version(client, asked.name, asked.version)
        if asked.force:
            return force_promotion(client, asked.name, asked.version, asked.why)
        bounds = {"alpha": asked.alpha, "min_accuracy": asked.min_accuracy}
        given = {key: value for key, value in bounds.items() if value is not None}
        return promote_if_better(client, asked.name, asked.version, recheck=True, **given)

    return 0 if _carry_out(asked.name, decide).is_champion else 1


def rollback(args: Sequence[str]) -> int:
    """Make the version champion that was before.

    Args:
        args: The command line after the verb.

    Returns:
        The exit code.

    Raises:
        ValueError: The command line is wrong, or there is no such model, or no champion before.
        OSError: There is no store.
    """
    parser = CommandParser(
        prog="pyclassify rollback",
        description="Make the version of a registered model champion that was before.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="the registered model")
    parser.add_argument("--why", metavar="TEXT", default="", help="kept with the version")
    asked = parser.parse_args(args)
    _carry_out(asked.name, lambda client: roll_back_champion(client, asked.name, asked.why))
    return 0


def _parse_promote(args: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="pyclassify promote",
        description="Make a version of a registered model champion, if it is better than the "
        "champion on the same test images by more than luck.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="the registered model")
    parser.add_argument("version", metavar="VERSION", help="its version, a number")
    parser.add_argument(
        "--alpha", type=float, metavar="P", help="the largest p-value, not itself (default: 0.05)"
    )
    parser.add_argument(
        "--min-accuracy", type=float, metavar="A", help="of the first version (default: 0)"
    )
    parser.add_argument("--force", action="store_true", help="whatever the test images say")
    parser.add_argument("--why", metavar="TEXT", default="", help="with --force: kept with it")
    asked = parser.parse_args(args)
    if asked.force and not asked.why.strip():
        parser.error("--force makes a version champion without evidence; say why by --why TEXT")
    if asked.why and not asked.force:
        parser.error("--why is of --force; without it the test images say why")
    if asked.force and (asked.alpha, asked.min_accuracy) != (None, None):
        parser.error("--force asks for no evidence; leave out --alpha and --min-accuracy")
    return asked


def _carry_out(name: str, decide: Callable[[MlflowClient], Decision]) -> Decision:
    """Open the registry, have a decision made, and say what it is."""
    configure_mlflow(retries=2)
    client = open_store()
    try:
        _find_model(client, name)
        decision = decide(client)
    except MlflowException as error:
        reason = format_error(error)
        raise ValueError(
            f"the registry at {_address()} did not do it ({reason}); another one is named by "
            "MLFLOW_TRACKING_URI, or MLFLOW_REGISTRY_URI where it stands apart"
        ) from error
    sys.stdout.write(f"{decision.text}\n")
    return decision


def _find_model(client: MlflowClient, name: str) -> None:
    try:
        read_alias_state(client, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [each.name for each in client.search_registered_models(max_results=1000)]
        there = suggest_names(name, names) if names else "it has none at all"
        raise ValueError(
            f"there is no registered model {name!r} at {_address()}; {there}"
        ) from error


def _find_version(client: MlflowClient, name: str, version: str) -> None:
    if version.isdecimal() and find_existing_version(client, name, [version]):
        if read_alias_state(client, name).champion == version:
            raise ValueError(f"{name} version {version} is champion already")
        return
    known = sorted(int(each.version) for each in client.search_model_versions(f"name = '{name}'"))
    there = f"there are: {', '.join(map(str, known))}" if known else "it has none at all"
    raise ValueError(f"{name} has no version {version}; {there}")


def _address() -> str:
    return str(mask(mlflow.get_registry_uri()))
