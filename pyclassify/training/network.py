"""Describe the class or function that makes a network as plain values, and make it of them.

A recipe and a checkpoint name a network in the same way: by its import path, or by a mapping of
`class_path` and `init_args`.
"""

import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_type_hints

from jsonargparse import ArgumentParser
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torchvision.models import WeightsEnum

NUM_CLASSES = "num_classes"  # an argument of each network, which follows the data


class ConfiguredNetwork:
    """A factory of networks that is described by plain values: a `NetworkFactory`.

    Args:
        config: An import path, or a mapping of `class_path` and `init_args`.
        is_trusted: Whether `config` may name any function. Otherwise a function of an installed
            package has to be annotated to return a network, since functions such as torch.hub.load
            run the code that their arguments name.

    Example:
        >>> config = {"class_path": "torchvision.models.resnet18", "init_args": {"groups": 1}}
        >>> network = ConfiguredNetwork(config)(num_classes=10)
    """

    def __init__(self, config: Any, is_trusted: bool = False) -> None:
        self._config, self._is_trusted = config, is_trusted

    def to_config(self) -> Any:
        """Return the import path, or the mapping of `class_path` and `init_args`."""
        return self._config

    def __call__(self, *, num_classes: int) -> nn.Module:
        """Make the network.

        Raises:
            MisconfigurationException: The class or function can't be imported or is not trusted,
                or makes no network of its options.
        """
        is_mapping = isinstance(self._config, Mapping)
        path = self._config.get("class_path") if is_mapping else self._config
        options = (self._config.get("init_args") or {}) if is_mapping else {}
        try:
            make = import_object(str(path))
            if not self._is_trusted:
                _check_trust(path, make, options)
            network = make(**_instantiate(make, options), num_classes=num_classes)
        except MisconfigurationException:
            raise
        except Exception as error:  # of any type, of someone else's network
            raise MisconfigurationException(
                f"can't make the network {path} ({type(error).__name__}: {error}); install the "
                "package that it is of, or give the network by model="
            ) from error
        if not isinstance(network, nn.Module):
            raise MisconfigurationException(f"{path} makes a {type(network).__name__}, no network")
        return network


def describe_network(factory: Callable[..., nn.Module]) -> Any:
    """Describe the class or function that makes a network.

    Returns:
        Its import path, or a mapping of `class_path` and `init_args`; None if plain values can't
        describe it, such as a lambda.
    """
    if hasattr(factory, "to_config"):
        return factory.to_config()
    if isinstance(factory, partial):
        path = None if factory.args else describe_network(factory.func)
        is_plain = isinstance(path, str) and _is_plain(factory.keywords)
        return {"class_path": path, "init_args": factory.keywords} if is_plain else None
    path = f"{getattr(factory, '__module__', '')}.{getattr(factory, '__qualname__', '')}"
    try:
        return path if import_object(path) is factory else None
    except (ImportError, AttributeError, ValueError):
        return None


def import_object(path: str) -> Any:
    """Import what a path names: of torchvision.models.googlenet the function, not the module.

    Raises:
        ImportError: The module does not exist.
        AttributeError: The module has no such name.
        ValueError: The path is not one.
    """
    module, _, name = path.rpartition(".")
    found = resolve_name(module)
    return getattr(found, name) if hasattr(found, name) else resolve_name(path)


@lru_cache
def make_parser(make: Any) -> tuple[ArgumentParser, tuple[str, ...]]:
    """Make a parser of the options of a class or function, and list their names."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    skip: set[str | int] = {NUM_CLASSES}
    while isinstance(make, partial):
        skip |= {len(make.args)} if make.args else set()
        make = make.func
    if inspect.isclass(make):
        names = parser.add_class_arguments(make, skip=skip, fail_untyped=False)
    else:
        function = make if inspect.isroutine(make) else type(make).__call__
        names = parser.add_function_arguments(function, skip=skip, fail_untyped=False)
    return parser, tuple(names)


def _instantiate(make: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Make arguments of plain values: of a layer's import path the layer."""
    parser, known = make_parser(make)
    values = {name: value for name, value in options.items() if name in known}
    read = parser.parse_object(values, defaults=inspect.isclass(make))
    made = parser.instantiate(read, instantiate_groups=False)
    rest = {name: value for name, value in options.items() if name not in known}
    arguments = {**rest, **dict(made.items(branches=True, nested=False))}
    if isinstance(arguments.get("weights"), WeightsEnum):
        arguments["weights"] = None  # the trained ones replace them
    return arguments


def _check_trust(path: Any, make: Any, options: Any) -> None:
    for found, name in [(make, path), *((import_object(p), p) for p in _list_paths(options))]:
        if not _returns_network(found) and (inspect.isclass(found) or _is_installed(found)):
            raise MisconfigurationException(
                f"the checkpoint names the network {name}, which is neither a network's class nor "
                "annotated to return a network, so it is not called; give the network by model= "
                "if you trust the checkpoint"
            )


def _list_paths(value: Any) -> Iterator[str]:
    """List the import paths of classes in options."""
    if isinstance(value, Mapping):
        if "class_path" in value:
            yield str(value["class_path"])
        value = [*value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _list_paths(item)


def _returns_network(make: Any) -> bool:
    if not inspect.isclass(make):
        try:
            make = get_type_hints(make).get("return")
        except (NameError, TypeError):
            return False
    return inspect.isclass(make) and issubclass(make, nn.Module)


def _is_installed(make: Any) -> bool:
    """Whether a function is of Python or an installed package, not of the user's own files."""
    module = sys.modules.get(getattr(make, "__module__", ""))
    if getattr(module, "__name__", "") == "__main__":
        return False
    path = Path(getattr(module, "__file__", None) or sysconfig.get_path("stdlib"))
    is_of_python = path.is_relative_to(sysconfig.get_path("stdlib"))
    return is_of_python or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint can hold a value without Python objects."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
