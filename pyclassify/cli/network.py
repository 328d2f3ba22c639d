"""Read the network that `--model.model` names: a class, or a function that makes it, with options.

jsonargparse reads the options of a class that a `Callable` returns. It reads none of a function's,
and leaves out a class's first argument, whatever its name, instead of num_classes. Here its
parsers of classes and of functions read both in the same way: from the signature, and from the
signatures of what `**kwargs` is passed on to.
"""

import inspect
import json
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from pkgutil import resolve_name
from traceback import walk_tb
from typing import Any

import torchvision.models
import yaml
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import register_type
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torchvision.models import WeightsEnum, get_model_weights, list_models

from pyclassify.cli.errors import (
    format_import_error,
    format_parser_error,
    format_unknown_argument,
)
from pyclassify.model import NetworkFactory
from pyclassify.module import Classifier
from pyclassify.training.network import NUM_CLASSES, import_object, make_parser
from pyclassify.utils.options import (
    CONFIG_OPTIONS,
    list_settings,
    load_config,
    sort_options,
    split_options,
)
from pyclassify.utils.text import format_error, join_some

OPTION = "model.model"
_PARTS = ("init_args", "dict_kwargs")  # of a mapping that names a class, as jsonargparse has them
_UNEXPECTED_ARGUMENT = re.compile(r"(\w+)?(?:\.__init__)?\(\) got an unexpected keyword.* '(\w+)'")
_OTHER_TASKS = ("detection", "segmentation", "video", "optical_flow")  # in torchvision.models
_MAX_CHARACTERS = 200  # of another library's message


