"""A run's capsule: what it takes to make the run again, written when it starts.

One folder of artifacts, `capsule/`:

    capsule.json    the facts below
    config.yaml     the resolved configuration, as --config takes it
    packages.txt    name==version of all that is installed, a line each
    changes.diff    `git diff --binary HEAD`, for `git apply`; absent where nothing was changed
    untracked.tar   the untracked files that git does not ignore; absent where there are none

and in capsule.json:

    layout          the version of this layout, 1
    verb, command   what was run, and the command line as it was given, word by word
    seed            seed_everything's
    started_in      the folder that relative paths start from
    host            the machine that it is on
    tracking_uri    where the run is kept
    git             commit, folder (within the repository), remote, left_out (file: why), changed
                    (whether anything was since); or else `missing`: why there is no commit
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
from collections.abc import Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from pyclassify.utils import repository
from pyclassify.utils.masking import mask, mask_command

FOLDER = "capsule"
LAYOUT = 1
PACKAGE = Path(__file__).parents[1]
SOURCE_RUN = "pyclassify.source_run"
OVERRIDDEN = "pyclassify.overridden"


def keep(
    client: Any,
    run_id: str,
    config: dict[str, Any],
    facts: dict[str, Any],
    leavings: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a run's capsule; one that can't be made costs a warning, not the run.

    Args:
        client: An `MlflowClient`.
        run_id: The run.
        config: Its resolved configuration.
        facts: What only the caller knows: verb, command, hardware, data and weights.
        leavings: Folders that runs write to, of which nothing is kept.

    Returns:
        The facts in it, or those given where it can't be made.
    """
    try:
        if client.list_artifacts(run_id, FOLDER):  # it goes on, and has the capsule of its start
            return read_facts(client, run_id)
        with tempfile.TemporaryDirectory() as folder:
            written = write(Path(folder), config, facts, leavings)
            client.log_artifacts(run_id, folder, FOLDER)
            return written
    except Exception as error:  # whatever the disk, git or the server has to say
        warn(f"the run has no capsule, and can't be made again from it ({error})")
        return mask({**facts, "command": [*mask_command(facts.get("command", ()))]})


def write(
    folder: Path, config: dict[str, Any], facts: dict[str, Any], leavings: Sequence[str] = ()
) -> dict[str, Any]:
    """Write the files of a capsule into a folder; arguments and result are those of `keep`."""
    (folder / "config.yaml").write_text(yaml.safe_dump(mask(config), sort_keys=False))
    (folder / "packages.txt").write_text("".join(f"{line}\n" for line in _list_packages()))
    command = [*mask_command(facts.get("command", ()))]
    written = {
        "layout": LAYOUT,
        **mask(facts),
        "command": command,
        "seed": config.get("seed_everything"),
        "started_in": str(Path.cwd()),
        "host": platform.node(),
        "git": _keep_code(folder, leavings),
        "package": digest_package(),
        "python": platform.python_version(),
        "hardware": {**_describe_machine(), **facts.get("hardware", {})},
    }
    (folder / "capsule.json").write_text(json.dumps(written, indent=2) + "\n")
    return written


def read_facts(client: Any, run_id: str) -> dict[str, Any]:
    """Read a run's capsule.json."""
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run_id, f"{FOLDER}/capsule.json", folder)
        return json.loads(Path(path).read_text())


def warn(text: str) -> None:
    """Warn of what is missing, without the credentials that an error's words may have."""
    warnings.warn(mask(text), stacklevel=3)


def _keep_code(folder: Path, leavings: Sequence[str]) -> dict[str, Any]:
    try:
        code = repository.describe_code(Path.cwd(), PACKAGE, leavings)
    except OSError as error:
        return {"missing": str(error)}
    for name, content in (("changes.diff", code.changes), ("untracked.tar", code.untracked)):
        if content:
            (folder / name).write_bytes(content)
    if code.left_out:
        first = [f"{name} {why}" for name, why in list(code.left_out.items())[:3]]
        more = f" and {len(code.left_out) - 3} more files" if len(code.left_out) > 3 else ""
        warn(f"left out of the run's capsule: {', '.join(first)}{more}")
    kept = ("commit", "folder", "remote", "left_out")
    changed = bool(code.changes or code.untracked or code.left_out)
    return {**{name: getattr(code, name) for name in kept}, "changed": changed}


def _list_packages() -> list[str]:
    found = {(each.name, each.version) for each in importlib.metadata.distributions()}
    return sorted((f"{name}=={version}" for name, version in found if name), key=str.lower)


def digest_package() -> str:
    """Digest the source files of this package."""
    content = sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content.update(
            f"{path.relative_to(PACKAGE)}\0{sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return content.hexdigest()[:32]


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
