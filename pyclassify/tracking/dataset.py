"""The data of a run, told by their content: as an MLflow input, and against another run's."""

import json
import shlex
from typing import Any

from pyclassify.tracking import capsule
from pyclassify.tracking.capsule import OVERRIDDEN, SOURCE_RUN

# Options of the data that change how images are fed, or where they lie, but not which they are.
_SAME_IMAGES = (
    *("batch_size", "data_path", "num_workers", "exact", "cache"),
    *("resize", "crop", "pad", "flip", "erase", "color", "mean", "std"),
)


def describe(datamodule: Any) -> dict[str, Any] | None:
    """Describe what a data module has set up.

    Args:
        datamodule: Any with `digest() -> dict[str, str]`, which digests its sets by their
            attributes' names (train, val, test); others are described by their name alone.

    Returns:
        name, classes (how many), and for each set its number of images and digest; nothing where
        there is no data module.
    """
    if datamodule is None:
        return None
    name = type(datamodule).__name__.removesuffix("DataModule")
    digests = datamodule.digest() if hasattr(datamodule, "digest") else {}
    return {
        "name": getattr(datamodule, "set_name", name),
        "classes": getattr(datamodule, "num_classes", None),
        "sets": {
            part: {"images": len(getattr(datamodule, part)), "digest": digest}
            for part, digest in digests.items()
        },
    }


def log(client: Any, run_id: str, data: dict[str, Any]) -> None:
    """Log each set as a dataset input of the run, with what it is for as its context."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for part, each in data["sets"].items():
        profile = {"num_rows": each["images"], "num_classes": data["classes"]}
        source = json.dumps({"tags": {"set": part}})
        entity = Dataset(data["name"], each["digest"], "code", source, profile=json.dumps(profile))
        inputs.append(DatasetInput(entity, [InputTag("mlflow.data.context", part)]))
    client.log_inputs(run_id, inputs)


def check(client: Any, run_id: str, data: dict[str, Any] | None) -> None:
    """Refuse to make a run again on other images than its source had.

    Nothing is refused in a run of its own, nor where the data were asked to be others.

    Args:
        client: An `MlflowClient`.
        run_id: The run.
        data: What `describe` says of its data.

    Raises:
        ValueError: The data differ; the digests of both.
    """
    try:
        tags = client.get_run(run_id).data.tags
        source = tags.get(SOURCE_RUN)
        if source is None or asks_for_other_images(tags.get(OVERRIDDEN, "")):
            return
        before = (capsule.read_facts(client, source)["data"] or {}).get("sets", {})
    except Exception as error:  # whatever the server has to say
        capsule.warn(f"the data can't be checked against those of another run ({error})")
        return
    now = (data or {}).get("sets", {})
    for part in before.keys() & now.keys():
        then, here = before[part], now[part]
        if then["digest"] != here["digest"]:
            raise ValueError(
                f"the {part} images are not those of run {source}: their digest was "
                f"{then['digest']} ({then['images']} images) and is {here['digest']} "
                f"({here['images']} images); restore them, or name the folder that has them by "
                "--data_path"
            )


def asks_for_other_images(options: str) -> bool:
    """Whether a command line's options (`--data.val_size 10`) may change which images there are."""
    words = [word for word in shlex.split(options) if word.startswith("--")]
    names = [word.partition("=")[0].removeprefix("--").removesuffix("+") for word in words]
    return any(
        name.split(".")[0] == "data" and name.rsplit(".", 1)[-1] not in _SAME_IMAGES
        for name in names
    )