class NetworkSpec:
    """The class or function that makes a network, with its options: a `NetworkFactory`.

    Nothing is imported before it is needed: of several recipes, only the last network is.

    Args:
        value: An import path, or a mapping of `class_path` and `init_args` as in a recipe.
        options: Options that win over those, each as `name=value`.

    Example:
        >>> NetworkSpec("torchvision.models.squeezenet1_1", ["dropout=0.2"])(num_classes=10)
    """

    def __init__(self, value: Any, options: Sequence[str] = ()) -> None:
        self._value, self._options = value, options

    def __call__(self, *, num_classes: int) -> nn.Module:
        """Make the network.

        Raises:
            MisconfigurationException: The options are not those of the class or function, or it
                makes no network of them.
        """
        task = re.match(
            r"torchvision\.models\.(\w+)\.", f"{getattr(self._make, '__module__', '')}."
        )
        if task and task[1] in _OTHER_TASKS:
            raise MisconfigurationException(
                f"invalid {OPTION}: {self._path} makes a network for {task[1].replace('_', ' ')} "
                "(expected one that classifies images, such as torchvision.models.resnet50)"
            )
        made = self._parser.instantiate(self._read, instantiate_groups=False)
        arguments = {**self._unread, **dict(made.items(branches=True, nested=False))}
        if self.pretrained is not None:
            # The function would refuse another number of classes than that of the weights.
            arguments["weights"] = None
        try:
            network = self._make(**arguments, num_classes=num_classes)
        except MisconfigurationException:
            raise
        except Exception as error:
            message = self._format_error(error, arguments, num_classes)
            if message is None:
                raise
            raise MisconfigurationException(message) from error
        if not isinstance(network, nn.Module):
            raise MisconfigurationException(
                f"invalid {OPTION}: {self._path} makes a {type(network).__name__} (expected a "
                "class or function that makes a torch.nn.Module)"
            )
        self._check_unread(network)
        return network

    @property
    def pretrained(self) -> WeightsEnum | None:
        """torchvision's weights that the option `weights` names, to load into the network."""
        weights = self._read.get("weights")
        return weights if isinstance(weights, WeightsEnum) else None

    def to_config(self) -> str | dict[str, Any]:
        """Return the path and the options as in a recipe; of a function without any, the path."""
        dumped = yaml.safe_load(self._parser.dump(self._read, skip_validation=True))
        options = {**self._unread, **(dumped or {})}
        if not options and not inspect.isclass(self._make):
            return self._path
        config: dict[str, Any] = {"class_path": self._path}
        return {**config, "init_args": options} if options else config

    def format_help(self) -> str:
        """List the options, one a line."""
        defaults = self._parser.get_defaults()
        lines = [f"options of {self._path} (num_classes is set from the data):"]
        for name in self._known:
            default = defaults.get(name)
            shown = getattr(default, "class_path", default)
            lines.append(f"  --{OPTION}.{name} (default: {shown})")
        if _takes_any_option(self._make):
            lines.append(f"  --{OPTION}.NAME (passed on by **kwargs)")
        return "\n".join(lines) + "\n"

    @cached_property
    def _path(self) -> str:
        path = self._value.get("class_path") if isinstance(self._value, Mapping) else self._value
        if not isinstance(path, str):
            raise MisconfigurationException(
                f"invalid {OPTION}: {self._value!r} (expected the import path of a class or "
                "function, or a mapping with its class_path)"
            )
        return _find_path(path)

    @property
    def _name(self) -> str:
        return self._path.rpartition(".")[2]

    @cached_property
    def _make(self) -> Callable[..., Any]:
        found = import_object(self._path)
        if not callable(found) or isinstance(found, nn.Module):
            raise MisconfigurationException(
                f"invalid {OPTION}: {self._path!r} is of type {type(found).__name__} (expected the "
                "import path of a class or function that makes the network, given num_classes)"
            )
        return found

    @property
    def _parser(self) -> ArgumentParser:
        return make_parser(self._make)[0]

    @property
    def _known(self) -> tuple[str, ...]:
        return _list_options(self._make)

    @cached_property
    def _given(self) -> dict[str, Any]:
        """The options of the recipe."""
        parts = [self._value.get(part) for part in _PARTS if isinstance(self._value, Mapping)]
        given = {name: value for part in parts for name, value in (part or {}).items()}
        return dict(self._check(given.items()))

    @cached_property
    def _typed(self) -> list[tuple[str, Any]]:
        """The options of the command line, nested ones by their dotted name."""
        pairs = (option.partition("=") for option in self._options)
        return [*self._check((name, value) for name, _, value in pairs)]

    def _check(self, options: Any) -> Iterator[tuple[str, Any]]:
        for name, value in options:
            if name == NUM_CLASSES:
                rank_zero_warn(
                    f"--{OPTION}.num_classes is ignored: num_classes is set from the data"
                )
                continue
            known = name.partition(".")[0] in self._known
            is_legacy = name == "pretrained" and _get_weights_enum(self._make) is not None
            if is_legacy or not (known or _takes_any_option(self._make)):
                raise MisconfigurationException(self._format_unknown(name, self._known))
            yield name, self._shorten_weights(value) if name == "weights" else value

    @cached_property
    def _read(self) -> Namespace:
        """The options that signatures know: those given, and of a class the others too."""
        values = {name: value for name, value in self._given.items() if name in self._known}
        words = []
        for name, value in self._typed:
            if name in _list_required(self._make):
                values[name] = value  # parsed with the recipe's, which would lack it
            elif name.partition(".")[0] in self._known:
                words.append(f"--{name}={value}")
        for name in _list_required(self._make):
            if name not in (*self._given, *dict(self._typed)):
                raise MisconfigurationException(
                    f"{self._name} requires {name}; give --{OPTION}.{name} VALUE"
                )
        defaults = inspect.isclass(self._make)
        try:
            read = self._parser.parse_object(values, defaults=defaults)
            return self._parser.parse_args(words, namespace=read, defaults=defaults)
        except (ArgumentError, TypeError, ValueError) as error:
            raise MisconfigurationException(self._format_parser_error(error)) from error

    @cached_property
    def _unread(self) -> dict[str, Any]:
        """The options that no signature knows, which `**kwargs` takes."""
        given = {**self._given, **{name: _load(value) for name, value in self._typed}}
        return {k: value for k, value in given.items() if k.partition(".")[0] not in self._known}

    def _check_unread(self, network: nn.Module) -> None:
        """Refuse options that a network of torchvision ignores: MobileNetV3 takes any."""
        if not self._unread or not type(network).__module__.startswith("torchvision."):
            return
        known = {*self._known, *_list_options(type(network))}
        for name in self._unread:
            if name not in known:
                raise MisconfigurationException(self._format_unknown(name, [*known]))

    def _shorten_weights(self, value: Any) -> Any:
        """Take DEFAULT out of `ResNet18_Weights.DEFAULT`, as Python spells it."""
        enum, _, member = str(value).rpartition(".")
        own = _get_weights_enum(self._make)
        return member if own is not None and enum.rpartition(".")[2] == own.__name__ else value

    def _format_error(
        self, error: Exception, arguments: Mapping[str, Any], num_classes: int
    ) -> str | None:
        """Format what making the network raised; None where its options are not the cause."""
        unexpected = _UNEXPECTED_ARGUMENT.search(str(error))
        if isinstance(error, TypeError) and unexpected:
            if unexpected[2] == NUM_CLASSES:
                return (
                    f"invalid {OPTION}: {self._path} does not accept num_classes (expected a class "
                    "or function that makes a network of num_classes outputs)"
                )
            if unexpected[2] in arguments:
                inner = _list_arguments(unexpected[1], error)
                return self._format_unknown(unexpected[2], [*self._known, *inner])
        if isinstance(error, ImportError):
            return f"can't make {self._path}: {format_error(error)}; install the missing package"
        if not arguments and not isinstance(error, (TypeError, ValueError)):
            return None
        given = [f"{name}={value}" for name, value in arguments.items()]
        return (
            f"can't make {self._name} with {join_some([*given, f'num_classes={num_classes}'])}: "
            f"{format_error(error, _MAX_CHARACTERS)}; see `--{OPTION}.help`"
        )

    def _format_unknown(self, name: str, known: Sequence[str]) -> str:
        option = f"{OPTION}.{name}"
        if name == "pretrained" and _get_weights_enum(self._make) is not None:
            return f"{self._name} has no option {option!r}; give --{OPTION}.weights=DEFAULT"
        if not known:
            return f"{self._name} has no option {option!r}; it accepts num_classes only"
        return format_unknown_argument(self._name, option, [f"{OPTION}.{each}" for each in known])

    def _format_parser_error(self, error: Exception) -> str:
        text = str(error).replace('Parser key "', f'Parser key "{OPTION}.', 1)
        return format_parser_error(text, [])


