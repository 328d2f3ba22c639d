"""The capsule of a run: its provenance, with everything that reproduces the run.

It is logged when the run starts, as a folder of artifacts, `capsule/`:

    capsule.json    the facts below
    config.yaml     the resolved configuration, for --config
    packages.txt    name==version of each installed package, one a line
    changes.diff    the output of `git diff --binary HEAD` without conversions, for `git apply`;
                    missing if there are no changes
    untracked.tar   the untracked files that git does not ignore; missing if there are none
    repositories/FOLDER/
                    the same two files of a submodule or nested repository in FOLDER

capsule.json has these keys:

    format_version  the version of this format, 1
    subcommand      train, fit, validate, test or predict
    command         the command line, as a list of words
    seed            the value of seed_everything
    started_in      the working directory, to which paths are relative
    host            the machine of the working directory
    tracking_uri    the store that has the run
    git             commit, folder (within the repository), remote, left_out (file: reason), changed
                    (whether there are uncommitted changes), repositories (FOLDER: commit, remote,
                    left_out and changed of a nested repository); or only `missing`: why there is
                    no commit
    package         digest of this package's source files, which may be outside the repository
    python          the version of Python
    hardware        cpu, cores, memory_gb, and from torch: threads, processes, gpus, ...
    weights         file and sha256 of the initial weights; null if they are random
    data            name, classes, and for each split its number of images and content digest

The capsule has no environment variables, credentials in URIs are masked, and files that may have
credentials are left out.
"""

import importlib.metadata
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pyclassify.tracking import run
from pyclassify.utils import repository
from pyclassify.utils.files import is_disk_error
from pyclassify.utils.masking import mask, mask_command
from pyclassify.utils.text import join_some

if TYPE_CHECKING:
    from mlflow import MlflowClient

CAPSULE_FOLDER = "capsule"
SOURCE_RUN_TAG = "pyclassify.source_run"  # the run that was rerun
OVERRIDES_TAG = "pyclassify.overrides"  # the options of the rerun that its source run does not have
DATA_WARNING_TAG = "pyclassify.data_warning"  # likely mistakes in the data
PACKAGE_FOLDER = Path(__file__).parents[1]
REPOSITORIES_FOLDER = "repositories"
CODE_FILES = ("changes.diff", "untracked.tar")
_FORMAT_VERSION = 1


def log_capsule(
    client: "MlflowClient",
    run_id: str,
    config: dict[str, Any],
    facts: dict[str, Any],
    output_folders: Sequence[str] = (),
) -> dict[str, Any]:
    """Log a run's capsule, unless the run has one since an earlier attempt.

    An error becomes a warning, so that the training continues.

    Args:
        client: The client of the run's store.
        run_id: The run.
        config: The run's resolved configuration.
        facts: The values of tracking_uri, subcommand, command, hardware, data and weights.
        output_folders: Folders that runs write to; their untracked files are left out.

    Returns:
        The content of capsule.json; after an error `facts` without credentials.
    """
    try:
        if client.list_artifacts(run_id, CAPSULE_FOLDER):
            return read_facts(client, run_id)
        with tempfile.TemporaryDirectory() as folder:
            written = write_capsule(Path(folder), config, facts, output_folders)
            client.log_artifacts(run_id, folder, CAPSULE_FOLDER)
            return written
    except Exception as error:  # of the disk, git or any kind of store
        if is_disk_error(error):
            run.fail_later("log the capsule", error)
        else:
            warn_masked(
                f"could not log the capsule ({error}); `pyclassify rerun` can't reproduce this run"
            )
        return mask({**facts, "command": [*mask_command(facts.get("command", ()))]})


def write_capsule(
    folder: Path, config: dict[str, Any], facts: dict[str, Any], output_folders: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the files of a capsule into a folder.

    Args:
        folder: An empty folder.
        config: The run's resolved configuration; this and the other arguments are those of
            `log_capsule`.

    Returns:
        The content of capsule.json.

    Raises:
        OSError: A file can't be written.
    """
    (folder / "config.yaml").write_text(yaml.safe_dump(mask(config), sort_keys=False))
    (folder / "packages.txt").write_text("".join(f"{line}\n" for line in _list_packages()))
    written = {
        "format_version": _FORMAT_VERSION,
        **mask(facts),
        "command": [*mask_command(facts.get("command", ()))],
        "seed": config.get("seed_everything"),
        "started_in": str(Path.cwd()),
        "host": platform.node(),
        "git": _write_code(folder, output_folders),
        "package": digest_package(),
        "python": platform.python_version(),
        "hardware": {**_describe_machine(), **facts.get("hardware", {})},
    }
    (folder / "capsule.json").write_text(json.dumps(written, indent=2) + "\n")
    return written


def read_facts(client: "MlflowClient", run_id: str) -> dict[str, Any]:
    """Read a run's capsule.json."""
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, f"{CAPSULE_FOLDER}/capsule.json", folder)
        return json.loads(Path(path).read_text())


def get_repository_facts(git_facts: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Get a capsule's facts of each repository by its folder; the outer repository's is "".

    Args:
        git_facts: The value of `git` in a capsule.json that has a commit.
    """
    return {"": git_facts, **git_facts.get("repositories", {})}


def digest_package() -> str:
    """Digest the source files of this package."""
    content = sha256()
    for path in sorted(PACKAGE_FOLDER.rglob("*.py")):
        name = path.relative_to(PACKAGE_FOLDER)
        content.update(f"{name}\0{sha256(path.read_bytes()).hexdigest()}\n".encode())
    return content.hexdigest()[:32]


def warn_masked(message: str) -> None:
    """Warn, with the credentials in the message masked."""
    warnings.warn(mask(message), stacklevel=3)


def _write_code(folder: Path, output_folders: Sequence[str]) -> dict[str, Any]:
    """Write the changes and untracked files of the repositories; returns the value of `git`."""
    try:
        code = repository.describe_code(Path.cwd(), PACKAGE_FOLDER, output_folders)
    except OSError as error:
        if any((parent / ".git").exists() for parent in (Path.cwd(), *Path.cwd().parents)):
            warn_masked(
                f"could not record the code ({error}); `pyclassify rerun` can't reproduce this run"
            )
        return {"missing": str(error)}
    left_out = []
    described = {}
    for name, inner in code.walk():
        target = folder / REPOSITORIES_FOLDER / name if name else folder
        for file, content in zip(CODE_FILES, (inner.changes, inner.untracked), strict=True):
            if content:
                target.mkdir(parents=True, exist_ok=True)
                (target / file).write_bytes(content)
        left_out += [f"{Path(name, file)} {reason}" for file, reason in inner.left_out.items()]
        described[name] = {
            "commit": inner.commit,
            "remote": inner.remote,
            "left_out": inner.left_out,
            "changed": bool(inner.changes or inner.untracked or inner.left_out),
        }
    if left_out:
        warn_masked(f"files left out of the run's capsule: {join_some(left_out, noun='files')}")
    return {"folder": code.folder, **described.pop(""), "repositories": described}


def _list_packages() -> list[str]:
    installed = importlib.metadata.distributions()
    packages = {(package.name, package.version) for package in installed}
    return sorted((f"{name}=={version}" for name, version in packages if name), key=str.lower)


def _describe_machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line for line in lines if line.startswith("model name")).partition(": ")[2]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": platform.platform(),
        "cpu": cpu,
        "cores": usable,
        "memory_gb": round(memory / 1e9, 1),
    }
