"""Classify the images of a request: the endpoint of a served model.

MLflow copies this file into the model and runs it there ("models from code"). pyclassify and
Lightning are not installed there: this file needs only numpy, pandas, Pillow, MLflow, and either
ONNX Runtime or torch.
"""

import importlib.util
import json
import os
import threading
from collections import defaultdict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
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


class OnnxNetwork:
    """Run an ONNX file by ONNX Runtime.

    Args:
        path: The file; its weights are in `model.pt2` in the same folder.

    Attributes:
        classes: The names of the classes, by label.
    """

    def __init__(self, path: str) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        # ONNX Runtime does not read the variable itself; 0 is one thread for each core.
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
        options.log_severity_level = 3  # errors
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.classes = json.loads(self._session.get_modelmeta().custom_metadata_map["classes"])

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Map uint8 [batch, 3, height, width] to probabilities, float32 [batch, classes]."""
        return self._session.run(None, {"images": images})[0]


class TorchNetwork:
    """Run an exported program by torch.

    Args:
        path: The program.

    Attributes:
        classes: The names of the classes, by label.
    """

    def __init__(self, path: str) -> None:
        import torch

        extra_files = {"classes.json": ""}
        self._program = torch.export.load(path, extra_files=extra_files).module()
        self.classes = json.loads(extra_files["classes.json"])

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Map uint8 [batch, 3, height, width] to probabilities, float32 [batch, classes]."""
        import torch

        with torch.inference_mode():
            return self._program(torch.from_numpy(images)).numpy()


class Runner:
    """Run a network in one thread, with the images of waiting requests in common batches.

    A request waits for no other: while the network runs, requests queue, and the next batch takes
    all of them that have images of the same size. Meanwhile the server's other threads decode
    images. One thread also because torch starts a thread pool for each calling thread.

    Args:
        network: The network.
    """

    def __init__(self, network: OnnxNetwork | TorchNetwork) -> None:
        self._network = network
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._lock = threading.Lock()
        self._waiting: deque[tuple[np.ndarray, Future[np.ndarray]]] = deque()

    def classify(self, images: np.ndarray) -> np.ndarray:
        """Map uint8 [batch, 3, height, width] to probabilities, float32 [batch, classes]."""
        future: Future[np.ndarray] = Future()
        with self._lock:
            self._waiting.append((images, future))
        self._thread.submit(self._run_batch)
        return future.result()

    def _run_batch(self) -> None:
        """Classify the oldest waiting images with all others of their size that fit."""
        batch = self._take_batch()
        if not batch:  # an earlier batch took them
            return
        try:
            found = self._network.classify(np.concatenate([images for images, _ in batch]))
        except Exception as error:  # such as too little memory; each thread raises it
            for _, future in batch:
                future.set_exception(error)
            return
        ends = np.cumsum([len(images) for images, _ in batch])
        for (_, future), part in zip(batch, np.split(found, ends[:-1]), strict=True):
            future.set_result(part)

    def _take_batch(self) -> list[tuple[np.ndarray, "Future[np.ndarray]"]]:
        batch: list[tuple[np.ndarray, Future[np.ndarray]]] = []
        with self._lock:
            others: deque[tuple[np.ndarray, Future[np.ndarray]]] = deque()
            count = 0
            for images, future in self._waiting:
                size = images.shape[1:]
                limit = min(_MAX_BATCH_IMAGES, _MAX_PENDING_PIXELS // (size[1] * size[2]))
                fits = not batch or (size == batch[0][0].shape[1:] and count + len(images) <= limit)
                if fits:
                    batch.append((images, future))
                    count += len(images)
                else:
                    others.append((images, future))
            self._waiting = others
        return batch


class ImageClassifier(PythonModel):
    """Classify images with an exported network, which includes its preprocessing."""

    def load_context(self, context: PythonModelContext) -> None:
        network = _open_network(context.artifacts)
        self.runner, self.classes = Runner(network), network.classes
        self.images = _load_module(context.artifacts["images"])
        self.limits = context.model_config

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
        images = np.ascontiguousarray(np.stack(list(group.values())).transpose(0, 3, 1, 2))
        found = self.runner.classify(images)
        labels = np.argsort(-found, axis=1, kind="stable")[:, :top_k]
        for index, row, best in zip(group, found, labels, strict=True):
            names = [self.classes[label] for label in best]
            predictions[index] = {"classes": names, "probabilities": row[best].tolist()}


def _open_network(artifacts: dict[str, str]) -> OnnxNetwork | TorchNetwork:
    """Open the network by ONNX Runtime, if the model has an ONNX file and the package is there."""
    if "onnx" in artifacts and importlib.util.find_spec("onnxruntime"):
        return OnnxNetwork(artifacts["onnx"])
    return TorchNetwork(artifacts["program"])


def _load_module(path: str) -> Any:
    """Load a Python file of this model, without adding it to sys.modules, which models share."""
    spec = importlib.util.spec_from_file_location("images", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


set_model(ImageClassifier())
