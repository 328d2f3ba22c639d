"""A configuration as the parameters of a run: what people compare runs by.

Names are those of the options with slashes for dots, `model/learning_rate`: no `-P` of `mlflow run`
can have such a name, and what it stored as typed ("1e-3") can't be stored again in the one spelling
that all runs share ("0.001"). A class is called by its option alone, `model/model`, and so is a
function in its place; only at the top, where `-P model=...` has that name, it is `model/class`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

# What does not change what a network learns is told only where it was set to something else.
_QUIET = ("trainer", "checkpoint")
_NEVER = ("logger", "enable_progress_bar", "enable_model_summary")
_ALWAYS = ("trainer/accelerator", "trainer/devices", "trainer/max_epochs", "trainer/num_nodes")

_REFUSED = re.compile(r"[^\w. :-]|^\.+", re.ASCII)  # in a name, by MLflow's SQL store


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
