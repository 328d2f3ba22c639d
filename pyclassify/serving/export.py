"""Export a network with its preprocessing as one file, and predict with that file.

The file is a program of `torch.export` (PyTorch's PT2 archive): it needs no Python class. Its
weights are raw bytes; PyTorch pickles only the example input, a tensor that loads with
`weights_only=True`. The names of the classes are in its `extra/classes.json`, and the settings of
the preprocessing in `extra/preprocess.json`.
"""

import copy
import io
import json
import pickle
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.export import Dim
from torch.export.passes import move_to_device_pass

from pyclassify.data.transforms import Preprocess
from pyclassify.utils.files import open_deferring_errors

# The name that MLflow's flavor `pytorch` expects.
PROGRAM_FILE = "model.pt2"
MAX_BATCH_PIXELS = 2**24  # in a batch; resized as floats, they take about 1 GB
_CLASSES_FILE = "classes.json"
_PREPROCESS_FILE = "preprocess.json"
_NETWORK_PREFIX = "network."  # of the network's tensors in a program
_DATA_STATE_KEY = "ImageDataModule"  # of the classes and the preprocessing in a checkpoint
_EXAMPLE_SHAPE = (2, 3, 40, 50)  # two images, as torch.export would fix a batch size of 1


def export_program(
    network: nn.Module, preprocess: nn.Module, classes: Sequence[str], path: str | Path
) -> list[str]:
    """Write a network with its preprocessing as a program that runs on the CPU.

    The program takes uint8 [batch, 3, height, width] and returns probabilities, float32 [batch,
    classes]; batch, height and width are dynamic. The network itself is not changed.

    Args:
        network: Maps float [batch, 3, height, width] to logits [batch, classes].
        preprocess: Maps uint8 [batch, 3, height, width] of any size to the network's input.
        classes: The names of the classes, by label; if empty, they are named by number.
        path: The file to write, which ends in .pt2.

    Returns:
        The names of the classes, by label.

    Raises:
        ValueError: The number of names differs from the number of classes.
        OSError: The file can't be written.
    """
    module = copy.deepcopy(ProbabilityNetwork(network, preprocess)).cpu().eval()
    images = torch.zeros(_EXAMPLE_SHAPE, dtype=torch.uint8)
    sizes = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    with torch.no_grad():
        num_classes = module(images).shape[1]
        names = list(classes) or [str(label) for label in range(num_classes)]
        if num_classes != len(names):
            raise ValueError(
                f"invalid number of class names: {len(names)} (expected {num_classes}, as the "
                "network has)"
            )
        program = torch.export.export(module, (images,), dynamic_shapes={"images": sizes})
    # A guard of `float()` in `resize`: it would refuse images that are one pixel high or wide.
    program._guards_code = []
    settings = preprocess.settings if isinstance(preprocess, Preprocess) else None
    extra_files = {_CLASSES_FILE: json.dumps(names), _PREPROCESS_FILE: json.dumps(settings)}
    # With `example_inputs`: MLflow loads no program without them where pickle is disallowed.
    # A write that fails would abort this process: PyTorch's C++ writer throws in its destructor.
    with warnings.catch_warnings(), open_deferring_errors(Path(path)) as file:
        # PyTorch warns of weights in the channels-last memory format, and saves them all the same.
        warnings.filterwarnings("ignore", message="No complete tensor found in the group")
        torch.export.save(program, file, extra_files=extra_files)
    return names


def load_program(
    path: str | Path,
) -> tuple[torch.export.ExportedProgram, list[str], Preprocess | None]:
    """Load a program that `export_program` wrote, with its classes and its preprocessing.

    Args:
        path: The file, which ends in .pt2.

    Returns:
        The program, the names of its classes by label, and the preprocessing that it does; None if
        that is a module of another class.

    Raises:
        Exception: The file is not such a program; torch raises various types.
    """
    program, extra_files = _load(path)
    settings = json.loads(extra_files[_PREPROCESS_FILE] or "null")
    preprocess = None if settings is None else Preprocess(**settings)
    return program, json.loads(extra_files[_CLASSES_FILE]), preprocess


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of a program that `export_program` wrote: the network's `state_dict`.

    Args:
        path: The file, which ends in .pt2.

    Raises:
        Exception: The file is not such a program; torch raises various types.
    """
    return _list_weights(_load(path)[0])


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a program that `export_program` wrote as a checkpoint of Lightning's.

    The weights are those of the exported network, bit for bit. There is no state of an optimizer.

    Args:
        path: The file, which ends in .pt2.

    Returns:
        A checkpoint for `torch.save`: `state_dict`, and the data module's state with `classes` and
        the settings of its preprocessing.

    Raises:
        MisconfigurationException: The program does not contain its preprocessing's settings.
        Exception: The file is not such a program; torch raises various types.
    """
    program, extra_files = _load(path)
    if not extra_files[_PREPROCESS_FILE]:
        raise MisconfigurationException(
            f"{path} was exported by an earlier version, without the settings of its "
            "preprocessing; it can predict, but not be evaluated as a checkpoint"
        )
    settings = json.loads(extra_files[_PREPROCESS_FILE]) or {}
    return {
        "state_dict": _list_weights(program),
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": pl.__version__,
        _DATA_STATE_KEY: {"classes": json.loads(extra_files[_CLASSES_FILE]), **settings},
    }


