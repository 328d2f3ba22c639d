"""Load pretrained weights, and freeze parts of a network.

Lightning's BaseFinetuning is for callbacks that unfreeze modules later. In a frozen module it lets
BatchNorm use the statistics of each batch (it turns off `track_running_stats`, and the module stays
in training mode), so that the module differs between training and evaluation. Here a frozen module
stays in evaluation mode. Lightning's BackboneFinetuning needs an attribute `backbone`, which few
networks have.
"""

import argparse
import pathlib
import pickle
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from pyclassify.serving.export import read_state_dict
from pyclassify.utils.text import format_error, join_some

_MAX_NAMED = 3  # tensors that an error lists
_MAX_DEPTH = 3  # nested mappings around a state dict in a file
_EXPECTED = "give a state dict or a checkpoint of torch.save, or a .safetensors file"

# Wrappers that add to the names of tensors anywhere in them: torch.compile, and
# DistributedDataParallel around a part of a network. A prefix of all names needs no entry.
_WRAPPERS = (re.compile(r"(?<![^.])_orig_mod\."), re.compile(r"(?<![^.])(_orig_mod|module)\."))

# Plain values in the checkpoints of other projects that torch.load(weights_only=True) refuses.
# Unpickling them runs no code.
_PLAIN_CLASSES: list[Any] = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]

# First bytes of files that are often given instead of weights.
_OTHER_FILES = {
    b"version https://git-lfs": "a pointer of Git LFS; `git lfs pull` fetches the file",
    b"<": "a web page, perhaps of a failed download",
    b"\x1f\x8b": "compressed by gzip; unpack it",
    b"BZh": "compressed by bzip2; unpack it",
    b"\xfd7zXZ": "compressed by xz; unpack it",
    b"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it",
    b"7z\xbc\xaf": "a 7z archive; unpack it",
    b"\x89HDF": "an HDF5 file, perhaps of Keras",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"{": "a JSON file, perhaps the index of a model in several files",
}

_find_file: Callable[[str], str] | None = None


def set_weights_finder(find_file: Callable[[str], str] | None) -> None:
    """Set a function that finds the file of weights which are not a path, such as a run's ID.

    Args:
        find_file: A function that returns a path, or its argument if it does not know it. It
            raises a ValueError or OSError if there are no such weights.
    """
    global _find_file
    _find_file = find_file


def find_weights_file(weights: str) -> Path:
    """Find the file of weights: a path, or what the function of `set_weights_finder` knows.

    Raises:
        MisconfigurationException: There are no such weights.
    """
    path = Path(weights).expanduser()
    if _find_file is None or path.is_file():
        return path
    try:
        return Path(_find_file(weights)).expanduser()
    except (ValueError, OSError) as error:
        raise MisconfigurationException(f"invalid weights: {error}") from error


def load_weights(network: nn.Module, num_classes: int, source: str | WeightsEnum) -> str:
    """Load the weights of a file, except a classification head of another number of classes.

    The head is also re-initialized if the file has no weights for it. If a file contains several
    state dicts, the best match is loaded, and of equal matches the EMA.

    Args:
        network: The network, with `num_classes` outputs.
        num_classes: The number of classes of the data.
        source: A file that `torch.save` or safetensors wrote: a state dict, such as torchvision's,
            or a checkpoint that contains one; or the exported program of a model. Or the weights of
            a function of torchvision.

    Returns:
        A message about the tensors that were loaded, and those that were not.

    Raises:
        MisconfigurationException: The file can't be read, contains no state dict, or has the
            weights of another network.
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
        raise MisconfigurationException(f"{label} contains no named tensors; {_EXPECTED}")
    key, found, fits = _choose_state(states, dict(network.named_parameters()))
    if len(states) > 1 and key:
        label += f" ({key})"
    left = [name for name in own if name not in fits and not name.endswith("num_batches_tracked")]
    heads = _list_heads(own, num_classes)
    wrong = [name for name in left if not _is_of_head(name, own, found, heads)]
    if wrong := wrong if fits else left:
        raise MisconfigurationException(
            f"{label} are of another network: {len(wrong)} of {len(own)} tensors are missing or "
            f"have another shape ({_describe(wrong, own, found)}); the file has "
            f"{join_some([*found], _MAX_NAMED)}; give a file with weights of "
            f"{_class_name(network)}, or the file's network by --model.model"
        )
    network.load_state_dict(fits, strict=False)
    message = f"{label}: loaded {len(fits)} of {len(own)} tensors"
    if left:
        message += f"; re-initialized: {_describe(left, own, found, max_named=len(left))}"
    if surplus := [name for name in found if name not in own]:
        message += f"; not used: {join_some(surplus, _MAX_NAMED)}"
    return message


def download(weights: WeightsEnum) -> Mapping[str, Tensor]:
    """Download weights of torchvision, unless they are in torch.hub's folder, and read them.

    Raises:
        MisconfigurationException: The download fails, or the file is damaged.
    """
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise MisconfigurationException(
            f"weights {weights} can't be downloaded ({format_error(error)}); run `pyclassify "
            f"prepare` on a machine with internet access, or put {weights.url} into {folder}"
        ) from error


def _find_state_dicts(
    content: Any, key: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Find the mappings of names to tensors in a file, each with its path of keys."""
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
    """Choose the state dict that matches most parameters, of equal matches the EMA.

    An EMA of the parameters only gets the buffers, such as running statistics, of another.
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
    """Rename the tensors of a file as in the network, without the prefixes of wrappers.

    Returns:
        All tensors of the file by their new names, and those that match the network's in shape.
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
        # If the network wraps the file's network, its names have a prefix that the file's lack.
        for found in (stripped, {f"{inner}{name}": tensor for name, tensor in plain.items()}):
            fits = {n: found[n] for n in own if _shape(found.get(n)) == own[n].shape}
            if len(fits) > len(best[1]) or not best[0]:
                best = found, fits
    return best


