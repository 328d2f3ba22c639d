"""From a run's capsule to a configuration and code that can run again, here."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from pyclassify.tracking import capsule
from pyclassify.tracking.run import make_run_environment
from pyclassify.utils.masking import MASK
from pyclassify.utils.options import PATH_OPTIONS, SHORT_OPTIONS, format_options
from pyclassify.utils.repository import Code, find_root, run_git
from pyclassify.utils.signals import STOP_SIGNALS, raise_on_stop, wait_for_child


def prepare_config(
    kept: Path, facts: dict[str, Any], options: list[str], saves_in: Path
) -> dict[str, Any]:
    """Make the configuration one that another folder can use.

    Args:
        kept: The folder of the capsule.
        facts: Those of its capsule.json.
        options: What is given on the command line beside it.
        saves_in: The folder that a relative `save_dir` counts from.

    Raises:
        ValueError: A setting was masked, and no option gives it.
    """
    config = yaml.safe_load((kept / "config.yaml").read_text())
    for arguments in list_saving_loggers(config):
        arguments["save_dir"] = make_absolute(arguments["save_dir"], saves_in)
        # The run is made already, where the runs are.
        taken = arguments.keys() & {"tracking_uri", "experiment_name", "run_name"}
        arguments.update(dict.fromkeys(taken))
    if (given := _given_checkpoint(facts["command"])) is not None:
        config["ckpt_path"] = given  # a run's id, of which the configuration has a copy's path
    for option in PATH_OPTIONS:
        section, _, name = option.rpartition(".")
        settings = (config.get(section) or {}).get("init_args") or {} if section else config
        if isinstance(settings.get(name), str):
            settings[name] = resolve_path(name, settings[name], Path(facts["started_in"]))
    chosen = {parse_option_name(option) for option in options}
    for name, value in format_options(config):
        if MASK in value and name not in chosen:
            raise ValueError(
                f"the capsule has {name} without its credentials, {value}; give it whole, "
                f"--{name} VALUE"
            )
    return config


def list_saving_loggers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The arguments of those loggers in a configuration that have a folder to save in."""
    loggers = config["trainer"]["logger"]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = isinstance(logger, dict) and logger.get("init_args")
        if arguments and "save_dir" in arguments:
            yield arguments


def parse_option_name(option: str) -> str:
    """The dotted name of the setting that a word of the command line sets."""
    name = option.partition("=")[0].removeprefix("--")
    return SHORT_OPTIONS.get(name, name).replace(".init_args", "")


def find_code(
    kept: Path, known: dict[str, Any], run_id: str, folder: Path | None = None
) -> tuple[Path, Code]:
    """Find the repository that has a run's commit.

    Args:
        kept: The folder of the run's capsule.
        known: What its capsule.json has of git.
        run_id: The run.
        folder: Where to look; this process's own folder without it.

    Raises:
        ValueError: The run had none, or the folder is in no repository that has it.
    """
    folder = folder or Path.cwd()
    if "missing" in known:
        raise ValueError(
            f"run {run_id} can't be made again, as its code was in no commit ({known['missing']}); "
            "its artifact config.yaml, given by --config, makes it again with the code of today"
        )
    root = find_root(folder)
    commit = known["commit"]
    if root is None:
        raise ValueError(
            f"{folder} is in no git repository; go into the one that has the run's commit {commit}"
        )
    try:
        run_git(root, "cat-file", "-e", f"{commit}^{{commit}}")
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


def resolve_path(name: str, value: str, start: Path) -> str:
    """Make the path that a setting has absolute; a model of another's may take `weights` by a word.

    Args:
        name: The last key of one of PATH_OPTIONS.
        value: The path.
        start: What it counts from.
    """
    path = make_absolute(value, start)
    return value if name == "weights" and not os.path.exists(path) else path


def make_absolute(path: str, start: Path) -> str:
    """Make a path absolute, unless it is an address, a run's id or one of Lightning's words."""
    if re.match(r"\w+:/", path) or re.fullmatch(r"[0-9a-f]{32}|best|last|hpc|registry.*", path):
        return path
    return os.path.abspath(start / Path(path).expanduser())


def look_up_run(run_id: str) -> tuple[Any, Any]:
    """Find a run, and the client that has it."""
    from mlflow.exceptions import MlflowException

    from pyclassify.tracking import search

    try:
        client = search.open_store()
        return client, search.find_run(client, run_id)
    except MlflowException as error:
        raise ValueError(search.format_store_error(error)) from error


def download_capsule(client: Any, run_id: str, folder: Path) -> Path:
    """Download a run's capsule.

    Raises:
        ValueError: It has none.
    """
    if not client.list_artifacts(run_id, capsule.CAPSULE_FOLDER):
        from pyclassify.runs.seeds import list_child_runs

        if children := list_child_runs(client, client.get_run(run_id)):
            ids = ", ".join(f"{each.info.run_id} ({each.info.run_name})" for each in children)
            raise ValueError(
                f"run {run_id} is the parent of {len(children)} seeds and trained nothing itself; "
                f"rerun one of them: {ids}"
            )
        raise ValueError(
            f"run {run_id} has no capsule (the artifacts {capsule.CAPSULE_FOLDER}/), so it is "
            "another project's or older than capsules; give a run that pyclassify made"
        )
    folder.mkdir(exist_ok=True)
    return Path(client.download_artifacts(run_id, capsule.CAPSULE_FOLDER, str(folder)))


def make_environment(made: Any, facts: dict[str, Any], root: Path, folder: str) -> dict[str, str]:
    """The environment of the training: the new run, the old code and number of threads."""
    changed = make_run_environment(made)
    if paths := os.environ.get("PYTHONPATH"):
        there = [
            os.path.join(folder, "tree", os.path.relpath(path, root))
            if Path(path).resolve().is_relative_to(root)
            else path
            for path in paths.split(os.pathsep)
        ]
        changed["PYTHONPATH"] = os.pathsep.join(there)
    threads = {"OMP_NUM_THREADS": str(facts["hardware"]["threads"])}
    inherited = {key: os.environ[key] for key in os.environ.keys() - {"MLFLOW_EXPERIMENT_NAME"}}
    return {**threads, **inherited, **changed}


def run_training(command: list[str], started_in: Path, environ: dict[str, str]) -> int:
    """Train in a process of its own, and pass the stop signals on to it."""
    words = [sys.executable, "-m", "pyclassify", *command]
    with subprocess.Popen(words, cwd=started_in, env=environ) as child:
        with suppress(KeyboardInterrupt):
            wait_for_child(child)
        return child.wait()


@contextmanager
def interrupt_on_stop_signals() -> Iterator[None]:
    """Within this context a stop signal is a KeyboardInterrupt, so that files are removed."""
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    raise_on_stop()
    try:
        yield
    finally:
        with suppress(ValueError):  # not in the main thread
            for signum, handler in before.items():
                signal.signal(signum, handler)
