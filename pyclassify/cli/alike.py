"""A network is shown the images that it scores as it was shown those that it was trained on."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn


def show_alike(chosen: Any, kept: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Have a data module show the network its images as the network was shown those of its own.

    Args:
        chosen: The settings of a prediction, which are changed: its data module's options become
            those of the checkpoint, but for those that were given.
        kept: What the checkpoint keeps of the data (`ImageDataModule.state_dict`).
        given: The settings that were given, by dotted name.

    Raises:
        MisconfigurationException: How many classes there are is neither kept nor given.
    """
    options, network = (chosen[part].get("init_args", {}) for part in ("data", "model"))
    # Of no use here, and where a run's config.yaml is given, perhaps of another data module.
    options.pop("val_size", None)
    for name, value in kept.items():
        if value and name in options and f"data.{name}" not in given:
            options[name] = value
    if "classes" not in options or options["classes"] is not None:
        return
    if "num_classes" in network:
        count = given.get("model.num_classes")
        if count is None:
            raise MisconfigurationException(
                f"ckpt_path {chosen.ckpt_path} does not tell its classes; give their names by "
                "--data.classes='[cat, dog]', or their number by --model.num_classes"
            )
        options["classes"] = [str(number) for number in range(int(count))]
        rank_zero_warn("the checkpoint does not name its classes: the labels are numbers")
