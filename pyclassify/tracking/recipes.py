"""What is one recipe: all runs that differ by nothing but their seed and place.

Files won't do: one is edited between two runs, and none is named by a run on options alone.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pyclassify.tracking.parameters import flatten, of_weights

RECIPE = "pyclassify.recipe"
"""The tag of a run that names its recipe."""

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
