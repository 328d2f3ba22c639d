"""The parameters of a run, by which runs are compared, and the name of its recipe.

Parameters are a flat view of the configuration. Their names are the names of the options with
slashes instead of dots: `model/learning_rate`. `mlflow run -P` can't set a parameter with a slash.
This matters since it logs a value as typed ("1e-3"), and MLflow does not allow to change it to the
common spelling ("0.001"). A class or function is the value of its option, `model/model`. At the top
level, where `-P model=...` takes the name, it is `model/class`.

A recipe is all parameters of a run except the seed and those of the execution, such as devices.
"""

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.utils.options import walk_config

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECIPE_TAG = "pyclassify.recipe"

# Settings in these sections become parameters only if they differ from the default, ...
_SECTIONS_BY_DIFFERENCE = ("trainer", "checkpoint")
# ... except these, which are always parameters, ...
_ALWAYS = ("trainer/accelerator", "trainer/devices", "trainer/max_epochs", "trainer/num_nodes")
# ... and these settings of the trainer, which never are.
_NEVER = ("logger", "enable_progress_bar", "enable_model_summary")
_INVALID_CHARACTERS = re.compile(r"[^\w. :-]|^\.+", re.ASCII)  # in names, for MLflow's SQL store

# Parameters of the execution and the logging, which don't belong to the recipe.
_EXECUTION = {
    "seed_everything",
    "data/num_workers",
    "model/channels_last",  # changes rounding at most, as the accelerator does
    "model/flip_tta",
    "trainer/accelerator",
    "trainer/default_root_dir",
    "trainer/enable_checkpointing",
    "trainer/log_every_n_steps",
    "trainer/profiler",
}
_AFTER_TRAINING = "register/"  # the prefix of parameters for the trained network
# Paths belong to the recipe only if there is no digest of the images or of the weights.
_DATA_PATH = "data/data_path"
_WEIGHTS_PATH = "model/weights"
# Values of options that are equivalent to the behavior before these options existed, so that runs
# before and after an upgrade have the same recipe.
_INITIAL_VALUES = {
    ("trainer/precision", "32-true"),
    ("trainer/precision", "32"),
    ("data/random_crop_padding", "0"),
    ("data/cutout", "0"),
    ("data/color_jitter", "0.0"),
    ("data/float_resize", "true"),
    ("model/label_smoothing", "0.0"),
    ("model/decay_bias_and_norm", "true"),
    ("model/compile", "false"),
    # The digest of the images shows which files were skipped.
    ("data/unreadable", "stop"),
    ("data/unreadable", "skip"),
}
# Options that change how images are read and transformed, but don't select other images.
_SAME_IMAGES = {
    *(name for name in _EXECUTION if name.startswith("data/")),
    _DATA_PATH,
    *(
        "data/batch_size",
        "data/float_resize",
        "data/cache",
        "data/resize",
        "data/crop",
        "data/random_crop_padding",
    ),
    *("data/horizontal_flip", "data/cutout", "data/color_jitter", "data/mean", "data/std"),
}


