"""The served model: images in, the names and probabilities of their classes out.

MLflow copies this file into the model and runs it there (its "models from code"), where there is no
pyclassify and no Lightning: torch, numpy, Pillow and MLflow are all that it needs.
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

# Decoded images wait for others of their size, up to this many pixels and images.
MAX_PENDING_PIXELS = 2**24
MAX_BATCH_IMAGES = 128


class InvalidRequestError(MlflowException):
    """A request that is refused in one line.

    MLflow's server would put the whole request before the line, megabytes that the client has.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        return str(self.args[0])

    @message.setter
    def message(self, text: str) -> None:
        """Stay as it is."""


class ImageClassifier(PythonModel):
    """An exported network, with its preprocessing and the names of its classes."""

    def load_context(self, context: PythonModelContext) -> None:
        kept = {"classes.json": ""}
        program = torch.export.load(context.artifacts["program"], extra_files=kept)
        self.program = program.module()
        self.classes = json.loads(kept["classes.json"])
        self.images = _load_module(context.artifacts["images"])
        self.limits = context.model_config
        # One thread for the program, as torch gives each that asks a team of threads of its own;
        # the server's other threads read images meanwhile.
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
            model_input: The column `image` of texts, as images.decode_image takes them.
            params: `top_k`, how many classes to answer for each image.

        Returns:
            For each image `classes` and `probabilities`, from the most probable on.

        Raises:
            Refused: The request is not as it must be.
        """
        top_k = self._check_top_k((params or {}).get("top_k"))
        texts = self._list_texts(model_input)
        answers: list[Any] = [None] * len(texts)
        waiting: dict[tuple[int, ...], dict[int, Any]] = defaultdict(dict)
        pixels = 0
        for index, text in enumerate(texts):
            image = self._read(index, text)
            same_size = waiting[image.shape]
            same_size[index] = image
            pixels += image.size // 3
            if (
                pixels > MAX_PENDING_PIXELS
                or len(same_size) == MAX_BATCH_IMAGES
                or index == len(texts) - 1
            ):
                for group in waiting.values():
                    self._answer(group, top_k, answers)
                waiting.clear()
                pixels = 0
        return answers

    def _check_top_k(self, top_k: int | None) -> int:
        if top_k is None:
            return min(5, len(self.classes))
        if not 1 <= top_k <= len(self.classes):
            raise InvalidRequestError(
                f"top_k is {str(top_k)[:20]}; it takes 1 to {len(self.classes)}, "
                "the number of classes"
            )
        return int(top_k)

    def _list_texts(self, table: pd.DataFrame) -> list[Any]:
        if "image" not in table:
            raise InvalidRequestError(
                'there is no "image" in the request; send {"inputs": [BASE64, ...]}, or '
                '{"dataframe_records": [{"image": BASE64}, ...]}'
            )
        texts: list[Any] = []
        for cell in table["image"]:  # MLflow puts the list of "inputs" into one cell
            texts.extend(cell if isinstance(cell, list) else [cell])
        if not 1 <= len(texts) <= self.limits["max_images"]:
            raise InvalidRequestError(
                f"the request has {len(texts)} images; it takes 1 to {self.limits['max_images']}: "
                "send them in several requests"
            )
        return texts

    def _read(self, index: int, text: Any) -> Any:
        try:
            return self.images.decode_image(text, self.limits["max_pixels"])
        except ValueError as error:
            raise InvalidRequestError(f"image {index} {error}") from None

    def _answer(self, group: dict[int, Any], top_k: int, answers: list[Any]) -> None:
        """Fill in the answers of images of one size."""
        images = torch.from_numpy(np.stack(list(group.values()))).permute(0, 3, 1, 2).contiguous()
        best = self.runner.submit(self._classify, images).result().topk(top_k)
        rows = zip(group, best.values.tolist(), best.indices.tolist(), strict=True)
        for index, probabilities, labels in rows:
            names = [self.classes[label] for label in labels]
            answers[index] = {"classes": names, "probabilities": probabilities}

    @torch.inference_mode()
    def _classify(self, images: torch.Tensor) -> torch.Tensor:
        return self.program(images)


def _load_module(path: str) -> Any:
    """Run a file of this model's own, under no name that another model's copy could take."""
    spec = importlib.util.spec_from_file_location("images", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


set_model(ImageClassifier())
