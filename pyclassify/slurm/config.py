"""The configuration of the backend: the JSON of `--backend-config`, validated.

The fields of `Config` are its keys. Each says what it means, in which unit, and which option of
sbatch it becomes; the errors and docs/slurm.md are made of that.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from pyclassify.slurm import values
from pyclassify.slurm.values import Kind

# What MLflow adds to what the user gave (mlflow.projects.utils, 3.17).
MLFLOW_KEYS = (
    *("ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR"),
    *("build_image", "docker_auth"),
)

# Options of sbatch that are not for the user to set, and why.
_NOT_OURS = {
    "array": "a run is one job",
    "chdir": "the job runs in its snapshot",
    "export": "the job gets the environment that it is submitted from",
    "gpus-per-node": "it follows from -P devices",
    "gpus-per-task": "it hides the other tasks' GPUs, so that two processes can't work together",
    "ntasks": "it follows from -P devices and -P num_nodes",
    "parsable": "the backend sets it",
    "test-only": "`pyclassify slurm check` asks that",
    "wait": 'give the key "wait"',
    "wrap": "the script is written by the backend",
}


def _key(kind: Kind, meaning: str, unit: str = "", option: str = "", default: Any = None) -> Any:
    facts = {"kind": kind, "meaning": meaning, "unit": unit, "option": option}
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class Config:
    """A valid configuration; None where a key is not given."""

    job_name: str | None = _key(values.TEXT, "the job's name; the project's else", "", "--job-name")
    partition: str | None = _key(values.TEXT, "the partition (queue)", "", "--partition")
    account: str | None = _key(values.TEXT, "who pays", "", "--account")
    qos: str | None = _key(values.TEXT, "the quality of service", "", "--qos")
    reservation: str | None = _key(values.TEXT, "the reservation", "", "--reservation")
    constraint: str | None = _key(values.TEXT, "features of the nodes", "", "--constraint")
    nodelist: str | None = _key(values.TEXT, "nodes that must be there", "", "--nodelist")
    exclude: str | None = _key(values.TEXT, "nodes that must not", "", "--exclude")
    nodes: int | None = _key(values.FROM_ONE, "checked against -P num_nodes", "nodes")
    ntasks_per_node: int | None = _key(
        values.FROM_ONE, "checked against -P devices", "processes a node"
    )
    gpus: int | None = _key(
        values.FROM_NONE, "checked against num_nodes x devices; 0 for none", "GPUs in all"
    )
    gpus_per_task: int | None = _key(
        values.FROM_ONE, "checked: each process has one", "GPUs a process"
    )
    cpus_per_task: int | None = _key(
        values.FROM_ONE, "for each process, by srun too", "cores a process", "--cpus-per-task"
    )
    mem: str | None = _key(values.MEMORY, "memory of each node; 0 for all", "MB a node", "--mem")
    time: str | None = _key(values.TIME, "the time limit", "minutes, or a clock's", "--time")
    output: str = _key(
        values.FILE, "where stdout goes, in the run's folder", "", "--output", "%x-%j.out"
    )
    error: str = _key(
        values.FILE, "where stderr goes, in the run's folder", "", "--error", "%x-%j.err"
    )
    exclusive: bool | str | None = _key(
        values.EXCLUSIVE, "whether to share the nodes with no other job", "", "--exclusive"
    )
    dependency: str | None = _key(values.TEXT, "what must have ended", "", "--dependency")
    signal: str | None = _key(
        values.SIGNAL, "a warning before the time limit", "seconds before", "--signal"
    )
    requeue: bool | None = _key(
        values.FLAG, "whether the job may start again after its node was lost", "", "--requeue"
    )
    mail_type: str | None = _key(values.MAIL, "when to write a mail", "", "--mail-type")
    mail_user: str | None = _key(values.TEXT, "to whom", "", "--mail-user")
    sbatch_args: tuple[str, ...] = _key(
        values.LINES, 'more options of sbatch, each "--name=value"', default=()
    )
    modules: tuple[str, ...] = _key(values.LINES, "modules to load, in this order", default=())
    setup: tuple[str, ...] = _key(
        values.LINES, "lines of bash, after the modules, before the environment", default=()
    )
    environment: str | None = _key(
        values.TEXT,
        "a conda environment's name or prefix, a virtualenv's path, or none; wins over "
        "--env-manager",
    )
    container: str | None = _key(
        values.TEXT, "an Apptainer image to run in, by --nv; in place of an environment"
    )
    exports: tuple[tuple[str, str | None], ...] = _key(
        values.EXPORTS, "variables of the job", default=()
    )
    srun_args: tuple[str, ...] = _key(values.LINES, "more options of srun", default=())
    work_dir: str | None = _key(
        values.TEXT,
        "a folder that compute nodes see, for a folder of each run; beside the folder of the "
        "submission else",
    )
    wait: bool = _key(values.FLAG, "whether to wait for the job's end", default=False)


KEYS = {each.name: each for each in fields(Config)}


def read(given: Mapping[str, Any]) -> Config:
    """Validate a configuration.

    Args:
        given: The JSON's keys, and those that MLflow adds.

    Raises:
        ValueError: There is an unknown key or a wrong value; what is allowed instead.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name in MLFLOW_KEYS or value is None:
            continue
        if name not in KEYS:
            near = get_close_matches(name, KEYS, n=1)
            hint = f" (nearest: {near[0]})" if near else ""
            raise ValueError(
                f"the backend config has no key {name!r}{hint}; there are {', '.join(sorted(KEYS))}"
            )
        found[name] = _read_value(name, value)
    config = Config(**found)
    _check_arguments(config.sbatch_args)
    if config.container and config.environment not in (None, "none"):
        raise ValueError(
            f"container is {config.container!r} and environment {config.environment!r} in the "
            "backend config; give one of the two: what an image runs is in the image"
        )
    missing = [name for name, text in config.exports if text is None]
    if absent := [name for name in missing if name not in os.environ]:
        raise ValueError(
            f"exports.{absent[0]} is null in the backend config, and {absent[0]} is not set here; "
            "export it in this shell first"
        )
    return config