def flatten_parameters(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a configuration to parameters, one for each value that is set.

    Args:
        config: The resolved configuration.
        defaults: The default configuration, for sections whose default values are omitted.

    Returns:
        Names and values that MLflow accepts, without those of the logger and the progress bar.

    Example:
        >>> flatten_parameters({"model": {"init_args": {"learning_rate": 0.001}}}, {})
        {'model/learning_rate': '0.001'}
    """
    default_parameters = dict(_flatten(defaults))
    return {
        name: value
        for name, value in _flatten(config)
        if name.split("/")[0] not in _SECTIONS_BY_DIFFERENCE
        or name in _ALWAYS
        or default_parameters.get(name) != value
    }


def make_weights_parameters(weights: Mapping[str, str] | None) -> dict[str, str]:
    """Make the parameter with the SHA-256 of the initial weights; empty without weights."""
    return {"model/weights_sha256": weights["sha256"]} if weights else {}


def log_parameters(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Log the parameters that a run does not have yet.

    `mlflow run -P` has already logged those without a slash, such as ckpt_path, as typed.
    """
    from mlflow.entities import Param

    logged = client.get_run(run_id).data.params
    new = [Param(name, value) for name, value in params.items() if name not in logged]
    client.log_batch(run_id, params=new)


def name_recipe(
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    weights: Mapping[str, str] | None = None,
) -> str:
    """Name a configuration's recipe: the same for runs that differ only by seed and execution.

    Args:
        config: The resolved configuration.
        data: The result of `record.describe_data`.
        weights: The result of `describe_weights`.

    Returns:
        The names of network and data, and 6 digits of a digest of all other parameters.
    """
    sets = data["splits"] if data else {}
    ignored = {*_EXECUTION, *([_DATA_PATH] if sets else []), *([_WEIGHTS_PATH] if weights else [])}
    params = {**flatten_parameters(config, {}), **make_weights_parameters(weights)}
    relevant = [
        (name, value)
        for name, value in sorted(params.items() - _INITIAL_VALUES)
        if name not in ignored and not name.startswith(_AFTER_TRAINING)
    ]
    content = json.dumps([relevant, sets], sort_keys=True)
    return f"{name_network_and_data(params)} {hashlib.sha256(content.encode()).hexdigest()[:6]}"


def name_network_and_data(params: Mapping[str, str]) -> str:
    """Name the network and the data of a run: `AlexNet-CIFAR10`."""
    network = params.get("model/model", params["model/class"])
    parts = [path.rsplit(".", 1)[-1] for path in (network, params["data/class"])]
    return "-".join(part.removesuffix("DataModule") for part in parts)


def describe_weights(
    config: Mapping[str, Any], find_file: Callable[[str], Path]
) -> dict[str, str] | None:
    """Describe the file of a network's initial weights.

    Args:
        config: The resolved configuration. Its model may have an argument `weights`.
        find_file: Finds the file of weights that are a path, a run's ID or a model.

    Returns:
        The `file` and its `sha256`; None if the argument is missing or does not name a file.
    """
    weights = (config["model"].get("init_args") or {}).get("weights")
    if not isinstance(weights, str):
        return None
    path = find_file(weights)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return {"file": weights, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def may_change_images(options: str) -> bool:
    """Whether command line options such as `--data.val_size 10` may select other images."""
    words = [word for word in shlex.split(options) if word.startswith("--")]
    names = [word.partition("=")[0].removeprefix("--").removesuffix("+") for word in words]
    return any(
        name.split(".")[0] == "data" and f"data/{name.rsplit('.', 1)[-1]}" not in _SAME_IMAGES
        for name in names
    )


def _flatten(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for path, value in walk_config(config):
        if path[0] == "trainer" and path[1:] and path[1] in _NEVER:
            continue
        yield from _flatten_value(_name_parameter(path), value)


def _name_parameter(path: Sequence[str], prefix: str = "") -> str:
    keys = [
        _INVALID_CHARACTERS.sub("_", key) for key in path if key not in ("init_args", "dict_kwargs")
    ]
    if keys[-1] == "class_path":
        keys[-1:] = ["class"] if len(keys) == 2 and not prefix else []
    return "/".join([prefix, *keys] if prefix else keys)


def _flatten_value(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and value and all(map(_is_class, value)):
        # Callbacks and similar lists are named by class, since their order has no meaning.
        counts: Counter[str] = Counter()
        for item in value:
            class_name = str(item["class_path"]).rsplit(".", 1)[-1]
            counts[class_name] += 1
            suffix = f":{counts[class_name]}" if counts[class_name] > 1 else ""
            for path, inner in walk_config(item):
                item_name = _name_parameter(path, prefix=f"{name}/{class_name}{suffix}")
                yield from _flatten_value(item_name, inner)
    elif value is not None:
        text = value if isinstance(value, str) else json.dumps(value)
        yield name, _shorten(text)


def _is_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _shorten(text: str) -> str:
    """Truncate a value that is too long for MLflow, with a note in the value."""
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    if len(text) <= MAX_PARAM_VAL_LENGTH:
        return text
    note = f"... ({len(text):,} characters; see config.yaml)"
    return text[: MAX_PARAM_VAL_LENGTH - len(note)] + note
