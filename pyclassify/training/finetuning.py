"""Load pretrained weights, and freeze parts of a network.

Lightning's BaseFinetuning is for callbacks that unfreeze modules later. It lets a frozen module's
BatchNorm use each batch's own statistics (`track_running_stats` is turned off, and the module stays
in training mode), so that the module differs between training and evaluation; here a frozen module
stays in evaluation mode. Its BackboneFinetuning needs an attribute `backbone`, which few networks
have.
"""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from pyclassify.utils.text import join_some

_MAX_NAMED = 3  # tensors that an error names

# Prefixes of a network's tensors in the state dicts of Lightning modules, ours among them, and of
# torch's DistributedDataParallel.
_PREFIXES = ("", "model.", "module.")


def load_weights(network: nn.Module, num_classes: int, path: str) -> str:
    """Load the weights of a file, except a classification head of another number of classes.

    The head keeps its initial values too where the file has no weights for it.

    Args:
        network: The network, with `num_classes` outputs.
        num_classes: The number of classes of the data.
        path: What `torch.save` wrote: a state dict, such as torchvision's, or a checkpoint that
            has one as its "state_dict" or "model".

    Returns:
        A message about what was loaded, and what was not.

    Raises:
        MisconfigurationException: It is no such file, or another network's.
    """
    there, own = _read_tensors(path), network.state_dict()
    prefix = max(_PREFIXES, key=lambda p: sum(p + name in there for name in own))
    found = {
        name.removeprefix(prefix): tensor
        for name, tensor in there.items()
        if name.startswith(prefix)
    }
    fits = {name: found[name] for name in own if _shape(found.get(name)) == own[name].shape}
    left = [name for name in own if name not in fits and not name.endswith("num_batches_tracked")]
    wrong = [name for name in left if not _is_of_head(own[name], found.get(name), num_classes)]
    if wrong := wrong if fits else left:
        raise MisconfigurationException(
            f"weights {path} are another network's: {len(wrong)} of {len(own)} tensors are missing "
            f"or of another shape ({_describe(wrong, own, found)}); give a file of "
            f"{_class_name(network)}'s, or name its network by --model.model"
        )
    network.load_state_dict(fits, strict=False)
    message = f"weights {path}: {len(fits)} of {len(own)} tensors are taken"
    if left:
        message += f"; left at their first values: {_describe(left, own, found, most=len(left))}"
    if surplus := [name for name in found if name not in own]:
        message += f"; not used: {join_some(surplus, _MAX_NAMED)}"
    return message


def _read_tensors(path: str) -> dict[str, Tensor]:
    """Read tensors by name, and no other objects, as unpickling those can execute code."""
    expected = "give a .pth or .pt file of torch.save, or a checkpoint"
    try:
        content = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
    except OSError as error:
        raise MisconfigurationException(
            f"weights {path} can't be read ({error.strerror}); {expected}"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise MisconfigurationException(
            f"weights {path} is no file of tensors and plain values alone; {expected}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
    if not tensors:
        raise MisconfigurationException(
            f"weights {path} holds no tensors by their names; {expected}"
        )
    return tensors


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


def _is_of_head(own: Tensor, found: Tensor | None, num_classes: int) -> bool:
    """Whether a tensor is of the classification head, and differs in the number of classes."""
    same_inputs = found is None or own.shape[1:] == found.shape[1:]
    return own.ndim > 0 and len(own) == num_classes and same_inputs


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
