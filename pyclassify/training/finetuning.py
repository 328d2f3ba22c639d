"""Load pretrained weights, and freeze parts of a network.

Lightning's BaseFinetuning is for callbacks that unfreeze modules later. It lets a frozen module's
BatchNorm use each batch's own statistics (`track_running_stats` is turned off, and the module stays
in training mode), so that the module differs between training and evaluation; here a frozen module
stays in evaluation mode. Its BackboneFinetuning needs an attribute `backbone`, which few networks
have.
"""

import argparse
import pathlib
import pickle
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from pyclassify.utils.text import format_error, join_some

_MAX_NAMED = 3  # tensors that an error names
_MAX_DEPTH = 3  # mappings around a state dict in a file
_EXPECTED = "give a state dict or a checkpoint of torch.save, or a .safetensors file"

# What wraps a network in the names of its tensors wherever it stands: torch.compile, and
# DistributedDataParallel around a part of a network. What stands in front of all names is found.
_WRAPPERS = (re.compile(r"(?<![^.])_orig_mod\."), re.compile(r"(?<![^.])(_orig_mod|module)\."))

# Plain values that checkpoints of other trainings hold beside tensors, besides those that
# torch.load(weights_only=True) reads: none of them runs code when it is unpickled.
_PLAIN_CLASSES: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]

# What a file begins with that is taken for one of weights.
_OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches the file",
    b"<": "a web page, as a failed download leaves it",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x89HDF": "an HDF5 file, as of Keras",
    b"\x93NUMPY": "an array of NumPy",
    b"GGUF": "a GGUF file",
    b"{": "a JSON text, as the index of a model in several files",
}


def load_weights(network: nn.Module, num_classes: int, source: str | WeightsEnum) -> str:
    """Load the weights of a file, except a classification head of another number of classes.

    The head keeps its initial values too where the file has no weights for it. A file may hold
    several state dicts; the one that fits best is loaded, and of equals the average (EMA).

    Args:
        network: The network, with `num_classes` outputs.
        num_classes: The number of classes of the data.
        source: A file that `torch.save` or safetensors wrote: a state dict, such as torchvision's,
            or a checkpoint that has one in it. Or the weights of a function of torchvision.

    Returns:
        A message about what was loaded, and what was not.

    Raises:
        MisconfigurationException: It is no such file, or another network's.
    """
    own = network.state_dict()
    label = f"weights {source}"
    states = [
        (key, *_match(tensors, own))
        for key, tensors in _find_state_dicts(
            download(source) if isinstance(source, WeightsEnum) else _read(source)
        )
    ]
    if not states:
        raise MisconfigurationException(f"{label} holds no tensors by their names; {_EXPECTED}")
    key, found, fits = _choose_state(states, dict(network.named_parameters()))
    if len(states) > 1 and key:
        label += f" ({key})"
    left = [name for name in own if name not in fits and not name.endswith("num_batches_tracked")]
    heads = _list_heads(own, num_classes)
    wrong = [name for name in left if not _is_of_head(name, own, found, heads)]
    if wrong := wrong if fits else left:
        raise MisconfigurationException(
            f"{label} are another network's: {len(wrong)} of {len(own)} tensors are missing or of "
            f"another shape ({_describe(wrong, own, found)}); the file has "
            f"{join_some([*found], _MAX_NAMED)}; give a file of {_class_name(network)}'s, or name "
            "its network by --model.model"
        )
    network.load_state_dict(fits, strict=False)
    message = f"{label}: {len(fits)} of {len(own)} tensors are taken"
    if left:
        message += f"; left at their first values: {_describe(left, own, found, most=len(left))}"
    if surplus := [name for name in found if name not in own]:
        message += f"; not used: {join_some(surplus, _MAX_NAMED)}"
    return message