def _read_value(name: str, value: Any) -> Any:
    kind: Kind = KEYS[name].metadata["kind"]
    try:
        return kind.read(value)
    except ValueError as error:
        why = f" ({error})" if str(error) else ""
        # What looks like a credential is not repeated.
        shown = name if name == "exports" else f"{name} is {value!r}"
        raise ValueError(f"{shown} in the backend config{why}; it takes {kind.takes}") from None


def _check_arguments(arguments: tuple[str, ...]) -> None:
    options = {each.metadata["option"]: name for name, each in KEYS.items()}
    for each in arguments:
        option = each.partition("=")[0]
        if not option.startswith("-") or " " in option:
            raise ValueError(
                f"sbatch_args has {each!r} in the backend config; it takes options of sbatch, one "
                'an entry, such as "--licenses=matlab:1"'
            )
        name = option.lstrip("-")
        key = options.get(option, name.replace("-", "_"))
        if key in KEYS or name in _NOT_OURS:
            why = _NOT_OURS.get(name) or f'give the key "{key}"'
            raise ValueError(f"sbatch_args has {option} in the backend config; {why}")


def table() -> Iterator[str]:
    """The keys as a table in Markdown, for docs/slurm.md."""
    yield "| key | what it is | unit | it takes | sbatch's |"
    yield "|---|---|---|---|---|"
    for name, each in KEYS.items():
        facts = each.metadata
        default = f" (default: `{each.default}`)" if isinstance(each.default, str) else ""
        option = f"`{facts['option']}`" if facts["option"] else ""
        cells = (
            f"`{name}`",
            facts["meaning"] + default,
            facts["unit"],
            facts["kind"].takes,
            option,
        )
        yield f"| {' | '.join(cells)} |"