def register_network_type() -> None:
    """Have parsers read an argument that is a `NetworkFactory` as a `NetworkSpec`."""
    register_type(NetworkFactory, _serialize, NetworkSpec, type_check=lambda v, _: callable(v))


def merge_network_options(args: list[str]) -> list[str]:
    """Put the network of all recipes and its options into one option, which the parser reads.

    Args:
        args: A training command's options in full, as `expand_options` returns them.

    Raises:
        MisconfigurationException: The options are not those of the network.
        SystemExit: The command line has --model.model.help, and the options are printed.
    """
    module: Any = None
    network: Any = _serialize(inspect.signature(Classifier.__init__).parameters["model"].default)
    others, own, asks_help = args[:1], [], False
    for option in sort_options(split_options(args[1:])):
        name, equals, text = option[0].partition("=")
        text = text if equals else "".join(option[1:])
        name = name if name in CONFIG_OPTIONS else next(list_settings(option), (name, ""))[0]
        if name.startswith(f"{OPTION}."):
            asks_help = asks_help or name == f"{OPTION}.help"
            own.append(f"{name.removeprefix(f'{OPTION}.')}={text}")
            continue
        others += option
        if name in CONFIG_OPTIONS:
            chosen = _as_mapping(load_config(text).get("model"))
            module = chosen.get("class_path") or module
            network = _merge(network, _as_mapping(chosen.get("init_args")).get("model"))
        elif name == "model":
            module = text
        elif name == OPTION:
            network = _merge(network, _load(text))
    if not own or not _is_classifier(module):
        return args
    if asks_help:
        sys.stdout.write(NetworkSpec(network).format_help())
        raise SystemExit(0)
    config = NetworkSpec(network, own).to_config()
    return [*others, f"--{OPTION}={config if isinstance(config, str) else json.dumps(config)}"]


