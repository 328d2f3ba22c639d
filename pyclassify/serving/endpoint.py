"""Classify the images of a request: the endpoint of a served model.

MLflow copies this file into the model and runs it there ("models from code"). pyclassify and
Lightning are not installed there: this file needs only torch, numpy, pandas, Pillow and MLflow.
"""

import importlib.util
import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

_MAX_PENDING_PIXELS = 2**24  # in decoded images that wait for others of the same size
_MAX_BATCH_IMAGES = 128


class InvalidRequestError(MlflowException):
    """An invalid request, with an error message of one line.

    MLflow's server prefixes the message with the whole request, which can be megabytes.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        return str(self.args[0])

    @message.setter
    def message(self, text: str) -> None:
        """Ignore the message that MLflow's server assigns."""


class ImageClassifier(PythonModel):
    """Classify images with an exported network, which includes its preprocessing."""

    def load_context(self, context: PythonModelContext) -> None:
        extra_files = {"classes.json": ""}
        program = torch.export.load(context.artifacts["program"], extra_files=extra_files)
        self.program = program.module()
        self.classes = json.loads(extra_files["classes.json"])
        self.images = _load_module(context.artifacts["images"])
        self.limits = context.model_config
        # Only one thread runs the program: torch starts a thread pool for each calling thread.
        # Meanwhile the server's other threads decode images.
        self.runner = ThreadPoolExecutor(max_workers=1)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[dict[str, list[Any]]]:
        """Classify images.

        Args:
            context: Not used.
            model_input: A table whose column `image` has base64 strings, as for `decode_image`.
            params: `top_k`, the number of classes to return for each image; 5 by default, or all
                if there are fewer.

        Returns:
            `classes` and `probabilities` of each image, the most probable class first.

        Raises:
            InvalidRequestError: `top_k`, the table or an image is invalid.
        """
        top_k = self._check_top_k((params or {}).get("top_k"))
        texts = self._list_texts(model_input)
        predictions: list[Any] = [None] * len(texts)
        pending: dict[tuple[int, ...], dict[int, Any]] = defaultdict(dict)
        pixels = 0
        for index, text in enumerate(texts):
            image = self._decode(index, text)
            same_size = pending[image.shape]
            same_size[index] = image
            pixels += image.size // 3
            full = pixels > _MAX_PENDING_PIXELS or len(same_size) == _MAX_BATCH_IMAGES
            if full or index == len(texts) - 1:
                for group in pending.values():
                    self._predict_group(group, top_k, predictions)
                pending.clear()
                pixels = 0
        return predictions

    def _check_top_k(self, top_k: int | None) -> int:
        if top_k is None:
            return min(5, len(self.classes))
        if not 1 <= top_k <= len(self.classes):
            raise InvalidRequestError(
                f"invalid top_k: {str(top_k)[:20]} (expected 1 to {len(self.classes)}, the number "
                "of classes)"
            )
        return int(top_k)

    def _list_texts(self, table: pd.DataFrame) -> list[Any]:
        if "image" not in table:
            raise InvalidRequestError(
                'the request has no column "image"; send {"inputs": [BASE64, ...]}, or '
                '{"dataframe_records": [{"image": BASE64}, ...]}'
            )
        texts: list[Any] = []
        for cell in table["image"]:  # MLflow puts the whole list of "inputs" into one cell
            texts.extend(cell if isinstance(cell, list) else [cell])
        if not 1 <= len(texts) <= self.limits["max_images"]:
            raise InvalidRequestError(
                f"invalid number of images in the request: {len(texts)} (expected 1 to "
                f"{self.limits['max_images']}; send more images in several requests)"
            )
        return texts

    def _decode(self, index: int, text: Any) -> Any:
        try:
            return self.images.decode_image(text, self.limits["max_pixels"])
        except ValueError as error:
            raise InvalidRequestError(f"image {index} {error}") from None

    def _predict_group(
        self, group: dict[int, Any], top_k: int, predictions: list[dict[str, Any]]
    ) -> None:
        """Predict a group of images of the same size, and store the results by their index."""
        images = torch.from_numpy(np.stack(list(group.values()))).permute(0, 3, 1, 2).contiguous()
        best = self.runner.submit(self._classify, images).result().topk(top_k)
        rows = zip(group, best.values.tolist(), best.indices.tolist(), strict=True)
        for index, probabilities, labels in rows:
            names = [self.classes[label] for label in labels]
            predictions[index] = {"classes": names, "probabilities": probabilities}

    @torch.inference_mode()
    def _classify(self, images: torch.Tensor) -> torch.Tensor:
        return self.program(images)


def _load_module(path: str) -> Any:
    """Load a Python file of this model, without adding it to sys.modules, which models share."""
    spec = importlib.util.spec_from_file_location("images", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


set_model(ImageClassifier())