def _load(path: str | Path) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    _check_pickles(path)
    extra_files = {_CLASSES_FILE: "", _PREPROCESS_FILE: ""}
    return torch.export.load(path, extra_files=extra_files), extra_files


def _check_pickles(path: str | Path) -> None:
    """Unpickle all that `torch.export.load` would, without the classes that could run code.

    Raises:
        pickle.UnpicklingError: The file has a Python object, or compiled code.
        Exception: The file is not an archive.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            folder, _, file = name.partition("/data/")[2].partition("/")
            if folder == "aotinductor":
                raise pickle.UnpicklingError(f"{name} is compiled code")
            # Raw bytes, unless their JSON file says that they are pickled.
            if folder in ("weights", "constants") and file.endswith(".json"):
                entries = json.loads(archive.read(name))["config"].values()
                pickled = [entry["path_name"] for entry in entries if entry["use_pickle"]]
                pickles = [f"{name.rpartition('/')[0]}/{path_name}" for path_name in pickled]
            elif file.endswith(".pt"):
                pickles = [name]
            else:
                continue
            for content in filter(None, map(archive.read, pickles)):
                torch.load(io.BytesIO(content), weights_only=True)


def _list_weights(program: torch.export.ExportedProgram) -> dict[str, Tensor]:
    return {
        name.removeprefix(_NETWORK_PREFIX): tensor.detach()
        for name, tensor in program.state_dict.items()
        if name.startswith(_NETWORK_PREFIX)
    }


class ProbabilityNetwork(nn.Module):
    """Map uint8 images [batch, 3, height, width] to probabilities, float32 [batch, classes]."""

    def __init__(self, network: nn.Module, preprocess: nn.Module) -> None:
        super().__init__()
        self.network, self.preprocess = network, preprocess
        floats = (weight for weight in network.parameters() if weight.is_floating_point())
        weight = next(floats, None)
        self.dtype = torch.float32 if weight is None else weight.dtype

    def forward(self, images: Tensor) -> Tensor:
        prepared = self.preprocess(images).to(self.dtype)
        return self.network(prepared).float().softmax(dim=1)


class ExportedClassifier(LightningModule):
    """Predict with a program that `export_program` wrote.

    Args:
        program: The file, which ends in .pt2.

    Attributes:
        classes: The names of the classes, by label.
        takes_bytes: Tells a data module to return uint8 images of any size.

    Raises:
        MisconfigurationException: The file is not such a program.

    Example:
        >>> from pyclassify import AlexNetBN, ImageFolderDataModule, Preprocess, Trainer
        >>> from pyclassify.serving.export import ExportedClassifier, export_program
        >>> names = export_program(AlexNetBN(2), Preprocess(), ["cat", "dog"], "model.pt2")
        >>> network = ExportedClassifier("model.pt2")
        >>> network.classes
        ['cat', 'dog']
        >>> Trainer().predict(
        ...     network, datamodule=ImageFolderDataModule("photos"), output="labels.csv"
        ... )
    """

    takes_bytes = True

    def __init__(self, program: str) -> None:
        super().__init__()
        try:
            self._exported, self.classes, _ = load_program(program)
        except Exception as error:  # torch raises any type for another file
            raise MisconfigurationException(
                f"{program} is not an exported classifier ({error}); give artifacts/model.pt2 of a "
                "model that pyclassify registered"
            ) from error

    def setup(self, stage: str) -> None:
        moved = move_to_device_pass(self._exported, self.trainer.strategy.root_device)
        # In a tuple: a submodule would get train() or eval(), which raise for programs.
        self._program = (moved.module(),)

    def predict_step(self, batch: Sequence[Sequence[Tensor]], batch_idx: int) -> Tensor:
        """Predict the probabilities of the classes.

        Args:
            batch: A sequence whose first item is n images, each uint8 [1 or 3, height, width].
            batch_idx: Not used.

        Returns:
            float32 [n, classes].

        Raises:
            MisconfigurationException: The images are not uint8.
        """
        images = batch[0]
        for image in images:
            if image.dtype != torch.uint8:
                raise MisconfigurationException(
                    f"the data module returns {image.dtype} images, but an exported network takes "
                    "uint8 and normalizes them itself; use a data module of pyclassify"
                )
        return classify_by_size(images, self._program[0])


def classify_by_size(images: Sequence[Tensor], classify: Callable[[Tensor], Tensor]) -> Tensor:
    """Classify images in batches of one size.

    Args:
        images: n images, each uint8 [1 or 3, height, width].
        classify: Maps uint8 [batch, 3, height, width] to [batch, classes].

    Returns:
        [n, classes].
    """
    outputs: dict[int, Tensor] = {}
    for indices, batch in group_by_size(images):
        outputs.update(zip(indices, classify(batch), strict=True))
    return torch.stack([outputs[index] for index in range(len(images))])


def group_by_size(images: Sequence[Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Stack images of one size, at most `MAX_BATCH_PIXELS` of them, with their indices.

    Args:
        images: Images, each uint8 [1 or 3, height, width].

    Returns:
        An iterator over indices and uint8 [batch, 3, height, width].
    """
    groups: dict[torch.Size, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        groups[image.shape].append(index)
    for shape, indices in groups.items():
        max_images = max(1, MAX_BATCH_PIXELS // shape[1:].numel())
        for start in range(0, len(indices), max_images):
            chunk = indices[start : start + max_images]
            stacked = torch.stack([images[index] for index in chunk])
            yield chunk, stacked.expand(-1, 3, -1, -1).contiguous()