def _find_prefix(names: Iterable[str], known: Mapping[str, Any]) -> str:
    """Find the prefix without which most names are known; of equal ones the shortest."""
    votes = Counter({"": 0})
    for name in names:
        words = name.split(".")
        for count in range(len(words)):
            if ".".join(words[count:]) in known:
                votes["".join(f"{word}." for word in words[:count])] += 1
    return max(votes, key=lambda prefix: (votes[prefix], -len(prefix)))


def _read(path: str) -> Any:
    """Read tensors and plain values, but no other objects: unpickling those can execute code."""
    file = find_weights_file(path)
    try:
        with file.open("rb") as opened:
            start = opened.read(64)
    except OSError as error:
        raise MisconfigurationException(
            f"weights {path} can't be read ({error.strerror}); {_EXPECTED}"
        ) from error
    header_bytes = int.from_bytes(start[:8], "little")  # a safetensors file begins so
    is_safetensors = start[8:9] == b"{" and header_bytes < file.stat().st_size
    kind = None if is_safetensors else _recognize(start, file)
    if kind is not None:
        raise MisconfigurationException(f"weights {path} is {kind}; {_EXPECTED}")
    try:
        if is_safetensors:
            return load_file(file)
        if file.suffix == ".pt2":
            return read_state_dict(file)
        with torch.serialization.safe_globals(_PLAIN_CLASSES):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises various types for a file of another kind
        if found := re.search(r"GLOBAL (\S+)|(?:class|type) (\S+)", str(error)):
            raise MisconfigurationException(
                f"weights {path} contains a Python object ({found[1] or found[2]}); unpickling it "
                "could run code, so it is not loaded; save model.state_dict() instead"
            ) from error
        raise MisconfigurationException(
            f"weights {path} is damaged or not a file of tensors and plain values; {_EXPECTED}"
        ) from error


def _recognize(start: bytes, file: Path) -> str | None:
    """Recognize a file of another kind by its first bytes or the names in its archive."""
    if not start:
        return "empty"
    for signature, kind in _OTHER_FILES.items():
        if start.lstrip().startswith(signature):
            return kind
    if start.startswith(b"PK") and zipfile.is_zipfile(file):
        names = {name.rpartition("/")[2] for name in zipfile.ZipFile(file).namelist()}
        if "constants.pkl" in names:
            return "a TorchScript program"
        if "archive_format" in names:
            return (
                None if file.suffix == ".pt2" else "an exported program; rename it to end in .pt2"
            )
        if "data.pkl" not in names:
            return "a zip archive without weights"
    if start[:1] != b"\x80" and not start.startswith(b"PK") and tarfile.is_tarfile(file):
        return "a tar archive; unpack it"
    return None


def freeze_parameters(network: nn.Module, frozen: str | Sequence[str | int] | None) -> list[str]:
    """Freeze modules or parameters of a network.

    Args:
        network: The network, whose frozen parameters get `requires_grad` False.
        frozen: The name of a module (all its parameters) or of a parameter, or several names.

    Returns:
        The names of the frozen modules, which should stay in evaluation mode.

    Raises:
        MisconfigurationException: The network has no such module or parameter, or all parameters
            are frozen.
    """
    names = [] if frozen is None else [frozen] if isinstance(frozen, str) else [*map(str, frozen)]
    modules = dict(network.named_modules())
    parameters = dict(network.named_parameters())
    for name in names:
        if not name or name not in modules | parameters:
            top_level = dict.fromkeys(parameter.split(".")[0] for parameter in parameters)
            raise MisconfigurationException(
                f"invalid freeze: {_class_name(network)} has no module or parameter {name!r} "
                f"(expected one of {', '.join(top_level)}, the full name of a module inside one of "
                "them, or a list of several)"
            )
        for parameter, value in parameters.items():
            if f"{parameter}.".startswith(f"{name}."):
                value.requires_grad_(False)
    if names and not trainable_parameters(parameters.values()):
        raise MisconfigurationException(
            f"freeze leaves {_class_name(network)} without trainable parameters; do not freeze its "
            f"last layer ({[*parameters][-1]})"
        )
    return [name for name in names if name in modules]


def trainable_parameters(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """List the parameters that are not frozen."""
    return [parameter for parameter in parameters if parameter.requires_grad]


def _list_heads(own: Mapping[str, Tensor], num_classes: int) -> set[str]:
    """List the layers that may be heads: linear or 1x1 convolutions, with num_classes outputs."""
    return {
        name.rpartition(".")[0]
        for name, tensor in own.items()
        if tensor.ndim >= 2 and len(tensor) == num_classes and set(tensor.shape[2:]) <= {1}
    }


def _is_of_head(
    name: str, own: Mapping[str, Tensor], found: Mapping[str, Tensor], heads: set[str]
) -> bool:
    """Whether a tensor is of a head and differs from the file's only in the number of classes."""
    is_of_head = own[name].ndim > 0 and name.rpartition(".")[0] in heads
    return is_of_head and (name not in found or own[name].shape[1:] == found[name].shape[1:])


def _describe(
    names: list[str],
    own: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    max_named: int = _MAX_NAMED,
) -> str:
    descriptions = [
        f"{name} {_format_shape(found.get(name))} in the file, "
        f"{_format_shape(own[name])} in the network"
        for name in names
    ]
    return join_some(descriptions, max_named)


def _format_shape(tensor: Tensor | None) -> str:
    return "is not" if tensor is None else "x".join(map(str, tensor.shape)) or "is one number"


def _shape(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.shape


def _class_name(network: nn.Module) -> str:
    return type(network).__name__
