"""Resolve --ckpt_path: a checkpoint file, a run's ID, or a registered model."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from pyclassify.registry.source import (
    MODEL_FORMS,
    MODEL_URI,
    RUN_ID,
    RUN_ID_FORM,
    Weights,
    find_weights,
)
from pyclassify.serving.export import read_checkpoint as read_program_as_checkpoint
from pyclassify.utils.options import UsageError


def check_resume_path(given: str | Path | None, command: str) -> None:
    """Check that a checkpoint to resume from exists.

    Raises:
        MisconfigurationException: It is neither a file, nor a URL, nor a keyword of Lightning's.
    """
    keywords = re.compile(r"best|last|hpc|registry(:.*)?|\w+://.*")
    if given is not None and not keywords.fullmatch(str(given)) and not Path(given).exists():
        raise MisconfigurationException(
            f"--ckpt_path {given} is not a file; {command} resumes from a checkpoint file (to "
            "resume a run, use `pyclassify resume RUN_ID`)"
        )


def resolve_weights(
    given: str | None, command: str, downloads: str, tracking_uri: str | None = None
) -> Weights:
    """Resolve a checkpoint's path, a run's ID or a registered model to a file.

    Args:
        given: The path, the ID or the model.
        command: The command that evaluates it.
        downloads: The folder that weights are downloaded to.
        tracking_uri: The run's tracking server; MLflow's own by default.

    Returns:
        A checkpoint; of a registered model its exported program.

    Raises:
        UsageError: No checkpoint was given, or a registered model that the command can't evaluate.
        MisconfigurationException: There is no such checkpoint.
    """
    predicts = command == "predict"
    expected = f"a checkpoint file or {RUN_ID_FORM}"
    if predicts:
        expected = f"a checkpoint file, {RUN_ID_FORM} or a registered model, {MODEL_FORMS}"
    if given is None:
        raise UsageError(f"{command} requires --ckpt_path: {expected}")
    if given.startswith("models:") and not predicts:
        raise UsageError(
            f"invalid --ckpt_path: {given}, a registered model, which only predict can evaluate "
            f"(expected {expected})"
        )
    if not Path(given).is_file() and not (MODEL_URI.fullmatch(given) or RUN_ID.fullmatch(given)):
        raise MisconfigurationException(f"--ckpt_path {given} is not a file (expected {expected})")
    try:
        found = find_weights(given, downloads, tracking_uri)
        if found.run is None or not found.is_program:
            return found
        path = str(Path(downloads, "best.ckpt"))
        torch.save(read_program_as_checkpoint(found.path), path)
        return Weights(path, found.run)
    except (ValueError, OSError) as error:
        raise MisconfigurationException(f"invalid --ckpt_path: {error}") from error


@cache
def find_initial_weights(downloads: str, tracking_uri: str | None, given: str) -> str:
    """Find the file of --weights: of a run's ID or a model the one that is downloaded, once.

    Args:
        downloads: The folder that weights are downloaded to.
        tracking_uri: The run's tracking server; MLflow's own by default.
        given: A run's ID, a model or a path.

    Raises:
        ValueError: There are no such weights.
        OSError: The store does not exist.
    """
    if not (MODEL_URI.fullmatch(given) or RUN_ID.fullmatch(given)):
        return given
    return find_weights(given, downloads, tracking_uri).path


def apply_data_state(chosen: Any, saved: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Give a prediction's data module the preprocessing and classes of the checkpoint.

    Args:
        chosen: The settings of the prediction, which are changed in place: options of the data
            module become those of the checkpoint, except those in `given`.
        saved: The data module's state in the checkpoint (`ImageDataModule.state_dict`).
        given: The settings of the command line and its files, by dotted name.

    Raises:
        MisconfigurationException: The number of classes is neither saved nor given.
    """
    options, network = (chosen[part].get("init_args", {}) for part in ("data", "model"))
    # Not needed to predict, and in a run's config.yaml perhaps an option of another data module.
    options.pop("val_size", None)
    for name, value in saved.items():
        if value and name in options and f"data.{name}" not in given:
            options[name] = value
    if "classes" not in options or options["classes"] is not None:
        return
    if "num_classes" in network:
        count = given.get("model.num_classes")
        if count is None:
            raise MisconfigurationException(
                f"checkpoint {chosen.ckpt_path} does not contain the names of the classes; give "
                "--data.classes='[cat, dog]' or --model.num_classes N"
            )
        options["classes"] = [str(number) for number in range(int(count))]
        rank_zero_warn(
            "the checkpoint does not contain the names of the classes: labels are written as "
            "numbers; give --data.classes"
        )
