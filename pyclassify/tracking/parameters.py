"""A configuration as the parameters of a run: what people compare runs by.

Names are those of the options with slashes for dots, `model/learning_rate`: no `-P` of `mlflow run`
can have such a name, and what it stored as typed ("1e-3") can't be stored again in the one spelling
that all runs share ("0.001"). A class is called by its option alone, `model/model`, and so is a
function in its place; only at the top, where `-P model=...` has that name, it is `model/class`.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# What does not change what a network learns is told only where it was set to something else.
_QUIET = ("trainer", "checkpoint")
_NEVER = ("logger", "enable_progress_bar", "enable_model_summary")
_ALWAYS = ("trainer/accelerator", "trainer/devices", "trainer/max_epochs", "trainer/num_nodes")
_REFUSED = re.compile(r"[^\w. :-]|^\.+", re.ASCII)  # in a name, by MLflow's SQL store
RECIPE = "pyclassify.recipe"
# Parameters that say where a run computes, and how much it tells of it: not what it comes to.
_PLACE = {
    "seed_everything",
    "data/num_workers",
    "model/channels_last",  # changes rounding at most, as the accelerator does
    "model/flip_test",
    "trainer/accelerator",
    "trainer/default_root_dir",
    "trainer/enable_checkpointing",
    "trainer/log_every_n_steps",
    "trainer/profiler",
}
# What becomes of the network once it is trained.
_AFTER = "register/"
# Where images lie says which they are only if nothing says it better.
_FOLDER = "data/data_path"
_FILE = "model/weights"  # likewise
# What a setting is when it is not given, or was before there was such a setting: runs from before
# an upgrade and after it are of one recipe.
_SAME = {
    ("trainer/precision", "32-true"),
    ("trainer/precision", "32"),
    ("data/pad", "0"),
    ("data/erase", "0"),
    ("data/color", "0.0"),
    ("data/exact", "true"),
    ("model/label_smoothing", "0.0"),
    ("model/decay_biases", "true"),
    ("model/compile", "false"),
}


def flatten(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, str]:
    """Spell a configuration, one parameter for each value that is set.

    Args:
        config: The resolved configuration.
        defaults: The one that nobody set anything in.

    Returns:
        Names and values as MLflow takes them, without settings of the logger and of what the
        terminal shows.
    """
    usual = dict(_spell_all(defaults))
    return {
        name: value
        for name, value in _spell_all(config)
        if name.split("/")[0] not in _QUIET or name in _ALWAYS or usual.get(name) != value
    }


def of_weights(weights: Mapping[str, str] | None) -> dict[str, str]:
    """The parameter that tells the first weights, which a file's name does not."""
    return {"model/weights_sha256": weights["sha256"]} if weights else {}


def log(client: Any, run_id: str, params: Mapping[str, str]) -> None:
    """Log the parameters that a run does not have yet.

    What `mlflow run` was given without a slash, such as ckpt_path, is there as it was typed.
    """
    from mlflow.entities import Param

    there = client.get_run(run_id).data.params
    new = [Param(*item) for item in params.items() if item[0] not in there]
    client.log_batch(run_id, params=new)


def _spell_all(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if key == "trainer":
            value = {name: inner for name, inner in value.items() if name not in _NEVER}
        yield from _spell(key, value)


def _spell(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if _is_class(value):
        yield from _spell(name if "/" in name else f"{name}/class", value["class_path"])
        for arguments in ("init_args", "dict_kwargs"):
            yield from _spell(name, value.get(arguments))
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _spell(f"{name}/{_REFUSED.sub('_', str(key))}", inner)
    elif isinstance(value, list) and value and all(map(_is_class, value)):
        # Callbacks and the like, by what they are: their order says nothing.
        seen: Counter[str] = Counter()
        for each in value:
            short = str(each["class_path"]).rsplit(".", 1)[-1]
            seen[short] += 1
            again = f":{seen[short]}" if seen[short] > 1 else ""
            yield from _spell(f"{name}/{short}{again}", each)
    elif value is not None:
        text = value if isinstance(value, str) else json.dumps(value)
        yield name, _shorten(text)


def _is_class(value: Any) -> bool:
    return isinstance(value, Mapping) and "class_path" in value


def _shorten(text: str) -> str:
    """Cut a value where MLflow would, but say so."""
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

    if len(text) <= MAX_PARAM_VAL_LENGTH:
        return text
    note = f"... ({len(text):,} characters, whole in config.yaml)"
    return text[: MAX_PARAM_VAL_LENGTH - len(note)] + note


"""The tag of a run that names its recipe."""


def recipe(
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    weights: Mapping[str, str] | None = None,
) -> str:
    """Name what a configuration trains, alike for all runs that differ by seed and place alone.

    Args:
        config: As it was resolved.
        data: What `dataset.describe` says of the data.
        weights: What `weights.describe` says of the weights that it starts from.

    Returns:
        The names of network and data, and a digest of all else.
    """
    sets = data["sets"] if data else {}
    left_out = _PLACE | ({_FOLDER} if sets else set()) | ({_FILE} if weights else set())
    params = {**flatten(config, {}), **of_weights(weights)}
    told = sorted(params.items() - _SAME)
    told = [each for each in told if each[0] not in left_out and not each[0].startswith(_AFTER)]
    content = json.dumps([told, sets], sort_keys=True)
    return f"{name_parts(params)} {hashlib.sha256(content.encode()).hexdigest()[:6]}"


def name_parts(params: Mapping[str, str]) -> str:
    """Name network and data by a run's parameters, `AlexNet-CIFAR10`."""
    network = params.get("model/model", params["model/class"])
    parts = [path.rsplit(".", 1)[-1] for path in (network, params["data/class"])]
    return "-".join(part.removesuffix("DataModule") for part in parts)


def describe(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Tell a network's first weights by their content.

    Args:
        config: A resolved configuration; the model in it may have an argument `weights`.

    Returns:
        The `file` and its `sha256`; nothing where that argument names no file.
    """
    given = (config["model"].get("init_args") or {}).get("weights")
    if not isinstance(given, str) or not Path(given).expanduser().is_file():
        return None
    with Path(given).expanduser().open("rb") as file:
        return {"file": given, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
