"""Restore the configuration, code and environment of a run from its capsule, to train with them.

`pyclassify rerun` and `pyclassify resume` start the training as a separate process. Nothing here
loads torch, and MLflow only when a run is looked up.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pyclassify.spool.spooled_run import upload_rest
from pyclassify.tracking.capsule import (
    CAPSULE_FOLDER,
    CODE_FILES,
    REPOSITORIES_FOLDER,
    get_repository_facts,
)
from pyclassify.tracking.run import find_spool_root, make_run_environment
from pyclassify.utils.git import find_root, run_git
from pyclassify.utils.masking import MASK
from pyclassify.utils.options import PATH_OPTIONS, SHORT_OPTIONS, format_options
from pyclassify.utils.repository import Code
from pyclassify.utils.signals import STOP_SIGNALS, raise_on_stop, wait_for_child

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run, RunInfo

# Values of path options that are not paths: a URL, a run's ID, a word of Lightning's ckpt_path.
_NO_PATH = re.compile(r"\w+:/.*|[0-9a-f]{32}|best|last|hpc|registry.*", re.DOTALL)


def look_up_run(run_id: str) -> "tuple[MlflowClient, Run]":
    """Find a run in the store that MLFLOW_TRACKING_URI names.

    Args:
        run_id: The id, or its first eight digits or more.

    Returns:
        The client of the store, and the run.

    Raises:
        ValueError: The run does not exist.
        mlflow.exceptions.MlflowException: The store does not answer, or refuses.
        OSError: The store does not exist.
    """
    from pyclassify.tracking import search

    client = search.open_store()
    return client, search.find_run(client, run_id)


def has_capsule(client: "MlflowClient", run_id: str) -> bool:
    """Whether a run has a capsule, which may still be in the spool in this folder."""
    upload_rest(find_spool_root("runs") / run_id, client)
    return bool(client.list_artifacts(run_id, CAPSULE_FOLDER))


def download_capsule(client: "MlflowClient", run_id: str, folder: Path) -> Path:
    """Download a run's capsule.

    Args:
        client: The store.
        run_id: The run.
        folder: The folder to download to, which is created if it is missing.

    Returns:
        The folder of the capsule, in `folder`.

    Raises:
        ValueError: The run has no capsule.
        mlflow.exceptions.MlflowException: The store does not answer, or refuses.
    """
    if not has_capsule(client, run_id):
        from pyclassify.runs.parent_run import list_child_runs

        if children := list_child_runs(client, client.get_run(run_id)):
            ids = ", ".join(f"{child.info.run_id} ({child.info.run_name})" for child in children)
            raise ValueError(
                f"run {run_id} is the parent of {len(children)} seeds and did not train itself; "
                f"rerun one of them: {ids}"
            )
        raise ValueError(
            f"run {run_id} has no capsule (its artifact folder {CAPSULE_FOLDER}/ is missing); give "
            "the id of a run of `pyclassify train`, or upload the rest of an interrupted run by "
            "`pyclassify sync FOLDER`, where FOLDER is the folder that it was started in"
        )
    folder.mkdir(exist_ok=True)
    return Path(client.download_artifacts(run_id, CAPSULE_FOLDER, str(folder)))


def prepare_config(
    capsule: Path, facts: dict[str, Any], options: list[str], save_root: Path
) -> dict[str, Any]:
    """Read the configuration of a capsule, and make it valid in another folder.

    Paths become absolute, and loggers lose the settings of a run that already exists.

    Args:
        capsule: The folder of the capsule.
        facts: The content of its capsule.json.
        options: The options of the command line, which override the configuration.
        save_root: The folder that a relative `save_dir` is relative to.

    Raises:
        ValueError: A setting was masked, and no option gives its value.
    """
    config = yaml.safe_load((capsule / "config.yaml").read_text())
    for logger in list_saving_loggers(config):
        logger["save_dir"] = make_absolute(logger["save_dir"], save_root)
        run_settings = logger.keys() & {"tracking_uri", "experiment_name", "run_name"}
        logger.update(dict.fromkeys(run_settings))
    if (checkpoint := _find_checkpoint_option(facts["command"])) is not None:
        config["ckpt_path"] = checkpoint  # as typed, which may be a run's ID
    for option in PATH_OPTIONS:
        section, _, name = option.rpartition(".")
        settings = (config.get(section) or {}).get("init_args") or {} if section else config
        if isinstance(settings.get(name), str):
            settings[name] = resolve_path(name, settings[name], Path(facts["started_in"]))
    _check_masked_settings(config, options)
    return config


def _find_checkpoint_option(command: Sequence[str]) -> str | None:
    for index, word in enumerate(command):
        name, equals, value = word.partition("=")
        if name == "--ckpt_path":
            return value if equals else command[index + 1]
    return None


def _check_masked_settings(config: dict[str, Any], options: list[str]) -> None:
    overridden = {parse_option_name(option) for option in options}
    for name, value in format_options(config):
        if MASK in value and name not in overridden:
            raise ValueError(
                f"the credentials in {name} are masked in the capsule ({value}); give the complete "
                f"value by --{name} VALUE"
            )


def list_saving_loggers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """List the arguments of the configured loggers that save to a folder."""
    loggers = config["trainer"]["logger"]
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        arguments = isinstance(logger, dict) and logger.get("init_args")
        if arguments and "save_dir" in arguments:
            yield arguments


def parse_option_name(option: str) -> str:
    """Return the dotted name of the setting that an option sets."""
    name = option.partition("=")[0].removeprefix("--")
    return SHORT_OPTIONS.get(name, name).replace(".init_args", "")


def resolve_path(name: str, value: str, start: Path) -> str:
    """Make the path in a setting absolute.

    Args:
        name: The name of the setting, without the names of the sections that it is in.
        value: The path. `weights` that are not a file stay: they may name an enum member.
        start: The folder that a relative path is relative to.
    """
    path = make_absolute(value, start)
    return value if name == "weights" and not os.path.exists(path) else path


def make_absolute(path: str, start: Path) -> str:
    """Make a path absolute, unless it is a URL, a run's ID or one of Lightning's words."""
    return path if _NO_PATH.fullmatch(path) else os.path.abspath(start / Path(path).expanduser())


def find_code(
    capsule: Path, git_facts: dict[str, Any], run_id: str, folder: Path | None = None
) -> tuple[Path, Code]:
    """Find the repository with a run's commit.

    Args:
        capsule: The folder of the run's capsule.
        git_facts: The entry `git` of its capsule.json.
        run_id: The run.
        folder: A folder in the repository; by default the working directory.

    Returns:
        The root of the repository, and the run's code.

    Raises:
        ValueError: The run has no commit, or the folder's repository or a nested one does not have
            it.
    """
    folder = folder or Path.cwd()
    if "missing" in git_facts:
        raise ValueError(
            f"run {run_id} can't be repeated, because its code was not in a git commit "
            f"({git_facts['missing']}); to train with the current code, download its artifact "
            "config.yaml and give it by --config"
        )
    root = find_root(folder)
    commit = git_facts["commit"]
    if root is None:
        raise ValueError(
            f"{folder} is not in a git repository; change to the repository that has the run's "
            f"commit {commit}"
        )
    codes = {}
    for name, facts in get_repository_facts(git_facts).items():
        _check_commit(root / name, facts, name)
        files = capsule / REPOSITORIES_FOLDER / name if name else capsule
        changes, untracked = (
            (files / file).read_bytes() if (files / file).exists() else b"" for file in CODE_FILES
        )
        codes[name] = Code(facts["commit"], changes=changes, untracked=untracked)
    code = codes.pop("")
    code.folder, code.repositories = git_facts["folder"], codes
    return root, code


def _check_commit(repository: Path, facts: Mapping[str, Any], name: str) -> None:
    """Check that a repository is there and has its commit.

    Args:
        repository: Its root.
        facts: Its entry in the capsule.
        name: Its folder in the run's repository; empty for the run's repository itself.
    """
    commit, remote = facts["commit"], facts.get("remote")
    if name and not (repository / ".git").exists():
        clone = f"`git clone {remote} {name}`" if remote else "copy it there"
        raise ValueError(
            f"{repository} is not a git repository, and was one when the run was started; if it is "
            f"a submodule, run `git submodule update --init {name}`, otherwise {clone}"
        )
    try:
        run_git(repository, "cat-file", "-e", f"{commit}^{{commit}}")
    except OSError as error:
        origin = f" from {remote}" if remote else ""
        raise ValueError(
            f"the repository {repository} does not have the run's commit {commit}; get it by `git "
            f"fetch`{origin}"
        ) from error


def make_environment(
    run: "RunInfo", facts: dict[str, Any], root: Path, folder: str
) -> dict[str, str]:
    """Make the environment variables of the training.

    Args:
        run: The run that the training logs to.
        facts: The content of the capsule's capsule.json; its number of threads is the default.
        root: The root of the repository, whose folders in PYTHONPATH become those of the worktree.
        folder: The folder with the worktree, `tree`.
    """
    environ = make_run_environment(run)
    if paths := os.environ.get("PYTHONPATH"):
        restored = [
            os.path.join(folder, "tree", os.path.relpath(path, root))
            if Path(path).resolve().is_relative_to(root)
            else path
            for path in paths.split(os.pathsep)
        ]
        environ["PYTHONPATH"] = os.pathsep.join(restored)
    threads = {"OMP_NUM_THREADS": str(facts["hardware"]["threads"])}
    inherited = {key: os.environ[key] for key in os.environ.keys() - {"MLFLOW_EXPERIMENT_NAME"}}
    return {**threads, **inherited, **environ}


def run_training(argv: list[str], folder: Path, environ: dict[str, str]) -> int:
    """Run a command of pyclassify as a child process, and forward stop signals to it.

    Args:
        argv: The command and its options.
        folder: The working directory.
        environ: The environment variables.

    Returns:
        The exit code; negative if a signal ended the process.
    """
    command = [sys.executable, "-m", "pyclassify", *argv]
    with subprocess.Popen(command, cwd=folder, env=environ) as child:
        with suppress(KeyboardInterrupt):
            wait_for_child(child)
        return child.wait()


@contextmanager
def interrupt_on_stop_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt on a stop signal, so that temporary files are removed."""
    handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    raise_on_stop()
    try:
        yield
    finally:
        with suppress(ValueError):  # not in the main thread
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
