"""From a run's capsule to a configuration and code that can run again, here."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from pyclassify.options import SHORT_OPTIONS
from pyclassify.tracking import likeness
from pyclassify.tracking.git import find_root, git
from pyclassify.tracking.masking import MASK
from pyclassify.tracking.repository import Code

# Settings that are paths, and count from where a person typed them.
PATHS = ("data_path", "ckpt_path")


def prepare(kept: Path, facts: dict[str, Any], options: list[str]) -> dict[str, Any]:
    """Make the configuration one that another folder can use.

    Raises:
        ValueError: A setting was masked, and no option gives it.
    """
    config = yaml.safe_load((kept / "config.yaml").read_text())
    loggers = config["trainer"]["logger"]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and "save_dir" in logger.get("init_args", {}):
            arguments = logger["init_args"]
            arguments["save_dir"] = make_absolute(arguments["save_dir"], Path.cwd())
            # The run is made already, where the runs are.
            taken = arguments.keys() & {"tracking_uri", "experiment_name", "run_name"}
            arguments.update(dict.fromkeys(taken))
    if (given := _given_checkpoint(facts["command"])) is not None:
        config["ckpt_path"] = given  # a run's id, of which the configuration has a copy's path
    for part in (config, (config.get("data") or {}).get("init_args") or {}):
        for name in PATHS:
            if part.get(name):
                part[name] = make_absolute(part[name], Path(facts["started_in"]))
    chosen = {option.partition("=")[0].removeprefix("--") for option in options}
    chosen = {SHORT_OPTIONS.get(name, name).replace(".init_args", "") for name in chosen}
    for name, value in likeness.settings(config):
        if MASK in value and name not in chosen:
            raise ValueError(
                f"the capsule has {name} without its credentials, {value}; give it whole, "
                f"--{name} VALUE"
            )
    return config


def find_code(kept: Path, known: dict[str, Any], run_id: str) -> tuple[Path, Code]:
    """Find the repository that has a run's commit.

    Raises:
        ValueError: The run had none, or this folder is in no repository that has it.
    """
    if "missing" in known:
        raise ValueError(
            f"run {run_id} can't be made again, as its code was in no commit ({known['missing']}); "
            "its artifact config.yaml, given by --config, makes it again with the code of today"
        )
    root = find_root(Path.cwd())
    commit = known["commit"]
    if root is None:
        raise ValueError(
            f"{Path.cwd()} is in no git repository; go into the one that has the run's commit "
            f"{commit}"
        )
    try:
        git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except OSError as error:
        where = f" (the run's was of {known['remote']})" if known.get("remote") else ""
        raise ValueError(
            f"the repository {root} lacks the run's commit {commit}; `git fetch` it{where}"
        ) from error
    files = (kept / "changes.diff", kept / "untracked.tar")
    content = [file.read_bytes() if file.exists() else b"" for file in files]
    return root, Code(commit, known["folder"], changes=content[0], untracked=content[1])


def _given_checkpoint(command: list[str]) -> str | None:
    for place, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name == "--ckpt_path":
            return value if equals else command[place + 1]
    return None


def make_absolute(path: str, start: Path) -> str:
    """Make a path absolute, unless it is an address, a run's id or one of Lightning's words."""
    if "://" in path or re.fullmatch(r"[0-9a-f]{32}|best|last|hpc|registry.*", path):
        return path
    return os.path.abspath(start / Path(path).expanduser())