def download(weights: WeightsEnum) -> Mapping[str, Tensor]:
    """Download weights of torchvision, unless they are in torch.hub's folder, and read them.

    Raises:
        MisconfigurationException: They can't be had.
    """
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise MisconfigurationException(
            f"weights {weights} can't be downloaded ({format_error(error)}); on a machine with a "
            f"network run `pyclassify prepare` or put {weights.url} into {folder}"
        ) from error


def _find_state_dicts(
    content: Any, key: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Find the mappings of names to tensors in a file, each with the keys that lead to it."""
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in content.items():
        yield from _find_state_dicts(value, f"{key}.{name}".lstrip("."), depth + 1)


def _choose_state(
    states: Sequence[tuple[str, dict[str, Tensor], dict[str, Tensor]]],
    parameters: Mapping[str, Any],
) -> tuple[str, dict[str, Tensor], dict[str, Tensor]]:
    """Choose the state dict that fits most parameters, of equals the average (EMA).

    An average of the parameters alone gets the buffers, such as running statistics, of another.
    """

    def rank(state: tuple[str, Any, dict[str, Tensor]]) -> tuple[int, bool, int]:
        key, _, fits = state
        return len(fits.keys() & parameters.keys()), _is_ema(key), len(fits)

    key, found, fits = max(states, key=rank)
    fullest = max(states, key=lambda state: len(state[2]))[2]
    buffers = {name: tensor for name, tensor in fullest.items() if name not in parameters}
    return key, {**buffers, **found}, {**buffers, **fits}


def _is_ema(key: str) -> bool:
    return re.search(r"(?<![a-z])ema(?![a-z])", key.lower()) is not None


def _match(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Give tensors the names that a network has for them, without the prefixes of a wrapper.

    Returns:
        All tensors of the network that the file's are of, and those of the same shape.
    """
    best: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    for wrapper in (None, *_WRAPPERS):
        plain = {wrapper.sub("", name) if wrapper else name: t for name, t in tensors.items()}
        outer, inner = _find_prefix(plain, own), _find_prefix(own, plain)
        stripped = {
            name.removeprefix(outer): tensor
            for name, tensor in plain.items()
            if name.startswith(outer)
        }
        # A network that wraps one of its parts has a prefix that the file of the part lacks.
        for found in (stripped, {f"{inner}{name}": tensor for name, tensor in plain.items()}):
            fits = {n: found[n] for n in own if _shape(found.get(n)) == own[n].shape}
            if len(fits) > len(best[1]) or not best[0]:
                best = found, fits
    return best


def _find_prefix(names: Iterable[str], known: Mapping[str, Any]) -> str:
    """Find the prefix without which most names are known; of equals the shortest."""
    votes = Counter({"": 0})
    for name in names:
        parts = name.split(".")
        for count in range(len(parts)):
            if ".".join(parts[count:]) in known:
                votes["".join(f"{part}." for part in parts[:count])] += 1
    return max(votes, key=lambda prefix: (votes[prefix], -len(prefix)))


def _read(path: str) -> Any:
    """Read tensors and plain values, and no other objects: unpickling those can execute code."""
    file = Path(path).expanduser()
    try:
        with file.open("rb") as opened:
            start = opened.read(64)
    except OSError as error:
        raise MisconfigurationException(
            f"weights {path} can't be read ({error.strerror}); {_EXPECTED}"
        ) from error
    header_bytes = int.from_bytes(start[:8], "little")  # as safetensors begins
    is_safetensors = start[8:9] == b"{" and header_bytes < file.stat().st_size
    kind = None if is_safetensors else _recognize(start, file)
    if kind is not None:
        raise MisconfigurationException(f"weights {path} is {kind}; {_EXPECTED}")
    try:
        if is_safetensors:
            return load_file(file)
        with torch.serialization.safe_globals(_PLAIN_CLASSES):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of any type, for a file that is damaged or of something else
        if found := re.search(r"GLOBAL (\S+)|(?:class|type) (\S+)", str(error)):
            raise MisconfigurationException(
                f"weights {path} holds a Python object ({found[1] or found[2]}), which is not "
                "unpickled as that could run code; save model.state_dict() in its place"
            ) from error
        raise MisconfigurationException(
            f"weights {path} is not a whole file of tensors and plain values; {_EXPECTED}"
        ) from error


def _recognize(start: bytes, file: Path) -> str | None:
    """Recognize a file that is not one of weights, by its first bytes or its archive's names."""
    if not start:
        return "empty"
    for signature, kind in _OTHER_FILES.items():
        if start.lstrip().startswith(signature):
            return kind
    if start.startswith(b"PK") and zipfile.is_zipfile(file):
        names = {name.rpartition("/")[2] for name in zipfile.ZipFile(file).namelist()}
        if "constants.pkl" in names:
            return "a program of TorchScript"
        if "data.pkl" not in names:
            return "a zip archive of something else"
    if start[:1] != b"\x80" and not start.startswith(b"PK") and tarfile.is_tarfile(file):
        return "a tar archive; unpack it"
    return None


def freeze_parameters(network: nn.Module, parts: str | Sequence[str | int] | None) -> list[str]:
    """Freeze modules or parameters of a network.

    Args:
        network: The network, whose frozen parameters get `requires_grad` False.
        parts: The name of a module, with all its parameters, or of a parameter, or several names.

    Returns:
        The names of the frozen modules, to be kept in evaluation mode.

    Raises:
        MisconfigurationException: The network has no such part, or nothing is left to learn.
    """
    names = [] if parts is None else [parts] if isinstance(parts, str) else [*map(str, parts)]
    modules = dict(network.named_modules())
    parameters = dict(network.named_parameters())
    for part in names:
        if not part or part not in modules | parameters:
            raise MisconfigurationException(
                f"freeze names {part!r}, which {_class_name(network)} does not have; give one of "
                f"{', '.join(dict.fromkeys(name.split('.')[0] for name in parameters))}, a part of "
                "one by its full name, or a list of several"
            )
        for name, parameter in parameters.items():
            if f"{name}.".startswith(f"{part}."):
                parameter.requires_grad_(False)
    if names and not trainable_parameters(parameters.values()):
        raise MisconfigurationException(
            f"freeze leaves nothing of {_class_name(network)} to learn; leave out its last layer "
            f"({[*parameters][-1]})"
        )
    return [part for part in names if part in modules]


def trainable_parameters(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """List the parameters that are not frozen."""
    return [parameter for parameter in parameters if parameter.requires_grad]


def _list_heads(own: Mapping[str, Tensor], num_classes: int) -> set[str]:
    """List the layers that may be heads: linear ones, or 1x1 convolutions, of all classes."""
    return {
        name.rpartition(".")[0]
        for name, tensor in own.items()
        if tensor.ndim >= 2 and len(tensor) == num_classes and set(tensor.shape[2:]) <= {1}
    }


def _is_of_head(
    name: str, own: Mapping[str, Tensor], found: Mapping[str, Tensor], heads: set[str]
) -> bool:
    """Whether a tensor is of a head, and differs from the file's in the number of classes."""
    is_of_head = own[name].ndim > 0 and name.rpartition(".")[0] in heads
    return is_of_head and (name not in found or own[name].shape[1:] == found[name].shape[1:])


def _describe(
    names: list[str], own: Mapping[str, Tensor], found: Mapping[str, Tensor], most: int = _MAX_NAMED
) -> str:
    descriptions = [
        f"{name} {_format_shape(found.get(name))} in the file, "
        f"{_format_shape(own[name])} in the network"
        for name in names
    ]
    return join_some(descriptions, most)


def _format_shape(tensor: Tensor | None) -> str:
    return "is not" if tensor is None else "x".join(map(str, tensor.shape)) or "is one number"


def _shape(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.shape


def _class_name(network: nn.Module) -> str:
    return type(network).__name__
