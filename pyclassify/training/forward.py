"""Pass images through any network: its logits, auxiliary outputs, and errors in one line."""

import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyclassify.utils.text import format_error, is_own_error, join_some

# The weight of an auxiliary classifier's loss. GoogLeNet: Szegedy et al. (arXiv:1409.4842), section
# 5. Others: the weight for Inception v3 in PyTorch's tutorial "Finetuning Torchvision Models".
_AUXILIARY_WEIGHTS = {"GoogLeNet": 0.3}
_AUXILIARY_WEIGHT = 0.4

_LOGITS = ("logits", "out", "output", "preds")  # names of logits in the outputs of libraries
_MAX_CHARACTERS = 200  # of a network's error message
_PACKAGE = Path(__file__).parents[1]

# The product of pixels and parameters for which the forward pass of an image takes about a second.
_MAX_CHECKED_PRODUCT = 2e13
_SIZES = (32, 64, 96, 128, 224, 299)  # larger sizes to try, in pixels
_CHECKED_IMAGES = 2

# Errors of a network for images or batch sizes that it does not support, or by a bug in it.
_NETWORK_ERRORS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)
# Errors in a forward pass that are not the network's: another process, a data worker (by the
# handler of SIGCHLD) or the device is lost.
_FOREIGN_ERRORS = ("DistBackendError", "DistNetworkError", "DistStoreError", "AcceleratorError")
_FOREIGN_MESSAGES = re.compile("by peer|DataLoader worker|CUDA error")


class Outputs(NamedTuple):
    """The outputs of a network for a batch.

    Attributes:
        logits: float [batch, classes].
        auxiliary: The logits of auxiliary classifiers, in training.
        weight: The weight of the loss of each auxiliary classifier.
    """

    logits: Tensor
    auxiliary: list[Tensor]
    weight: float


def compute_outputs(network: nn.Module, images: Tensor, num_classes: int) -> Outputs:
    """Pass images through a network.

    Args:
        network: A network that returns logits: only them, or as the first or as `logits` of several
            outputs.
        images: float [batch, 3, height, width].
        num_classes: The number of logits for each image.

    Raises:
        MisconfigurationException: The network raises an error for the images, or returns no logits
            [batch, num_classes].
    """
    with _translate_errors(network, images):
        output = network(images)
    logits = get_logits(output)
    expected = (len(images), num_classes)
    if not isinstance(logits, Tensor) or logits.shape != expected:
        raise MisconfigurationException(
            f"invalid output of {_class_name(network)} for {len(images)} images: "
            f"{_describe(output)} (expected logits [{', '.join(map(str, expected))}] for "
            f"{num_classes} classes); give another network by --model.model"
        )
    auxiliary = [
        value
        for value in _list_outputs(output)
        if value is not logits and isinstance(value, Tensor) and value.shape == logits.shape
    ]
    weight = _AUXILIARY_WEIGHTS.get(_class_name(network), _AUXILIARY_WEIGHT)
    return Outputs(logits, auxiliary if network.training else [], weight)


def get_logits(output: Any) -> Any:
    """Get the logits from a network's output: of several outputs, the one so named or the first."""
    if isinstance(output, Tensor):
        return output
    for name in _LOGITS:
        if isinstance(output, Mapping) and name in output:
            return output[name]
        if not isinstance(output, Mapping) and hasattr(output, name):
            return getattr(output, name)
    return output[0] if isinstance(output, Sequence) and output else output


