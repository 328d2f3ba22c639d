"""A command line as `mlflow run` takes it."""

import json
from pathlib import Path
from typing import Any

from pyclassify.slurm import plan
from pyclassify.slurm.plan import Plan

LIKE_MLFLOW = "the arguments of `mlflow run`"


def plan_like_mlflow(args: list[str]) -> Plan:
    """Read a command line as `mlflow run` does, and plan what it would do.

    Raises:
        ValueError: It is wrong.
    """
    import click
    from mlflow.cli import run
    from mlflow.projects.utils import PROJECT_ENV_MANAGER

    try:
        asked = run.make_context("pyclassify slurm", args).params
        given = dict(each.split("=", 1) for each in asked["param_list"])
    except click.UsageError as error:
        raise ValueError(f"{error.format_message().rstrip('.')}; {LIKE_MLFLOW} are taken") from None
    except ValueError:
        raise ValueError(f"-P takes NAME=VALUE, not {' '.join(asked['param_list'])}") from None
    backend_config = _read_config(asked["backend_config"])
    backend_config[PROJECT_ENV_MANAGER] = asked["env_manager"]
    return plan.make(asked["uri"], asked["entry_point"], given, asked["version"], backend_config)


def _read_config(given: str | None) -> dict[str, Any]:
    if given is None:
        return {}
    try:
        text = Path(given).read_text() if given.endswith(".json") else given
        read = json.loads(text)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--backend-config {given} can't be read ({error}); it takes a file that ends with "
            ".json, or JSON"
        ) from None
    if not isinstance(read, dict):
        raise ValueError(f"--backend-config {given} is no object in JSON, such as {{}}")
    return read
