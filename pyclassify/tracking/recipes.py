"""What is one recipe: all runs that differ by nothing but their seed and place.

Files won't do: one is edited between two runs, and none is named by a run on options alone.
"""

import hashlib
import json
from collections.abc import Mapping, Set
from typing import Any

RECIPE = "pyclassify.recipe"
"""The tag of a run that names its recipe."""

# Settings that say where a run computes, and how much it tells of it: not what it comes to.
_PLACE = (
    "seed_everything",
    "trainer.accelerator",
    "trainer.default_root_dir",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
)
# Where images lie says which they are only if nothing says it better.
_FOLDER = "data.init_args.data_path"


def recipe(config: Mapping[str, Any], data: Mapping[str, Any] | None = None) -> str:
    """Name what a configuration trains, alike for all runs that differ by seed and place alone.

    Args:
        config: As it was resolved.
        data: What `dataset.describe` says of the data.

    Returns:
        The names of network and data, and a digest of all else.
    """
    sets = data["sets"] if data else {}
    left_out = {*_PLACE, _FOLDER} if sets else {*_PLACE}
    settings = json.dumps([_strip(config, left_out), sets], sort_keys=True, default=str)
    network = config["model"].get("init_args", {}).get("model") or config["model"]
    names = [_last_name(part).removesuffix("DataModule") for part in (network, config["data"])]
    return f"{'-'.join(names)} {hashlib.sha256(settings.encode()).hexdigest()[:6]}"


def _strip(config: Mapping[str, Any], left_out: Set[str], path: str = "") -> dict[str, Any]:
    return {
        key: _strip(value, left_out, f"{path}{key}.") if isinstance(value, dict) else value
        for key, value in config.items()
        if f"{path}{key}" not in left_out
    }


def _last_name(part: Any) -> str:
    path = part["class_path"] if isinstance(part, dict) else part
    return str(path).rsplit(".", 1)[-1]
