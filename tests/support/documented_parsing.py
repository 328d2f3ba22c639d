"""Give a documented command to the real parsers, without running it."""

import importlib
import re
import shlex
from functools import partial

import click
import mlflow.cli
import pytest
from mlflow.projects import _project_spec

from benchmarks.parts import loops
from pyclassify.cli.main import main
from pyclassify.slurm.cli import _read_config
from pyclassify.slurm.config import parse_config
from pyclassify.utils.options import TRAINING_COMMANDS, CommandParser
from tests.support.documented import ROOT

# What is not for the parser: variables before a program, a launcher, and what follows a program.
_AROUND = re.compile(
    r"^(?:[A-Z_]+=\S+ )*(?:srun )?(?:torchrun (?:--\S+ )*-m )?|\s*(?:>|\|\||&&|\|).*$"
)
_OURS = re.compile(r"(pyclassify|mlflow) [a-z]|python -m (pyclassify|benchmarks)\b")
_FILES = {"RECIPE": "alexnet-bn-cifar10.yaml", "RUN_ID": "0" * 32, "…": "1" * 32}


class _Parsed(BaseException):
    """A parser has accepted a command line, which is not run."""


def is_ours(text):
    """Whether a command is one that these parsers know."""
    return _OURS.match(_AROUND.sub("", text))


def parse(text):
    """Parse a command of this project or of MLflow; the parser raises where it is invalid."""
    text = _AROUND.sub("", text)
    words = [_FILES.get(word, word) for word in shlex.split(text)]
    if words[:2] == ["python", "-m"]:
        words = words[2:]
    if words[0].startswith("benchmarks."):
        _parse_benchmark(words[0], words[1:])
    elif words[0] == "mlflow":
        _parse_mlflow(words[1:])
    elif words[1] in TRAINING_COMMANDS:
        _print_config(words[1:])
    else:
        _catch(partial(main, words[1:]), words[1:])


def _print_config(words):
    try:
        code = main([*words, "--print_config"])
    except SystemExit as ended:
        code = ended.code
    assert not code, f"pyclassify {shlex.join(words)} exits with {code}"


def _parse_mlflow(words):
    """Parse by MLflow's own commands, and the parameters of `mlflow run` by those of MLproject."""
    command = mlflow.cli.cli
    while isinstance(command, click.Group):
        name, *words = words
        command = command.get_command(click.Context(command), name)
        assert command, f"mlflow has no command {name}"
    context = command.make_context(name, words)
    if context.info_name != "run":
        return
    given = context.params
    parameters = dict(each.split("=", 1) for each in given["param_list"])
    if given["backend_config"]:
        parse_config(_read_config(given["backend_config"]))
    project = _project_spec.load_project(str(ROOT))
    line = project.get_entry_point(given["entry_point"]).compute_command(parameters, None)
    _print_config(shlex.split(line)[3:])


def _parse_benchmark(module, words):
    rest = _catch(importlib.import_module(module).main, words)
    if rest and module == "benchmarks.train":
        _catch(loops.main, ["fit", "figures.json", *rest])
    elif rest:
        config = f"--config={ROOT}/configs/{words[0]}"
        _print_config(["train", config, *rest[rest[0] == "--" :]])


def _catch(function, words):
    """Call what parses a command line and then runs it, up to where it is parsed.

    Returns:
        The words that the parser leaves for another.
    """
    outermost = []

    def stop(parse_words):
        def parse_and_stop(*given, **named):
            is_outermost = not outermost
            outermost.append(True)
            result = parse_words(*given, **named)
            if is_outermost:
                raise _Parsed(result[1] if isinstance(result, tuple) else [])
            return result

        return parse_and_stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["", *words])
        for method in ("parse_args", "parse_known_args"):
            patch.setattr(CommandParser, method, stop(getattr(CommandParser, method)))
        with pytest.raises(_Parsed) as parsed:
            function()
    return parsed.value.args[0]
