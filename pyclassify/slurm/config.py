"""The configuration of the backend: the JSON of `--backend-config`, validated."""

import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pyclassify.slurm.keys import KEYS, Config
from pyclassify.slurm.values import Kind

# What MLflow adds to what the user gave (mlflow.projects.utils, 3.17).
MLFLOW_KEYS = (
    *("ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR"),
    *("build_image", "docker_auth"),
)

# Options of sbatch that are not for the user to set, and why.
_REFUSED = {
    "array": "a run is one job",
    "chdir": "the job runs in its snapshot",
    "export": "the job gets the environment that it is submitted from",
    "gpus-per-node": "it follows from -P devices",
    "gpus-per-task": "it hides the other tasks' GPUs, so that two processes can't work together",
    "ntasks": "it follows from -P devices and -P num_nodes",
    "parsable": "the backend sets it",
    "test-only": "`pyclassify slurm check` asks that",
    "wait": 'give the key "wait"',
    "wrap": "the script is written by the backend",
}


def read(given: Mapping[str, Any]) -> Config:
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
    _check_arguments(config.sbatch_args)
    if config.container and config.environment not in (None, "none"):
        raise ValueError(
            f"container is {config.container!r} and environment {config.environment!r} in the "
            "backend config; give one of the two: what an image runs is in the image"
        )
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


def _check_arguments(arguments: tuple[str, ...]) -> None:
    options = {each.metadata["option"]: name for name, each in KEYS.items()}
    for each in arguments:
        option = each.partition("=")[0]
        if not option.startswith("-") or " " in option:
            raise ValueError(
                f"sbatch_args has {each!r} in the backend config; it takes options of sbatch, one "
                'an entry, such as "--licenses=matlab:1"'
            )
        name = option.lstrip("-")
        key = options.get(option, name.replace("-", "_"))
        if key in KEYS or name in _REFUSED:
            why = _REFUSED.get(name) or f'give the key "{key}"'
            raise ValueError(f"sbatch_args has {option} in the backend config; {why}")
