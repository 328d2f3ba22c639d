"""Write a network as an MLflow model: the exported program, its endpoint and requirements.

The model is served by ONNX Runtime if the network can be converted, otherwise by torch.
"""

import base64
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn

from pyclassify.data.images import MAX_PIXELS
from pyclassify.serving.export import PROGRAM_FILE, export_program
from pyclassify.serving.onnx_export import OnnxExportError, export_onnx, list_missing_packages

if TYPE_CHECKING:
    from mlflow.models import Model

# Copied into the model.
_ENDPOINT_FILE = Path(__file__).with_name("endpoint.py")
_IMAGES_FILE = Path(__file__).parents[1] / "data" / "images.py"

# All other packages are dependencies of these. pandas is pinned because requests are DataFrames.
# uvicorn is pinned because its workers are replaced without failed requests from 0.51 on.
_REQUIREMENTS = ("mlflow-skinny", "numpy", "pandas", "pillow", "uvicorn")

# Images in a request, and pixels in an image: the limit of training, which takes 3 GB to decode.
_DEFAULT_LIMITS = {"max_images": 1024, "max_pixels": MAX_PIXELS}


def save_model(
    folder: str | Path,
    network: nn.Module,
    preprocess: nn.Module,
    classes: Sequence[str] = (),
    limits: Mapping[str, int] = _DEFAULT_LIMITS,
    origin: "Model | None" = None,
) -> list[str]:
    """Write a network with its preprocessing as an MLflow model, served without pyclassify.

    The model has two flavors over one copy of the network: `python_function` classifies the images
    of a request, and `pytorch` maps uint8 [batch, 3, height, width] to probabilities. If the ONNX
    packages are missing or can't convert the network, the model requires torch to be served.

    Args:
        folder: The folder to write, which must not exist.
        network: Maps float [batch, 3, height, width] to logits [batch, classes].
        preprocess: Maps uint8 [batch, 3, height, width] of any size to the network's input.
        classes: The names of the classes, by label; by default they are named by number.
        limits: `max_images` in a request and `max_pixels` in an image.
        origin: The model's IDs, run and location, which the file MLmodel records; default: a
            model of no run.

    Returns:
        The names of the classes, by label.

    Raises:
        ValueError: The number of names differs from the number of classes.
    """
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    model = origin or Model()
    # `mlflow.pytorch.save_model` would write a second copy of the network.
    model.add_flavor("pytorch", model_data="artifacts", pytorch_version=str(torch.__version__))
    with tempfile.TemporaryDirectory() as temporary:
        program = Path(temporary, PROGRAM_FILE)
        names = export_program(network, preprocess, classes, program)
        artifacts = {"program": str(program), "images": str(_IMAGES_FILE)}
        onnx = _export_onnx(program)
        if onnx is not None:
            artifacts["onnx"] = str(onnx)
        with _without_pip_warning():
            save_model(
                path=folder,
                mlflow_model=model,
                python_model=_ENDPOINT_FILE,
                artifacts=artifacts,
                signature=_make_signature(len(names)),
                input_example=(pd.DataFrame({"image": [_make_example()]}), {"top_k": 1}),
                pip_requirements=_list_requirements("torch" if onnx is None else "onnxruntime"),
                model_config=dict(limits),
            )
    return names


def _export_onnx(program: Path) -> Path | None:
    """Convert a program to ONNX; None if torch has to serve it, with a line that says why."""
    if missing := list_missing_packages():
        rank_zero_info(
            f"the model is served by torch, as {', '.join(missing)} can't be imported; for a "
            f"smaller and faster server run `pip install {' '.join(missing)}` before the training"
        )
        return None
    try:
        return export_onnx(program)
    except OnnxExportError as error:
        warnings.warn(f"the model is served by torch: {error}", stacklevel=2)
        return None


@contextmanager
def _without_pip_warning() -> Iterator[None]:
    """Silence MLflow's warning that pip is not installed, as in an environment of uv."""
    logger = logging.getLogger("mlflow.utils.environment")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


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


def _list_requirements(runtime: str) -> list[str]:
    # Without the local part of a version, such as +cpu of torch: PyPI does not have it.
    names = sorted((*_REQUIREMENTS, runtime))
    return [f"{name}=={version(name).partition('+')[0]}" for name in names]


def _make_example() -> str:
    """Make a small image in the form of a request: the base64 of a PNG."""
    from PIL import Image

    rows, columns = np.mgrid[:32, :32] * 8
    image = Image.fromarray(np.dstack([rows, columns, 255 - rows]).astype(np.uint8))
    content = io.BytesIO()
    image.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
