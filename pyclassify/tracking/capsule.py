"""The capsule of a run: its provenance, all it takes to make the run again, logged at its start.

One folder of artifacts, `capsule/`:

    capsule.json    the facts below
    config.yaml     the resolved configuration, as --config takes it
    packages.txt    name==version of all that is installed, a line each
    changes.diff    `git diff --binary HEAD`, byte for byte whatever git converts, for `git apply`;
                    absent if nothing was changed
    untracked.tar   the untracked files that git does not ignore; absent if there are none
    repositories/FOLDER/
                    the same two files of a submodule, or of another repository, in that folder

and in capsule.json:

    layout          the version of this layout, 1
    verb, command   what was run, and the command line as it was given, word by word
    seed            seed_everything's
    started_in      the folder that relative paths start from
    host            the machine that it is on
    tracking_uri    where the run is kept
    git             commit, folder (within the repository), remote, left_out (file: why), changed
                    (whether anything was since), repositories (FOLDER: commit, remote, left_out and
                    changed of one within); or else `missing`: why there is no commit
    package         digest of this package's source files, which may lie outside the repository
    python          its version
    hardware        cpu, cores, memory_gb, and what torch says: threads, processes, gpus, ...
    weights         file and sha256 of the weights that the training started from, if there were any
    data            name, classes, and for each set its number of images and content digest

There is no environment in it, URIs have no credentials, and files that may have some are left out.
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
SOURCE_RUN_TAG = "pyclassify.source_run"  # the run that a run is made from
OVERRIDDEN_TAG = "pyclassify.overridden"  # the options by which the two differ
DATA_WARNING_TAG = "pyclassify.data_warning"  # why a run's data can't be what was meant
PACKAGE_FOLDER = Path(__file__).parents[1]
REPOSITORIES_FOLDER = "repositories"
CODE_FILES = ("changes.diff", "untracked.tar")
_LAYOUT_VERSION = 1


def log_capsule(
    client: "MlflowClient",
    run_id: str,
    config: dict[str, Any],
    facts: dict[str, Any],
    output_folders: Sequence[str] = (),
) -> dict[str, Any]:
    """Log a run's capsule; a resumed run keeps the one of its start.

    An error becomes a warning: a run is worth more than its capsule.

    Args:
        client: The store.
        run_id: The run.
        config: The run's resolved configuration.
        facts: What only the caller knows: tracking_uri, verb, command, hardware, data and weights.
        output_folders: Folders that runs write to; untracked files in them are left out.

    Returns:
        The capsule's facts; after an error `facts` without credentials.
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
            warn_masked(f"the run has no capsule, and can't be made again from it ({error})")
        return mask({**facts, "command": [*mask_command(facts.get("command", ()))]})


def write_capsule(
    folder: Path, config: dict[str, Any], facts: dict[str, Any], output_folders: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the files of a capsule into a folder.

    Args:
        folder: An empty folder.
        config: As for `log_capsule`, and so are the other arguments.

    Returns:
        The capsule's facts.

    Raises:
        OSError: A file can't be written.
    """
    (folder / "config.yaml").write_text(yaml.safe_dump(mask(config), sort_keys=False))
    (folder / "packages.txt").write_text("".join(f"{line}\n" for line in _list_packages()))
    written = {
        "layout": _LAYOUT_VERSION,
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
    """Get what a capsule says of each repository, by its folder; that of the run is "".

    Args:
        git_facts: The entry `git` of a capsule.json that has a commit.
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
    """Warn without the credentials that the text of an error may have."""
    warnings.warn(mask(message), stacklevel=3)


def _write_code(folder: Path, output_folders: Sequence[str]) -> dict[str, Any]:
    """Write the changes and untracked files of the repositories; returns the fact `git`."""
    try:
        code = repository.describe_code(Path.cwd(), PACKAGE_FOLDER, output_folders)
    except OSError as error:
        if any((parent / ".git").exists() for parent in (Path.cwd(), *Path.cwd().parents)):
            warn_masked(f"the run can't be made again, as its code is not recorded: {error}")
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
        warn_masked(f"left out of the run's capsule: {join_some(left_out, noun='files')}")
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
