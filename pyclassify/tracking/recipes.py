"""What is one recipe: all runs that differ by nothing but their seed and place.

Files won't do: one is edited between two runs, and none is named by a run on options alone.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

RECIPE = "pyclassify.recipe"
"""The tag of a run that names its recipe."""

# Settings that say where a run computes, and how much it tells of it: not what it comes to.
_PLACE = {
    "seed_everything",
    "data.init_args.data_path",
    *(
        f"trainer.{name}"
        for name in (
            "accelerator",
            "default_root_dir",
            "enable_model_summary",
            "enable_progress_bar",
            "log_every_n_steps",
            "logger",
        )
    ),
}


def recipe(config: Mapping[str, Any]) -> str:
    """Name what a configuration trains, alike for all runs that differ by seed and place alone.

    Args:
        config: As it was resolved.

    Returns:
        The names of network and data, and a digest of all else.
    """
    settings = json.dumps(_strip(config), sort_keys=True, default=str)
    network = config["model"].get("init_args", {}).get("model") or config["model"]
    names = [_last_name(part).removesuffix("DataModule") for part in (network, config["data"])]
    return f"{'-'.join(names)} {hashlib.sha256(settings.encode()).hexdigest()[:6]}"


def _strip(config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    return {
        key: _strip(value, f"{path}{key}.") if isinstance(value, dict) else value
        for key, value in config.items()
        if f"{path}{key}" not in _PLACE
    }


def _last_name(part: Any) -> str:
    path = part["class_path"] if isinstance(part, dict) else part
    return str(path).rsplit(".", 1)[-1]
