"""Write a network as an MLflow model: the exported program, its endpoint and requirements."""

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

from pyclassify.data.images import MAX_PIXELS
from pyclassify.serving.export import export_program

# Copied into the model.
_ENDPOINT_FILE = Path(__file__).with_name("endpoint.py")
_IMAGES_FILE = Path(__file__).parents[1] / "data" / "images.py"

# All other packages are dependencies of these. pandas is pinned because requests are DataFrames.
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "torch")

# Images in a request, and pixels in an image: the limit of training, which takes 3 GB to decode.
_DEFAULT_LIMITS = {"max_images": 1024, "max_pixels": MAX_PIXELS}


def save_model(
    folder: str | Path,
    network: nn.Module,
    preprocess: nn.Module,
    classes: Sequence[str] = (),
    limits: Mapping[str, int] = _DEFAULT_LIMITS,
    origin: tuple[str, str] | None = None,
) -> list[str]:
    """Write a network with its preprocessing as an MLflow model, served without pyclassify.

    Args:
        folder: The folder to write, which must not exist.
        network: Maps float [batch, 3, height, width] to logits [batch, classes].
        preprocess: Maps uint8 [batch, 3, height, width] of any size to the network's input.
        classes: The names of the classes, by label; by default they are named by number.
        limits: `max_images` in a request and `max_pixels` in an image.
        origin: The id of the run that the model is logged to, and the path in its artifacts;
            recorded in the model.

    Returns:
        The names of the classes, by label.

    Raises:
        ValueError: The number of names differs from the number of classes.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    run_id, artifact_path = origin or (None, None)
    with tempfile.TemporaryDirectory() as temporary:
        program = Path(temporary, "program.pt2")
        names = export_program(network, preprocess, classes, program)
        save_model(
            path=folder,
            mlflow_model=Model(run_id=run_id, artifact_path=artifact_path),
            python_model=_ENDPOINT_FILE,
            artifacts={"program": str(program), "images": str(_IMAGES_FILE)},
            signature=_make_signature(len(names)),
            input_example=(pd.DataFrame({"image": [_make_example()]}), {"top_k": 1}),
            pip_requirements=_list_requirements(),
            model_config=dict(limits),
        )
    return names


def _make_signature(num_classes: int) -> Any:
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

    # AnyType: MLflow would pad strings to the longest, at four bytes a character, and replace null
    # by "None".
    inputs = Schema([ColSpec(AnyType(), "image", required=False)])
    names = ColSpec(Array(DataType.string), "classes")
    outputs = Schema([names, ColSpec(Array(DataType.double), "probabilities")])
    top_k = ParamSpec("top_k", DataType.long, min(5, num_classes))
    return ModelSignature(inputs, outputs, ParamSchema([top_k]))


def _list_requirements() -> list[str]:
    # Without the local part of a version, such as +cpu of torch: PyPI does not have it.
    return [f"{name}=={version(name).partition('+')[0]}" for name in _REQUIREMENTS]


def _make_example() -> str:
    """Make a small image in the form of a request: the base64 of a PNG."""
    from PIL import Image

    rows, columns = np.mgrid[:32, :32] * 8
    image = Image.fromarray(np.dstack([rows, columns, 255 - rows]).astype(np.uint8))
    content = io.BytesIO()
    image.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
