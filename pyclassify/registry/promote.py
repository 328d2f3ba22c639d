"""The commands of registered models: `pyclassify register`, `promote` and `rollback`.

No torch here: versions are compared by the predictions that their runs logged. MLflow is imported
after the command line is parsed, so that `--help` is fast.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypedDict

from pyclassify.registry.champion import force_promotion, promote_if_better, roll_back_champion
from pyclassify.registry.decision import Decision, check_bounds
from pyclassify.registry.versions import (
    NAME_RULE,
    complete_version,
    find_existing_version,
    find_model,
    format_serve_command,
    is_valid_name,
    read_alias_state,
    register_version,
)
from pyclassify.spool.store_errors import describe_server_error
from pyclassify.utils.masking import mask
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.options import CommandParser

if TYPE_CHECKING:
    from mlflow import MlflowClient


class _Bounds(TypedDict):
    alpha: float
    min_accuracy: float


def register(argv: Sequence[str]) -> int:
    """Register the model of a run as a version, and compare the version with the champion.

    The command is idempotent: a model that is registered is not registered again.

    Args:
        argv: The command line after the command.

    Returns:
        The exit code.

    Raises:
        UsageError: The command line is invalid.
        ValueError: The run does not exist, or has no model.
        OSError: The store does not exist.
    """
    options = _parse_register(argv)

    def decide(client: "MlflowClient") -> Decision:
        from pyclassify.tracking.search import find_run

        model = find_model(client, find_run(client, options.run_id))
        version = register_version(client, model.model_id, options.name)
        return promote_if_better(client, options.name, version, **_get_bounds(options))

    decision = _run_decision(decide)
    if decision.is_champion:
        command = format_serve_command(f"models:/{decision.name}/{decision.version}")
        sys.stdout.write(f"\nserve          {command}\n")
    return 0


def promote(argv: Sequence[str]) -> int:
    """Compare a version with the champion, or make it champion without a comparison.

    Args:
        argv: The command line after the command.

    Returns:
        The exit code: 1 if the version does not become champion.

    Raises:
        UsageError: The command line is invalid.
        ValueError: The version does not exist, or is already champion.
        OSError: The store does not exist.
    """
    options = _parse_promote(argv)

    def decide(client: "MlflowClient") -> Decision:
        _check_model(client, options.name)
        _check_version(client, options.name, options.version)
        complete_version(client, options.name, options.version)
        if options.force:
            return force_promotion(client, options.name, options.version, options.reason)
        bounds = _get_bounds(options)
        return promote_if_better(client, options.name, options.version, recheck=True, **bounds)

    return 0 if _run_decision(decide).is_champion else 1


def rollback(argv: Sequence[str]) -> int:
    """Restore the previous champion.

    Args:
        argv: The command line after the command.

    Returns:
        The exit code.

    Raises:
        UsageError: The command line is invalid.
        ValueError: The model does not exist, or has no previous champion.
        OSError: The store does not exist.
    """
    options = _parse_rollback(argv)

    def decide(client: "MlflowClient") -> Decision:
        _check_model(client, options.name)
        return roll_back_champion(client, options.name, options.reason)

    _run_decision(decide)
    return 0


def _parse_register(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        "pyclassify register",
        description="Register the newest model of a run as a version of a registered model, and "
        "compare it with the champion on the same test images. The version becomes champion if it "
        "is significantly better (McNemar's exact test), or if it is the first.",
        examples=[
            "pyclassify register 3f2a9c1e alexnet",
            "pyclassify register 3f2a9c1e alexnet --min-accuracy 0.6 --alpha 0.01",
        ],
    )
    parser.add_argument(
        "run_id", metavar="RUN_ID", help="give the ID of the run, or its first 8 or more digits"
    )
    parser.add_argument(
        "name", metavar="NAME", help="name the registered model; it is created if it is missing"
    )
    _add_bounds(parser)
    options: argparse.Namespace = parser.parse_args(argv)
    if not is_valid_name(options.name):
        parser.error(f"invalid NAME: {options.name!r} ({NAME_RULE})")
    _check_bounds(parser, options)
    return options


def _parse_promote(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        "pyclassify promote",
        description="Compare a version of a registered model with the champion on the same test "
        "images, and make it champion if it is significantly better (McNemar's exact test). Exit "
        "with 1 if the champion stays.",
        examples=[
            "pyclassify promote alexnet 4",
            "pyclassify promote alexnet 4 --alpha 0.01",
            'pyclassify promote alexnet 4 --force --reason "half the size"',
        ],
    )
    parser.add_argument("name", metavar="NAME", help="name the registered model")
    parser.add_argument("version", metavar="VERSION", help="give the number of its version")
    _add_bounds(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="make the version champion without a comparison; needs --reason",
    )
    parser.add_argument(
        "--reason",
        metavar="TEXT",
        default="",
        help="with --force, save TEXT with the decision, your user name and the time",
    )
    options = parser.parse_args(argv)
    if not options.version.isdecimal():
        parser.error(f"invalid VERSION: {options.version!r} (expected a number, such as 3)")
    if options.force and not options.reason.strip():
        parser.error("--force makes no comparison; give your reason by --reason TEXT")
    if options.reason and not options.force:
        parser.error("--reason needs --force")
    if options.force and (options.alpha, options.min_accuracy) != (None, None):
        parser.error("--force makes no comparison; leave out --alpha and --min-accuracy")
    _check_bounds(parser, options)
    return options


def _parse_rollback(argv: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        "pyclassify rollback",
        description="Give the alias `champion` of a registered model back to the version that had "
        "it before. Deleted versions are skipped.",
        examples=[
            "pyclassify rollback alexnet",
            'pyclassify rollback alexnet --reason "too slow on a CPU"',
        ],
    )
    parser.add_argument("name", metavar="NAME", help="name the registered model")
    parser.add_argument(
        "--reason",
        metavar="TEXT",
        default="",
        help="save TEXT with the decision, your user name and the time",
    )
    options: argparse.Namespace = parser.parse_args(argv)
    return options


def _add_bounds(parser: CommandParser) -> None:
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="P",
        help="promote only if the p-value is below P, in (0, 1) (default: 0.05)",
    )
    parser.add_argument(
        "--min-accuracy",
        type=float,
        metavar="A",
        help="promote a first version only if its accuracy is at least A, in [0, 1] (default: 0)",
    )


def _check_bounds(parser: CommandParser, options: argparse.Namespace) -> None:
    try:
        check_bounds(**_get_bounds(options))
    except ValueError as error:
        parser.error(str(error))


def _get_bounds(options: argparse.Namespace) -> "_Bounds":
    alpha = 0.05 if options.alpha is None else options.alpha
    return {"alpha": alpha, "min_accuracy": options.min_accuracy or 0.0}


def _run_decision(decide: "Callable[[MlflowClient], Decision]") -> Decision:
    """Open the registry, decide about a version of a registered model, and print the decision."""
    from mlflow.exceptions import MlflowException

    from pyclassify.tracking.search import open_store

    configure_mlflow(retries=2)
    client = open_store()
    try:
        decision = decide(client)
    except MlflowException as error:
        reason = describe_server_error(error)
        tracking, registry = mask(client.tracking_uri), _get_registry_uri()
        separate = "" if registry == tracking else f", or the model registry at {registry},"
        raise ValueError(
            f"the tracking server at {tracking}{separate} failed ({reason}); to use another one, "
            "set MLFLOW_TRACKING_URI, or MLFLOW_REGISTRY_URI if the registry is separate"
        ) from error
    sys.stdout.write(f"{decision.text}\n")
    return decision


def _check_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    from pyclassify.tracking.search import suggest_names

    try:
        read_alias_state(client, name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [model.name for model in client.search_registered_models(max_results=1000)]
        raise ValueError(
            f"there is no registered model {name!r} at {_get_registry_uri()}"
            f"{suggest_names(name, names, 'registered models')}"
        ) from error


def _check_version(client: "MlflowClient", name: str, version: str) -> None:
    if find_existing_version(client, name, [version]):
        if read_alias_state(client, name).champion == version:
            raise ValueError(f"{name} version {version} is already champion")
        return
    found = client.search_model_versions(f"name = '{name}'")
    numbers = sorted(int(version.version) for version in found)
    existing = f"its versions: {', '.join(map(str, numbers))}" if numbers else "it has no versions"
    raise ValueError(f"{name} has no version {version}; {existing}")


def _get_registry_uri() -> str:
    import mlflow

    return str(mask(mlflow.get_registry_uri()))
