"""`pyclassify follow`: deliver the version of an alias to a folder, and have its server load it.

`FOLDER/current` is a symbolic link to the folder of the version that is served. A new version is
downloaded beside it and tried before the link moves; then the server gets SIGHUP, with which
uvicorn replaces its workers one by one: each new one is ready before the old one ends.
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from pyclassify.registry.versions import NAME_RULE, format_serve_command, is_valid_name
from pyclassify.spool.store_errors import describe_server_error
from pyclassify.utils.mlflow_settings import configure_mlflow
from pyclassify.utils.options import CommandParser

if TYPE_CHECKING:
    import psutil
    from mlflow import MlflowClient

CURRENT = "current"
_MODEL_FILE = ".model"  # the name of the model whose versions the folder has
_LOADED_FILE = ".loaded"  # the version that the servers loaded last: a kill may follow the link
_LOCK_FILE = ".lock"
_DOWNLOAD_PREFIX = ".download-"
_MODEL_PATH_ENV = "__pyfunc_model_path__"  # by which MLflow tells its server the model
_HEALTHCHECK_ENV = "UVICORN_TIMEOUT_WORKER_HEALTHCHECK"
_HEALTHCHECK_SECONDS = 120.0  # for a worker to load the model; uvicorn's default is 5
_POLL_SECONDS = 0.2
_TRIAL_SECONDS = 600.0
_TRIAL = """\
import sys
from mlflow.pyfunc import load_model
model = load_model(sys.argv[1])
model.predict(model.input_example)
"""


class VersionRefusedError(ValueError):
    """A version can't replace the one that is served, which stays."""


def follow(argv: Sequence[str]) -> int:
    """Deliver each new version of an alias to a folder, until interrupted.

    Args:
        argv: The command line after the command.

    Returns:
        The exit code.

    Raises:
        UsageError: The command line is invalid.
        VersionRefusedError: The version can't be served, with `--once` or if it is the first.
        OSError: The folder can't be written or has other files, or the store does not exist.
        mlflow.exceptions.MlflowException: The model or the alias does not exist, or the registry
            does not answer, at the first time.
    """
    options, name, alias = _parse(argv)
    configure_mlflow()

    from pyclassify.tracking.search import open_store

    follower = Follower(open_store(), name, alias, Path(options.folder))
    try:
        follower.update()
    except VersionRefusedError as error:
        if options.once or not follower.current.exists():
            raise
        sys.stderr.write(f"pyclassify: error: {error}\n")
    if not options.once:
        sys.stdout.write(
            f"looking for a new version of {options.model} every {options.every:g} s; the current "
            f"one is {follower.current}\n"
        )
        sys.stdout.flush()
    reported = ""
    while not options.once:
        time.sleep(options.every)
        try:
            follower.update()
            reported = ""
        except Exception as error:  # each kind of store fails in its own way; it may recover
            message = describe_server_error(error)
            if message != reported:
                sys.stderr.write(f"pyclassify: error: {message}\n")
            reported = message
    return 0


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, str, str]:
    parser = CommandParser(
        "pyclassify follow",
        description="Download the version of a model that has an alias to a folder, and each new "
        f"one that gets it. FOLDER/{CURRENT} is the newest. A server of that path on this machine "
        "loads each new version without a failed request.",
        examples=[
            "pyclassify follow models:/alexnet@champion served",
            "pyclassify follow models:/alexnet@champion served --once",
        ],
    )
    parser.add_argument("model", metavar="models:/NAME@ALIAS", help="follow this alias")
    parser.add_argument("folder", metavar="FOLDER", help="write versions to this folder")
    parser.add_argument(
        "--every",
        metavar="SECONDS",
        type=float,
        default=60.0,
        help="look for a new version every SECONDS (default: 60)",
    )
    parser.add_argument("--once", action="store_true", help="look once, and exit: for a timer")
    options: argparse.Namespace = parser.parse_args(argv)
    name, _, alias = options.model.removeprefix("models:/").partition("@")
    if not options.model.startswith("models:/") or not is_valid_name(name) or not alias:
        parser.error(
            f"invalid model: {options.model!r} (expected models:/NAME@ALIAS, such as "
            f"models:/alexnet@champion; {NAME_RULE})"
        )
    if not options.every > 0:
        parser.error(f"invalid --every: {options.every:g} (expected more than 0 seconds)")
    return options, name, alias