def _get_weights_enum(make: Callable[..., Any]) -> type[WeightsEnum] | None:
    """Get the weights that a function of torchvision has; None for any other."""
    try:
        return get_model_weights(make)
    except (AttributeError, TypeError, ValueError):
        return None


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {} if value is None else {"class_path": value}


def _merge(before: Any, value: Any) -> Any:
    """Merge the network's settings of two recipes: the later one wins."""
    before, value = _as_mapping(before), _as_mapping(value)
    path = before["class_path"]
    if value.get("class_path", path) != path:
        return value
    parts = {part: {**(before.get(part) or {}), **(value.get(part) or {})} for part in _PARTS}
    return {"class_path": path, **parts}


def _is_classifier(path: Any) -> bool:
    """Whether a LightningModule, by its path or bare name, is a Classifier."""
    if "." not in str(path):
        return path in [Classifier.__name__, *(c.__name__ for c in _list_subclasses(Classifier))]
    try:
        found = resolve_name(str(path))
    except (ImportError, AttributeError, ValueError):
        return False  # which the parser refuses
    return inspect.isclass(found) and issubclass(found, Classifier)


def _list_subclasses(base: type[Any]) -> Iterator[type[Any]]:
    for subclass in base.__subclasses__():
        yield subclass
        yield from _list_subclasses(subclass)


def _serialize(factory: Any) -> Any:
    if not isinstance(factory, NetworkSpec):
        factory = NetworkSpec(f"{factory.__module__}.{factory.__qualname__}")
    return factory.to_config()


def _load(text: Any) -> Any:
    """Load a value of the command line as YAML; one that is not YAML stays as it is."""
    if re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", str(text)):
        return float(text)  # to YAML 1.1, 1e-3 is a text
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, AttributeError):
        return text


def _find_path(path: str) -> str:
    """Find the import path of a path or a bare name: of a class, the shortest one."""
    if "." not in path:
        found = [each for each in _list_subclasses(nn.Module) if each.__name__ == path]
        if not found:
            near = get_close_matches(path.lower(), list_models(torchvision.models), n=1)
            hint = f". Did you mean 'torchvision.models.{near[0]}'?" if near else ""
            raise MisconfigurationException(format_import_error(OPTION, path) + hint)
        return _shorten_path(found[0])
    try:
        resolved = import_object(path)
    except Exception as error:  # of any type, in a module of the user's
        missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
        is_elsewhere = not isinstance(error, (ImportError, AttributeError, ValueError))
        if is_elsewhere or (missing and not f"{path}.".startswith(f"{missing}.")):
            raise MisconfigurationException(
                f"invalid {OPTION}: {path!r} can't be imported: {type(error).__name__}: "
                f"{format_error(error, _MAX_CHARACTERS)}"
            ) from error
        raise MisconfigurationException(format_import_error(OPTION, path)) from None
    return _shorten_path(resolved) if inspect.isclass(resolved) else path


def _shorten_path(found: type) -> str:
    """The shortest path of a class; of ours the one of its module, as all parameters have it."""
    names = found.__module__.split(".")
    for count in range(1, len(names)):
        module = ".".join(names[:count])
        is_there = getattr(sys.modules.get(module), found.__name__, None) is found
        if is_there and names[0] != __name__.partition(".")[0]:
            return f"{module}.{found.__name__}"
    return f"{found.__module__}.{found.__qualname__}"


def _list_options(make: Callable[..., Any]) -> tuple[str, ...]:
    return make_parser(make)[1]


def _takes_any_option(make: Callable[..., Any]) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in _list_parameters(make).values())


def _list_required(make: Callable[..., Any]) -> list[str]:
    return [
        name
        for name, each in _list_parameters(make).items()
        if each.default is each.empty
        and each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
        and name != NUM_CLASSES
    ]


def _list_parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(make).parameters
    except (TypeError, ValueError):  # some of C have none
        return {}


def _list_arguments(name: str | None, error: Exception) -> tuple[str, ...]:
    """List the options of the function or class that refused one, by its name in the message."""
    for frame, _ in walk_tb(error.__traceback__):
        for found in (*frame.f_locals.values(), frame.f_globals.get(name or "")):
            if getattr(found, "__name__", None) == name and callable(found):
                return _list_options(found)
    return ()