def check_network(network: nn.Module, num_classes: int, side: int) -> None:
    """Check that a network classifies square images, without changing it or the random states.

    A network is not checked if the check would take more than about a second. Errors of other kinds
    are left to the training, which reports them in its run.

    Args:
        network: The network, on the CPU.
        num_classes: The number of classes.
        side: The height and width of the images, in pixels.

    Raises:
        MisconfigurationException: The network raises an error, or returns no logits.
    """
    # The forward pass gives lazy parameters their shapes.
    numbers = sum(weight.numel() for weight in network.parameters() if not is_lazy(weight))
    if numbers * side**2 > _MAX_CHECKED_PRODUCT:
        return
    # Auxiliary classifiers are used in training only, and need larger images.
    modes = (False, True) if getattr(network, "aux_logits", False) else (False,)
    try:
        _pass_zeros(network, num_classes, side, modes)
    except MisconfigurationException as error:
        if not isinstance(error.__cause__, _NETWORK_ERRORS):
            raise
        for larger in _SIZES:
            if larger > side and numbers * larger**2 <= _MAX_CHECKED_PRODUCT:
                try:
                    _pass_zeros(network, num_classes, larger, modes)
                except MisconfigurationException:
                    continue
                raise MisconfigurationException(
                    f"{error}; images of {larger}x{larger} pixels work: --data.resize {larger} "
                    f"--data.crop {larger}"
                ) from error
        raise
    except Exception:
        # If only this process raised, before the process group exists, the others would hang.
        return


@torch.no_grad()
def _pass_zeros(network: nn.Module, num_classes: int, side: int, modes: Sequence[bool]) -> None:
    states = {module: module.training for module in network.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()] if True in modes else []
    weight = next((w for w in network.parameters() if w.is_floating_point()), None)
    images = torch.zeros(
        (_CHECKED_IMAGES, 3, side, side), dtype=None if weight is None else weight.dtype
    )
    try:
        with torch.random.fork_rng(devices=[]):
            for mode in modes:
                network.train(mode)
                compute_outputs(network, images, num_classes)
    finally:
        for module, training in states.items():
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)


@contextmanager
def _translate_errors(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Translate errors of a network to one line, with the option to change."""
    try:
        yield
    except _NETWORK_ERRORS as error:
        if type(error).__name__ in _FOREIGN_ERRORS or _FOREIGN_MESSAGES.search(str(error)):
            raise
        if isinstance(error, MisconfigurationException) or is_out_of_memory(error):
            raise
        if isinstance(error, ValueError) and is_own_error(error):
            raise MisconfigurationException(str(error)) from error
        raise MisconfigurationException(_format_network_error(network, images, error)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory for a tensor is exhausted, on a GPU or a CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _format_network_error(network: nn.Module, images: Tensor, error: Exception) -> str:
    name, message = _class_name(network), format_error(error, _MAX_CHARACTERS)
    height, width = images.shape[-2:]
    if "more than 1 value per channel" in message:
        return (
            f"BatchNorm of {name} can't normalize a training batch of {len(images)} image(s): it "
            "needs 2 values per channel; give --data.batch_size 2 or more, and at least 2 images "
            "per process"
        )
    if channels := re.search(r"to have (\d+) channels, but got 3 channels", message):
        return (
            f"{name} expects images with {channels[1]} channel(s), but they have 3 (RGB); set the "
            "network's option for it (timm: --model.model.in_chans 3), or give another network"
        )
    sized = hasattr(network, "image_size")  # of torchvision's transformers
    option = f"image_size {height}" if sized else "NAME"
    return (
        f"{name} failed for {len(images)} images of {height}x{width} pixels: {message}"
        f"{_locate(error)}; change --data.crop and --data.resize, or the network or its options "
        f"(--model.model.{option})"
    )


def _locate(error: Exception) -> str:
    """Find the line of the user's code where an error was raised; empty in installed packages."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE):
            return ""
        if "site-packages" not in path.parts and path.is_file():
            return f" ({path.name}, line {frame.lineno})"
    return ""


def _list_outputs(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return [*output.values()]
    return [*output] if isinstance(output, (tuple, list)) else []


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor [{', '.join(map(str, output.shape))}]"
    if isinstance(output, Mapping):
        return f"a mapping of {join_some([*map(str, output)])}"
    kind = type(output).__name__
    if isinstance(output, (tuple, list)) and output:
        return f"a {kind} of {_describe(output[0])}"
    return f"an object of type {kind}"


def _class_name(network: nn.Module) -> str:
    return type(network).__name__
