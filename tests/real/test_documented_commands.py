"""The commands and examples of README.md and docs/ do what the pages say, as far as they can here.

How each command is tested is in `tests.support.documented_table`.
"""

import ast
import json
import re

import pytest
import yaml

from pyclassify.slurm.config import parse_config
from tests.support import documented_parsing
from tests.support.documented import (
    ROOT,
    list_blocks,
    list_commands,
    list_markers,
    list_unmarked_commands,
)
from tests.support.documented_table import COMMANDS, JSON_OUTPUT, Elsewhere, NotHere, Run, Serve
from tests.support.documented_workplace import Workplace

TABLE = "tests/support/documented_table.py"
RUN = [text for text, how in COMMANDS.items() if isinstance(how, Run)]
SERVED = [text for text, how in COMMANDS.items() if isinstance(how, Serve)]
PARSED = [
    text
    for text, how in COMMANDS.items()
    if isinstance(how, Elsewhere | NotHere) and documented_parsing.is_ours(text)
]
PYTHON = [block for block in list_blocks() if block.language == "python"]
SETTINGS = [block for block in list_blocks() if block.language == "yaml"]
JSON = [block for block in list_blocks() if block.language == "json"]
REQUEST = "http://127.0.0.1:5001/invocations"


def mark_slow(texts):
    return [
        pytest.param(text, marks=[pytest.mark.slow] * COMMANDS[text].slow, id=text)
        for text in texts
    ]


def name_block(block):
    return f"{block.page}-{block.line}"


@pytest.fixture(scope="module")
def workplace(module_store, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        workplace = Workplace(module_store, tmp_path_factory.mktemp("documented"), patch)
        yield workplace
        workplace.close()


def test_every_documented_command_is_in_the_table():
    unknown = [each for each in list_commands() if each.text not in COMMANDS]

    listed = "\n".join(f"{each.page}:{each.line}: {each.text}" for each in unknown)
    assert not unknown, (
        f"no test runs:\n{listed}\nAdd each to COMMANDS in {TABLE}: Run or Serve where it can run "
        "here, Elsewhere with the test that runs it, or NotHere with the reason"
    )


def test_every_command_of_the_table_is_documented():
    gone = COMMANDS.keys() - {each.text for each in list_commands()}

    assert not gone, f"no page has these commands; remove them from {TABLE}: {sorted(gone)}"


def test_commands_stand_in_blocks_of_bash():
    assert list_unmarked_commands() == [], "give the block of a command the language bash"


@pytest.mark.parametrize("marker", list_markers())
def test_marked_block_is_run_by_a_test(marker):
    kind, _, name = marker.partition(":")
    folders = [ROOT / "tests/real" / kind, ROOT / "tests/support"]
    files = [ROOT / "tests/conftest.py", *(file for each in folders for file in each.glob("*.py"))]
    users = [file for file in files if f'"{name}"' in file.read_text()]
    assert users, f"no test of {kind} runs the block of {marker}"


@pytest.mark.parametrize(
    "test", sorted({how.test for how in COMMANDS.values() if isinstance(how, Elsewhere)})
)
def test_test_that_the_table_names_exists(test):
    name, _, part = test.partition("::")
    text = (ROOT / name).read_text()
    if name.endswith(".py"):
        functions = [each.name for each in ast.parse(text).body if hasattr(each, "name")]
        assert part in functions if part else any(each.startswith("test_") for each in functions)
    else:
        assert part in text


@pytest.mark.parametrize("text", PARSED)
def test_command_that_is_not_run_here_is_valid(text, monkeypatch, module_store, capsys):
    monkeypatch.chdir(ROOT)
    documented_parsing.parse(text)


@pytest.mark.parametrize("text", mark_slow(RUN))
def test_documented_command_succeeds(text, workplace):
    done = workplace.run(text)

    assert done.code == COMMANDS[text].code, f"{done.line}\n{done.output}"
    assert re.search(COMMANDS[text].printed, done.output), f"{done.line}\n{done.output}"


@pytest.mark.parametrize("text", mark_slow(SERVED))
def test_documented_server_answers(text, workplace):
    assert workplace.start_server(text)


@pytest.mark.parametrize("block", SETTINGS, ids=name_block)
def test_documented_settings_are_valid(block, cli, tmp_path):
    assert isinstance(yaml.safe_load(block.text), dict)
    (tmp_path / "settings.yaml").write_text(block.text)

    done = cli("fit --config settings.yaml --print_config")

    assert done.code == 0, done.err


@pytest.mark.parametrize("block", JSON, ids=name_block)
def test_documented_json_is_a_backend_config_or_a_response(block):
    if not block.text.startswith((*JSON_OUTPUT,)):
        parse_config(json.loads(block.text))


@pytest.mark.parametrize("block", PYTHON, ids=name_block)
def test_documented_python_runs_or_compiles(block, workplace, capsys):
    code = compile(block.text, f"{block.page}:{block.line}", "exec")
    if REQUEST in block.text:
        port = workplace.serve()["PORT"]
        exec(compile(block.text.replace(":5001", f":{port}"), code.co_filename, "exec"), {})
        assert re.search(r"^cat\.jpg \w+ [01]\.\d+$", capsys.readouterr().out, re.MULTILINE)
