"""Starting from weights that there are, and leaving parts of a network as they are.

Lightning's BaseFinetuning is for callbacks that let parts learn later on. It leaves a frozen part's
batch normalisation to each batch's own statistics (`track_running_stats` is turned off, and the
part stays in training mode), so that the part is another in training than in use; here it is as in
evaluation. Its BackboneFinetuning wants an attribute `backbone`, which few networks have.
"""

import pickle
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from pyclassify.utils.text import join_some

_NAMED = 3  # of many tensors, those that are named

# What others put before the names of a network's own tensors: Lightning modules, ours among them,
# and torch's DistributedDataParallel.
_PREFIXES = ("", "model.", "module.")


def load_weights(network: nn.Module, num_classes: int, path: str) -> str:
    """Give a network the weights of a file, but for the layers whose size is the number of classes.

    Those of another number of classes keep their first values, and so they do where the file has
    none for them.

    Args:
        network: Has `num_classes` outputs.
        num_classes: The data's.
        path: What `torch.save` wrote: a state dict, such as torchvision's, or a checkpoint that
            has one as its "state_dict" or "model".

    Returns:
        A line that says what was taken, and what was not.

    Raises:
        MisconfigurationException: It is no such file, or another network's.
    """
    there, own = _read_tensors(path), network.state_dict()
    prefix = max(_PREFIXES, key=lambda each: sum(each + name in there for name in own))
    found = {
        name.removeprefix(prefix): each for name, each in there.items() if name.startswith(prefix)
    }
    fits = {name: found[name] for name in own if _shape(found.get(name)) == own[name].shape}
    left = [name for name in own if name not in fits and not name.endswith("num_batches_tracked")]
    wrong = [name for name in left if not _is_of_classes(own[name], found.get(name), num_classes)]
    if wrong := wrong if fits else left:
        raise MisconfigurationException(
            f"weights {path} are another network's: {len(wrong)} of {len(own)} tensors are missing "
            f"or of another shape ({_name(wrong, own, found)}); give a file of {_kind(network)}'s, "
            "or name its network by --model.model"
        )
    network.load_state_dict(fits, strict=False)
    told = f"weights {path}: {len(fits)} of {len(own)} tensors are taken"
    if left:
        told += f"; left at their first values: {_name(left, own, found, most=len(left))}"
    if surplus := [name for name in found if name not in own]:
        told += f"; not used: {join_some(surplus, _NAMED)}"
    return told


def _read_tensors(path: str) -> dict[str, Tensor]:
    """Read tensors by their names, and nothing else, which a file could hide a program in."""
    takes = "give a .pth or .pt file of torch.save, or a checkpoint"
    try:
        content = torch.load(Path(path).expanduser(), map_location="cpu", weights_only=True)
    except OSError as error:
        raise MisconfigurationException(
            f"weights {path} can't be read ({error.strerror}); {takes}"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise MisconfigurationException(
            f"weights {path} is no file of tensors and plain values alone; {takes}"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    named = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): each for name, each in named if isinstance(each, Tensor)}
    if not tensors:
        raise MisconfigurationException(f"weights {path} holds no tensors by their names; {takes}")
    return tensors


def freeze_parameters(network: nn.Module, parts: str | Sequence[str | int] | None) -> list[str]:
    """Keep parts of a network from learning.

    Args:
        network: Its parameters get `requires_grad` False in these parts.
        parts: The name of a module or parameter in it, all that is below it included, or several.

    Returns:
        The modules, to be kept in evaluation mode.

    Raises:
        MisconfigurationException: The network has no such part, or nothing is left to learn.
    """
    names = [] if parts is None else [parts] if isinstance(parts, str) else [*map(str, parts)]
    modules = dict(network.named_modules())
    parameters = dict(network.named_parameters())
    for part in names:
        if not part or part not in modules | parameters:
            raise MisconfigurationException(
                f"freeze names {part!r}, which {_kind(network)} does not have; give one of "
                f"{', '.join(dict.fromkeys(name.split('.')[0] for name in parameters))}, a part of "
                "one by its full name, or a list of several"
            )
        for name, each in parameters.items():
            if f"{name}.".startswith(f"{part}."):
                each.requires_grad_(False)
    if names and not trainable_parameters(parameters.values()):
        raise MisconfigurationException(
            f"freeze leaves nothing of {_kind(network)} to learn; leave out its last layer "
            f"({[*parameters][-1]})"
        )
    return [part for part in names if part in modules]


def trainable_parameters(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those parameters that an optimizer is for."""
    return [each for each in parameters if each.requires_grad]


def _is_of_classes(own: Tensor, found: Tensor | None, num_classes: int) -> bool:
    """Whether a tensor is of a layer that has an output for each class, and differs in that."""
    alike = found is None or own.shape[1:] == found.shape[1:]
    return own.ndim > 0 and len(own) == num_classes and alike


def _name(
    names: list[str], own: Mapping[str, Tensor], found: Mapping[str, Tensor], most: int = _NAMED
) -> str:
    told = [
        f"{name} {_spell(found.get(name))} in the file, {_spell(own[name])} in the network"
        for name in names
    ]
    return join_some(told, most)


def _spell(tensor: Tensor | None) -> str:
    return "is not" if tensor is None else "x".join(map(str, tensor.shape)) or "is one number"


def _shape(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.shape


def _kind(network: nn.Module) -> str:
    return type(network).__name__
