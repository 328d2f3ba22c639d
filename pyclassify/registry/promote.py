"""The commands that move the champion: `pyclassify promote` and `pyclassify rollback`.

No torch here: versions are compared by the predictions that their runs have logged.
"""

import argparse
import sys
from collections.abc import Callable, Sequence

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pyclassify.registry.champion import force_promotion, promote_if_better, roll_back_champion
from pyclassify.registry.decision import Decision
from pyclassify.registry.versions import find_existing_version, read_alias_state
from pyclassify.spool.store_errors import describe_server_error
from pyclassify.tracking.search import open_store, suggest_names
from pyclassify.utils.masking import mask
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.options import CommandParser


def promote(argv: Sequence[str]) -> int:
    """Compare a version with the champion again, or make it champion without a comparison.

    Args:
        argv: The command line after the command.

    Returns:
        The exit code: 1 where the version does not become champion.

    Raises:
        ValueError: The command line is invalid, there is no such version, or it is champion.
        OSError: There is no store.
    """
    options = _parse_promote(argv)

    def decide(client: MlflowClient) -> Decision:
        _check_version(client, options.name, options.version)
        if options.force:
            return force_promotion(client, options.name, options.version, options.why)
        bounds = {"alpha": options.alpha, "min_accuracy": options.min_accuracy}
        bounds = {key: value for key, value in bounds.items() if value is not None}
        return promote_if_better(client, options.name, options.version, recheck=True, **bounds)

    return 0 if _run_decision(options.name, decide).is_champion else 1


def rollback(argv: Sequence[str]) -> int:
    """Make the previous champion champion again.

    Args:
        argv: The command line after the command.

    Returns:
        The exit code.

    Raises:
        ValueError: The command line is invalid, there is no such model, or no previous champion.
        OSError: There is no store.
    """
    options = _parse_rollback(argv)
    _run_decision(
        options.name, lambda client: roll_back_champion(client, options.name, options.why)
    )
    return 0


def _parse_promote(argv: Sequence[str]) -> argparse.Namespace:
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
    options = parser.parse_args(argv)
    if options.force and not options.why.strip():
        parser.error("--force makes a version champion without evidence; say why by --why TEXT")
    if options.why and not options.force:
        parser.error("--why is of --force; without it the test images say why")
    if options.force and (options.alpha, options.min_accuracy) != (None, None):
        parser.error("--force asks for no evidence; leave out --alpha and --min-accuracy")
    return options


def _parse_rollback(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        prog="pyclassify rollback",
        description="Make the version of a registered model champion that was before.",
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="the registered model")
    parser.add_argument("--why", metavar="TEXT", default="", help="kept with the version")
    return parser.parse_args(argv)


def _run_decision(name: str, decide: Callable[[MlflowClient], Decision]) -> Decision:
    """Open the registry, decide about a version of a registered model, and print the decision."""
    configure_mlflow(retries=2)
    client = open_store()
    try:
        _check_model(client, name)
        decision = decide(client)
    except MlflowException as error:
        reason = describe_server_error(error)
        raise ValueError(
            f"the registry at {_get_registry_uri()} did not do it ({reason}); another one is named "
            "by MLFLOW_TRACKING_URI, or MLFLOW_REGISTRY_URI where it stands apart"
        ) from error
    sys.stdout.write(f"{decision.text}\n")
    return decision


def _check_model(client: MlflowClient, name: str) -> None:
    try:
        read_alias_state(client, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [model.name for model in client.search_registered_models(max_results=1000)]
        suggestion = suggest_names(name, names) if names else "it has none at all"
        raise ValueError(
            f"there is no registered model {name!r} at {_get_registry_uri()}; {suggestion}"
        ) from error


def _check_version(client: MlflowClient, name: str, version: str) -> None:
    if version.isdecimal() and find_existing_version(client, name, [version]):
        if read_alias_state(client, name).champion == version:
            raise ValueError(f"{name} version {version} is champion already")
        return
    found = client.search_model_versions(f"name = '{name}'")
    numbers = sorted(int(each.version) for each in found)
    existing = f"there are: {', '.join(map(str, numbers))}" if numbers else "it has none at all"
    raise ValueError(f"{name} has no version {version}; {existing}")


def _get_registry_uri() -> str:
    return str(mask(mlflow.get_registry_uri()))
