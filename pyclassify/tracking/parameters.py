"""The parameters of a run, by which runs are compared, and the name of its recipe.

Parameters are a flat view of the configuration. Their names are those of the options with slashes
for dots, `model/learning_rate`: no `-P` of `mlflow run` can have such a name, and what it stored as
typed ("1e-3") can't be stored again in the one spelling that all runs share ("0.001"). A class is
named by its option alone, `model/model`, and so is a function in its place; only at the top, where
`-P model=...` has that name, it is `model/class`.

A recipe is what a run trains: all parameters except its seed and where and how it is executed.
"""

import hashlib
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.utils.options import walk_config

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECIPE_TAG = "pyclassify.recipe"

# Of these sections only settings that differ from the default become parameters, ...
_SECTIONS_BY_DIFFERENCE = ("trainer", "checkpoint")
# ... except these, which always do, ...
_ALWAYS = ("trainer/accelerator", "trainer/devices", "trainer/max_epochs", "trainer/num_nodes")
# ... and these of the trainer, which never do.
_NEVER = ("logger", "enable_progress_bar", "enable_model_summary")
_REFUSED_CHARACTERS = re.compile(r"[^\w. :-]|^\.+", re.ASCII)  # in a name, by MLflow's SQL store

# Parameters that say where and how a run is executed and logged, and don't change the recipe.
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
_AFTER_TRAINING = "register/"  # parameters of what is done with the trained network
# Paths tell the recipe only if no digest tells the content of the images or of the weights.
_DATA_PATH = "data/data_path"
_WEIGHTS_PATH = "model/weights"
# The values that options had before they existed, so that runs from before an upgrade and after it
# have the same recipe.
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
    # Which images were left out is told by the digest of the others.
    ("data/unreadable", "stop"),
    ("data/unreadable", "skip"),
}
# Options of the data that change how images are read and transformed, but not which images.
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
        defaults: The default configuration, for the sections of which only differences count.

    Returns:
        Names and values as MLflow accepts them, without the logger and the progress bar.
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
    """Make the parameter that identifies the initial weights, which a file's name does not."""
    return {"model/weights_sha256": weights["sha256"]} if weights else {}


def log_parameters(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Log the parameters that a run does not have yet.

    What `mlflow run` was given without a slash, such as ckpt_path, is there as it was typed.
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
        data: The data, as `record.describe_data` describes them.
        weights: The initial weights, as `describe_weights` describes them.

    Returns:
        The names of network and data, and a digest of everything else.
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
    """Name network and data by a run's parameters: `AlexNet-CIFAR10`."""
    network = params.get("model/model", params["model/class"])
    parts = [path.rsplit(".", 1)[-1] for path in (network, params["data/class"])]
    return "-".join(part.removesuffix("DataModule") for part in parts)


def describe_weights(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Describe the initial weights of a network by their content.

    Args:
        config: The resolved configuration, whose model may have an argument `weights`.

    Returns:
        The `file` and its `sha256`; None if the argument names no file.
    """
    weights = (config["model"].get("init_args") or {}).get("weights")
    if not isinstance(weights, str) or not Path(weights).expanduser().is_file():
        return None
    with Path(weights).expanduser().open("rb") as file:
        return {"file": weights, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def may_change_images(options: str) -> bool:
    """Whether command line options (`--data.val_size 10`) may change which images there are."""
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
        _REFUSED_CHARACTERS.sub("_", key) for key in path if key not in ("init_args", "dict_kwargs")
    ]
    if keys[-1] == "class_path":
        keys[-1:] = ["class"] if len(keys) == 2 and not prefix else []
    return "/".join([prefix, *keys] if prefix else keys)


def _flatten_value(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, list) and value and all(map(_is_class, value)):
        # Callbacks and the like are named by their classes, since their order has no meaning.
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
    """Cut a value that MLflow would cut, and say so in the value."""
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    if len(text) <= MAX_PARAM_VAL_LENGTH:
        return text
    note = f"... ({len(text):,} characters, whole in config.yaml)"
    return text[: MAX_PARAM_VAL_LENGTH - len(note)] + note
