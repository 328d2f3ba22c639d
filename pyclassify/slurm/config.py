"""The configuration of the backend: the JSON of `--backend-config`, validated."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pyclassify.slurm.arguments import check_sbatch
from pyclassify.slurm.credentials import check_kept
from pyclassify.slurm.keys import KEYS, Config
from pyclassify.slurm.values import Kind, seconds_of
from pyclassify.utils.masking import holds_credentials

# What MLflow adds to what the user gave (mlflow.projects.utils, 3.17).
MLFLOW_KEYS = (
    *("ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR"),
    *("build_image", "docker_auth"),
)


def parse_config(given: Mapping[str, Any]) -> Config:
    """Validate a configuration.

    Args:
        given: The JSON's keys, and those that MLflow adds.

    Raises:
        ValueError: There is an unknown key or a wrong value; what is allowed instead.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in MLFLOW_KEYS or value is None:
            continue
        if name not in KEYS:
            near = get_close_matches(name, KEYS, n=1)
            hint = f" (nearest: {near[0]})" if near else ""
            raise ValueError(
                f"the backend config has no key {name!r}{hint}; there are {', '.join(sorted(KEYS))}"
            )
        found[name] = _read_value(name, value)
    config = Config(**found)
    check_sbatch(config.sbatch_args)
    lists = ("modules", "setup", "sbatch_args", "srun_args")
    check_kept({name: getattr(config, name) for name in lists})
    _check_texts(found)
    if config.container and config.environment not in (None, "none"):
        raise ValueError(
            f"container is {config.container!r} and environment {config.environment!r} in the "
            "backend config; give one of the two: what an image runs is in the image"
        )
    _check_requeue(config, given)
    missing = [name for name, text in config.exports if text is None]
    if absent := [name for name in missing if name not in os.environ]:
        raise ValueError(
            f"exports.{absent[0]} is null in the backend config, and {absent[0]} is not set here; "
            "export it in this shell first"
        )
    return config


def _read_value(name: str, value: Any) -> Any:
    kind: Kind = KEYS[name].metadata["kind"]
    try:
        return kind.read(value)
    except ValueError as error:
        why = f" ({error})" if str(error) else ""
        # What looks like a credential is not repeated.
        shown = name if name == "exports" else f"{name} is {value!r}"
        raise ValueError(f"{shown} in the backend config{why}; it takes {kind.takes}") from None


def _check_requeue(config: Config, given: Mapping[str, Any]) -> None:
    if not config.requeue:
        for name in ("requeue_seconds", "requeue_attempts"):
            if getattr(config, name) is not None:
                raise ValueError(
                    f"{name} is {given[name]} in the backend config, which is for a job that "
                    f'starts again; give "requeue": true too, or leave {name} out'
                )
        return
    if config.signal is not None:
        raise ValueError(
            f"signal is {config.signal!r} and requeue is true in the backend config, and SLURM "
            "sends a job one signal before its time limit, which is USR1 to the script here; leave "
            'signal out, and say by "requeue_seconds" how long before'
        )
    if config.time is not None and 0 < seconds_of(config.time) <= config.warning:
        raise ValueError(
            f"time is {config.time!r} in the backend config, and the job is told to leave "
            f'{config.warning} seconds before that; give more "time", or less "requeue_seconds"'
        )


def _check_texts(found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if holds_credentials("backend_config.json", str(value).encode()):
            raise ValueError(
                f"{name} has a credential in it in the backend config, and both the config and the "
                "script are kept with the run; have the job read it from a variable, which "
                '"exports" takes with null'
            )
