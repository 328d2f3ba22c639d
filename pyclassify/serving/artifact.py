"""The served model as a folder: the program, what answers with it, and what that needs."""

import base64
import io
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from pyclassify.serving.export import export_program

# Copied into the model: what it does, and how it reads images.
_ENDPOINT_FILE = Path(__file__).with_name("endpoint.py")
_IMAGES_FILE = Path(__file__).parents[1] / "data" / "images.py"

# What the model runs with; all else comes with these. pandas is MLflow's, and named as each request
# passes through it.
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "torch")

# Of a request and of an image: 50 megapixels, a camera's most, take 0.9 GB to decode and resize.
_DEFAULT_LIMITS = {"max_images": 1024, "max_pixels": 8192 * 6144}


def save_model(
    folder: str | Path,
    network: nn.Module,
    preprocess: nn.Module,
    classes: Sequence[str] = (),
    limits: Mapping[str, int] = _DEFAULT_LIMITS,
    origin: tuple[str, str] | None = None,
) -> list[str]:
    """Write a network as a model of MLflow's.

    Args:
        folder: The folder, which is made.
        network: Takes float [batch, 3, height, width], gives logits [batch, classes].
        preprocess: Takes uint8 [batch, 3, height, width] of any size to what the network takes.
        classes: The classes' names, by label; their numbers by default.
        limits: `max_images` of a request and `max_pixels` of an image.
        origin: The run that the model is kept in and its place there, for its own record.

    Returns:
        The classes' names, by label.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    run_id, place = origin or (None, None)
    with tempfile.TemporaryDirectory() as temporary:
        program = Path(temporary, "program.pt2")
        names = export_program(network, preprocess, classes, program)
        save_model(
            path=folder,
            mlflow_model=Model(run_id=run_id, artifact_path=place),
            python_model=_ENDPOINT_FILE,
            artifacts={"program": str(program), "images": str(_IMAGES_FILE)},
            signature=_make_signature(len(names)),
            input_example=(pd.DataFrame({"image": [_make_example()]}), {"top_k": 1}),
            pip_requirements=_list_requirements(),
            model_config=dict(limits),
        )
    return names


def _make_signature(num_classes: int) -> Any:
    """What the model takes and gives, as MLflow checks it."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import (
        AnyType,
        Array,
        ColSpec,
        DataType,
        ParamSchema,
        ParamSpec,
        Schema,
    )

    # As strings, MLflow would give each image the room of the longest, at four bytes a character,
    # and let null through as "None".
    takes = Schema([ColSpec(AnyType(), "image", required=False)])
    names = ColSpec(Array(DataType.string), "classes")
    gives = Schema([names, ColSpec(Array(DataType.double), "probabilities")])
    top_k = ParamSpec("top_k", DataType.long, min(5, num_classes))
    return ModelSignature(takes, gives, ParamSchema([top_k]))


def _list_requirements() -> list[str]:
    """What the model needs, each pinned, as PyPI has it and so for any machine.

    A local part of a version, torch's +cpu or +cu130, names a wheel of another index.
    """
    return [f"{name}=={version(name).partition('+')[0]}" for name in _REQUIREMENTS]


def _make_example() -> str:
    """A small image as a request holds it: the base64 of a PNG."""
    from PIL import Image

    rows, columns = np.mgrid[:32, :32] * 8
    picture = Image.fromarray(np.dstack([rows, columns, 255 - rows]).astype(np.uint8))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