class Follower:
    """Keeps a folder at the version of an alias.

    Args:
        client: The registry.
        name: The registered model.
        alias: The alias.
        folder: The folder, which is created if it is missing.

    Example:
        >>> Follower(MlflowClient(), "alexnet", "champion", Path("served")).update()
        True
    """

    def __init__(self, client: "MlflowClient", name: str, alias: str, folder: Path) -> None:
        self._client, self._name, self._alias = client, name, alias
        self._folder = folder.resolve()
        # The versions that were refused, with the reason and the servers that ran.
        self._refused: dict[str, tuple[str, set[psutil.Process]]] = {}

    @property
    def current(self) -> Path:
        """The link to the version that is served."""
        return self._folder / CURRENT

    def update(self) -> bool:
        """Deliver the version of the alias, if it is not the current one.

        Returns:
            Whether there is a new version.

        Raises:
            VersionRefusedError: The version has other requirements than the current one, fails in
                a trial, or was not loaded by the server. The current one stays.
            OSError: The folder can't be written.
            mlflow.exceptions.MlflowException: The model or the alias does not exist, or the
                registry does not answer.
        """
        from filelock import FileLock

        version = str(self._client.get_model_version_by_alias(self._name, self._alias).version)
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / _LOCK_FILE):
            self._check_folder()
            linked, loaded = self._read_state()
            if version == linked == loaded:
                return False
            before = linked if linked != version else loaded
            servers = set(_find_servers(self.current))
            reason, tried_with = self._refused.get(version, ("", set()))
            if reason and tried_with == servers:  # another server may load it
                raise VersionRefusedError(reason)
            try:
                self._download(version)
                self._check(version, before)
                self._switch(version, before, servers)
            except VersionRefusedError as error:
                self._refused[version] = str(error), servers
                shutil.rmtree(self._folder / version, ignore_errors=True)
                raise
            (self._folder / _LOADED_FILE).write_text(version)
            self._remove_except({version, before})
        return True

    def _check_folder(self) -> None:
        """Raise OSError if the folder has anything but versions of this model."""
        owner = self._folder / _MODEL_FILE
        if not owner.is_file():
            if any(path.name != _LOCK_FILE for path in self._folder.iterdir()):
                raise OSError(f"{self._folder} is not empty; give a new folder")
            owner.write_text(self._name)
        elif (name := owner.read_text()) != self._name:
            raise OSError(f"{self._folder} has versions of {name!r}; give another folder")

    def _read_state(self) -> tuple[str, str]:
        """Read which version the link names, and which one was loaded last; "" for none."""
        loaded = self._folder / _LOADED_FILE
        return (
            os.readlink(self.current) if self.current.is_symlink() else "",
            loaded.read_text() if loaded.is_file() and self.current.is_symlink() else "",
        )

    def _download(self, version: str) -> None:
        from mlflow.artifacts import download_artifacts

        for unfinished in self._folder.glob(f"{_DOWNLOAD_PREFIX}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if (self._folder / version).is_dir():
            return
        files = self._client.get_model_version_download_uri(self._name, version)
        with tempfile.TemporaryDirectory(dir=self._folder, prefix=_DOWNLOAD_PREFIX) as temporary:
            found = download_artifacts(files, None, None, temporary, self._client.tracking_uri)
            Path(found).rename(self._folder / version)

    def _check(self, version: str, before: str) -> None:
        """Raise VersionRefusedError if a version can't be served in the environment of another."""
        new, old = self._folder / version, self._folder / before
        if before and (changed := _list_changed_requirements(old, new)):
            raise VersionRefusedError(
                f"version {version} of {self._name!r} requires {', '.join(changed)}, which the "
                f"environment of version {before} lacks; stop the server, remove {self.current}, "
                "and run `pyclassify follow` again before the server is started"
            )
        command = [sys.executable, "-c", _TRIAL, str(new)]
        try:
            tried = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TRIAL_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise VersionRefusedError(
                f"version {version} of {self._name!r} did not classify its example in "
                f"{_TRIAL_SECONDS:.0f} s"
            ) from error
        if tried.returncode:
            lines = tried.stderr.strip().splitlines() or [f"exit code {tried.returncode}"]
            model = shlex.quote(f"models:/{self._name}/{version}")
            raise VersionRefusedError(
                f"version {version} of {self._name!r} fails to classify its example ({lines[-1]}); "
                f"`mlflow models serve -m {model} --env-manager local` shows the whole error"
            )

    def _switch(self, version: str, before: str, servers: "set[psutil.Process]") -> None:
        """Move the link and have the servers load the version; move it back if one does not."""
        import psutil

        self._move_link(version)
        delivered = f"version {version} of {self._name!r} is {self.current}"
        if not servers:
            command = self._format_serve_command()
            sys.stdout.write(f"{delivered}; no server of it runs here. Start one:\n{command}\n")
            sys.stdout.flush()
            return
        signaled = []
        try:
            for server in servers:
                with suppress(psutil.NoSuchProcess):  # it has just ended
                    workers = _list_workers(server)
                    self._check_workers(server, workers)
                    signaled.append(server)
                    self._replace_workers(server, workers)
        except VersionRefusedError:
            if not before:
                self.current.unlink()
            else:
                self._move_link(before)
                for server in signaled:
                    with suppress(psutil.Error):
                        server.send_signal(signal.SIGHUP)
            raise
        running = sum(server.is_running() for server in servers)
        sys.stdout.write(f"{delivered}; servers that loaded it: {running}\n")
        sys.stdout.flush()

    def _check_workers(self, server: "psutil.Process", workers: "list[psutil.Process]") -> None:
        if not workers:  # SIGHUP would end it
            raise VersionRefusedError(
                f"the server (process {server.pid}) has no workers to replace; start it by "
                f"`{self._format_serve_command()}`"
            )

    def _replace_workers(self, server: "psutil.Process", workers: "list[psutil.Process]") -> None:
        """Have a server replace its workers, and wait until it has."""
        import psutil

        timeout = float(server.environ().get(_HEALTHCHECK_ENV) or 5.0) * len(workers) + 30.0
        end = time.monotonic() + timeout
        server.send_signal(signal.SIGHUP)
        alive, has_started = workers, False
        while alive and time.monotonic() < end:
            alive = psutil.wait_procs(alive, timeout=_POLL_SECONDS)[1]
            is_starting = bool(set(_list_workers(server)) - set(workers))
            if has_started and not is_starting:
                break  # a new worker has ended
            has_started |= is_starting
        if alive:
            raise VersionRefusedError(
                f"the server (process {server.pid}) kept {len(alive)} of {len(workers)} workers of "
                "the version before, as a new one was not ready in time; the server's log has the "
                f"reason. If it needs more time, start it by `{self._format_serve_command()}`"
            )

    def _move_link(self, version: str) -> None:
        temporary = self._folder / f".{CURRENT}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(version)
        temporary.replace(self.current)

    def _remove_except(self, versions: set[str]) -> None:
        """Remove all versions but the current one and the one before, for a rollback."""
        for path in self._folder.iterdir():
            if path.name.isdecimal() and path.name not in versions:
                shutil.rmtree(path, ignore_errors=True)

    def _format_serve_command(self) -> str:
        command = format_serve_command(str(self.current))
        return f"{_HEALTHCHECK_ENV}={_HEALTHCHECK_SECONDS:.0f} {command} --workers 2"


def _list_changed_requirements(old: Path, new: Path) -> list[str]:
    """List the requirements of a model that another one does not have; Python is one of them."""
    found: list[list[str]] = []
    for folder in (old, new):
        found.append((folder / "requirements.txt").read_text().split())
        lines = (folder / "python_env.yaml").read_text().splitlines()
        found[-1] += [line for line in lines if line.startswith("python:")]
    return [requirement for requirement in found[1] if requirement not in found[0]]


def _find_servers(model: Path) -> "Iterator[psutil.Process]":
    """Find the servers that `mlflow models serve` started with a path, by this user."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or is another user's
            if not any(Path(word).name == "uvicorn" for word in process.cmdline()):
                continue
            uri = process.environ().get(_MODEL_PATH_ENV, "")
            path = Path(url2pathname(urlsplit(uri).path))
            if uri.startswith("file:") and path.parent.resolve() / path.name == model:
                yield process


def _list_workers(server: "psutil.Process") -> "list[psutil.Process]":
    """List the workers of a server that has several; one worker is the server's own process."""
    import psutil

    workers = []
    for child in server.children():
        with suppress(psutil.Error):  # it has just ended
            if not any("resource_tracker" in word for word in child.cmdline()):
                workers.append(child)
    return workers
