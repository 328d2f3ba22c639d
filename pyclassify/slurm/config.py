"""The configuration of the backend: the JSON of `--backend-config`, validated."""

import math
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from pyclassify.utils.launcher import PROGRESS_ENV, SPOOL_ENV, STATUS_BY_SLURM_ENV
from pyclassify.utils.masking import MASK, holds_credentials, mask

# What MLflow adds to what the user gave (mlflow.projects.utils, 3.17).
MLFLOW_KEYS = (
    *("ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR"),
    *("build_image", "docker_auth"),
)
_LONG = re.compile(r"--[a-z][a-z0-9-]*(=.*)?", re.DOTALL)
_DEVICES = "it follows from -P devices"
# Options of sbatch that are not for the user to set, and why.
_REFUSED = {
    "array": "a run is one job",
    "chdir": "the job runs in its snapshot",
    "export": "the job gets the environment that it is submitted from",
    "export-file": "the job gets the environment that it is submitted from",
    "gpus-per-node": _DEVICES,
    "gpus-per-socket": _DEVICES,
    "gpus-per-task": "it hides the other tasks' GPUs, so that two processes can't work together",
    "no-requeue": 'give the key "requeue"',
    "ntasks": "it follows from -P devices and -P num_nodes",
    "ntasks-per-gpu": _DEVICES,
    "parsable": "the backend sets it",
    "test-only": "`pyclassify slurm check` asks that",
    "tres-per-task": _DEVICES,
    "wait": 'give the key "wait"',
    "wrap": "the script is written by the backend",
}


@dataclass(frozen=True)
class Kind:
    """A kind of values.

    Args:
        takes: What is allowed, to be read after "it takes".
        read: Gives the value as it is used; raises ValueError where it is not of this kind. The
            error may have words, for what `takes` does not tell.
    """

    takes: str
    read: Callable[[Any], Any]


def _exclusive(value: Any) -> bool | str:
    _require(isinstance(value, bool) or value in ("user", "mcs"))
    return bool(value) if isinstance(value, bool) else str(value)


EXCLUSIVE = Kind('true, false, "user" or "mcs"', _exclusive)


def _exports(value: Any) -> tuple[tuple[str, str | None], ...]:
    _require(isinstance(value, dict))
    read: dict[str, str | None] = {}
    for name, text in value.items():
        _require(bool(_NAME.fullmatch(name)), f"{name!r} is no variable's name")
        _require(name not in _OURS, f"{name} is set by the backend")
        _require(text is None or type(text) in (str, int, float), f"{name} is {text!r}")
        read[name] = text if text is None else str(text)
        harmless = mask(read[name], name) == read[name] and not has_credentials(read[name] or "")
        _require(harmless, f"{name} looks like a credential, and the script is kept with the run")
    return tuple(read.items())


EXPORTS = Kind(
    'names and texts, such as {"OMP_NUM_THREADS": 4}; null for the value that the variable has '
    "where the job is submitted, which is never written down",
    _exports,
)


def _file(value: Any) -> str:
    # SLURM takes a backslash to mean that the rest is no pattern.
    _require("\\" not in _text(value))
    folder = os.path.dirname(value)
    _require("%" not in folder, f"the folder {folder} is made before the job has numbers")
    return str(value)


FILE = Kind(
    "a file name without backslashes, which may have SLURM's %j, %x and others, but not in a "
    "folder's name",
    _file,
)


def _flag(value: Any) -> bool:
    _require(isinstance(value, bool))
    return bool(value)


FLAG = Kind("true or false", _flag)


def _require(condition: bool, why: str = "") -> None:
    if not condition:
        raise ValueError(why)


def _whole(least: int, most: float = math.inf) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        _require(type(value) is int and least <= value <= most)
        return int(value)

    return read


FROM_NONE = Kind("a whole number from 0, such as 2", _whole(0))
FROM_ONE = Kind("a whole number from 1, such as 2", _whole(1))


def _lines(value: Any) -> tuple[str, ...]:
    _require(isinstance(value, list))
    return tuple(_text(each) for each in value)


LINES = Kind('a list of texts of one line each, such as ["cuda/12.1"]', _lines)
_MAIL = (
    *("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT"),
    *("TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50"),
)


def _mail(value: Any) -> str:
    kinds = value.split(",") if isinstance(value, str) else value
    _require(isinstance(kinds, list) and bool(kinds))
    _require(all(isinstance(each, str) and each.upper() in _MAIL for each in kinds))
    return ",".join(each.upper() for each in kinds)


MAIL = Kind(f"one or more of {', '.join(_MAIL)}", _mail)
_MEMORY = re.compile(r"\d+[KMGT]?", re.IGNORECASE)


def _matching(pattern: re.Pattern[str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        value = str(value) if type(value) is int else value
        _require(isinstance(value, str) and bool(pattern.fullmatch(value)))
        return str(value)

    return read


MEMORY = Kind('megabytes, or a number with K, M, G or T, such as "64G"', _matching(_MEMORY))


def _job_name(value: Any) -> str:
    # It is part of the logs' names, by %x.
    _require("/" not in _text(value), "logs are called by it")
    return str(value)


NAME = Kind("one line of text without slashes", _job_name)
_SIGNALS = "|".join(each.name.removeprefix("SIG") for each in signal.Signals)
_SIGNAL = re.compile(rf"([RB]{{1,2}}:)?(\d+|(SIG)?({_SIGNALS}))(@\d+)?")
SIGNAL = Kind(
    'a signal and the seconds before the time limit, such as "USR1@90", for the batch script '
    'alone "B:USR1@90"',
    _matching(_SIGNAL),
)


def _text(value: Any) -> str:
    _require(isinstance(value, str) and bool(value.strip()) and not _CONTROL.search(value))
    return str(value)


TEXT = Kind("one line of text", _text)
# Of sbatch(1), --time.
_TIMES = re.compile(r"\d+(:[0-5]?\d){0,2}|\d+-\d{1,2}(:[0-5]?\d){0,2}")
TIME = Kind(
    "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or "
    'days-hours:minutes:seconds, such as "02:00:00" or "1-12"',
    _matching(_TIMES),
)


def _tracking(value: Any) -> str:
    _require(value in ("direct", "spool"))
    return str(value)


TRACKING = Kind('"direct" or "spool"', _tracking)
# SLURM keeps the seconds of --signal in 16 bits.
WARNING = Kind("a whole number from 1 to 65535, such as 300", _whole(1, 65535))


def _key(kind: Kind, meaning: str, unit: str = "", option: str = "", default: Any = None) -> Any:
    facts = {"kind": kind, "meaning": meaning, "unit": unit, "option": option}
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class Config:
    """A valid configuration; None where a key is not given."""

    job_name: str | None = _key(NAME, "the job's name; the project's else", "", "--job-name")
    partition: str | None = _key(TEXT, "the partition (queue)", "", "--partition")
    account: str | None = _key(TEXT, "who pays", "", "--account")
    qos: str | None = _key(TEXT, "the quality of service", "", "--qos")
    reservation: str | None = _key(TEXT, "the reservation", "", "--reservation")
    constraint: str | None = _key(TEXT, "features of the nodes", "", "--constraint")
    nodelist: str | None = _key(TEXT, "nodes that must be there", "", "--nodelist")
    exclude: str | None = _key(TEXT, "nodes that must not", "", "--exclude")
    nodes: int | None = _key(FROM_ONE, "checked against -P num_nodes", "nodes")
    ntasks_per_node: int | None = _key(FROM_ONE, "checked against -P devices", "processes a node")
    gpus: int | None = _key(
        FROM_NONE, "checked against num_nodes x devices; 0 for none", "GPUs in all"
    )
    gpus_per_task: int | None = _key(FROM_ONE, "checked: each process has one", "GPUs a process")
    cpus_per_task: int | None = _key(
        FROM_ONE, "for each process, by srun too", "cores a process", "--cpus-per-task"
    )
    mem: str | None = _key(MEMORY, "memory of each node; 0 for all", "MB a node", "--mem")
    time: str | None = _key(TIME, "the time limit", "minutes, or a clock's", "--time")
    output: str = _key(FILE, "where stdout goes, in the run's folder", "", "--output", "%x-%j.out")
    error: str = _key(FILE, "where stderr goes, in the run's folder", "", "--error", "%x-%j.err")
    exclusive: bool | str | None = _key(
        EXCLUSIVE, "whether to share the nodes with no other job", "", "--exclusive"
    )
    dependency: str | None = _key(TEXT, "what must have ended", "", "--dependency")
    signal: str | None = _key(
        SIGNAL, "a warning before the time limit", "seconds before", "--signal"
    )
    requeue: bool | None = _key(
        FLAG,
        "whether the job starts again to go on: where the training, told before the time limit, "
        "leaves with exit code 75, and by SLURM itself after a preemption or the loss of a node",
        "",
        "--requeue",
    )
    requeue_seconds: int | None = _key(
        WARNING,
        "how long before the time limit a job with requeue is told to save and leave (default: "
        "120); SLURM may be a minute early",
        "seconds",
    )
    requeue_attempts: int | None = _key(
        FROM_ONE,
        "how many times a job with requeue may start in all (default: 100)",
        "starts",
    )
    mail_type: str | None = _key(MAIL, "when to write a mail", "", "--mail-type")
    mail_user: str | None = _key(TEXT, "to whom", "", "--mail-user")
    sbatch_args: tuple[str, ...] = _key(
        LINES, 'more options of sbatch, each "--name=value"', default=()
    )
    modules: tuple[str, ...] = _key(LINES, "modules to load, in this order", default=())
    setup: tuple[str, ...] = _key(
        LINES, "lines of bash, after the modules, before the environment", default=()
    )
    environment: str | None = _key(
        TEXT,
        "a conda environment's name or prefix, a virtualenv's path, or none; wins over "
        "--env-manager",
    )
    container: str | None = _key(
        TEXT, "an Apptainer image to run in, by --nv; in place of an environment"
    )
    exports: tuple[tuple[str, str | None], ...] = _key(EXPORTS, "variables of the job", default=())
    srun_args: tuple[str, ...] = _key(LINES, "more options of srun", default=())
    work_dir: str | None = _key(
        TEXT,
        "a folder that compute nodes see, for a folder of each run; beside the folder of the "
        "submission else",
    )
    tracking: str = _key(
        TRACKING,
        "how the job tells MLflow what it logs: to the server, or into the folder of the run, for "
        "`pyclassify sync` where nodes have no network",
        default="direct",
    )
    wait: bool = _key(FLAG, "whether to wait for the job's end", default=False)

    @property
    def warning(self) -> int:
        """How many seconds before its time limit a job with requeue is told."""
        return 120 if self.requeue_seconds is None else self.requeue_seconds

    @property
    def attempts(self) -> int:
        """How many times a job may start in all."""
        if not self.requeue:
            return 1
        return 100 if self.requeue_attempts is None else self.requeue_attempts


KEYS = {each.name: each for each in fields(Config)}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What the script sets itself.
_OURS = (
    *("MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"),
    *(PROGRESS_ENV, SPOOL_ENV, STATUS_BY_SLURM_ENV),
)


def parse_config(given: Mapping[str, Any]) -> Config:
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
    check_sbatch(config.sbatch_args)
    lists = ("modules", "setup", "sbatch_args", "srun_args")
    check_kept({name: getattr(config, name) for name in lists})
    _check_texts(found)
    if config.container and config.environment not in (None, "none"):
        raise ValueError(
            f"container is {config.container!r} and environment {config.environment!r} in the "
            "backend config; give one of the two: what an image runs is in the image"
        )
    _check_requeue(config, given)
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


def _check_requeue(config: Config, given: Mapping[str, Any]) -> None:
    if not config.requeue:
        for name in ("requeue_seconds", "requeue_attempts"):
            if getattr(config, name) is not None:
                raise ValueError(
                    f"{name} is {given[name]} in the backend config, which is for a job that "
                    f'starts again; give "requeue": true too, or leave {name} out'
                )
        return
    if config.signal is not None:
        raise ValueError(
            f"signal is {config.signal!r} and requeue is true in the backend config, and SLURM "
            "sends a job one signal before its time limit, which is USR1 to the script here; leave "
            'signal out, and say by "requeue_seconds" how long before'
        )
    if config.time is not None and 0 < seconds_of(config.time) <= config.warning:
        raise ValueError(
            f"time is {config.time!r} in the backend config, and the job is told to leave "
            f'{config.warning} seconds before that; give more "time", or less "requeue_seconds"'
        )


def _check_texts(found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if holds_credentials("backend_config.json", str(value).encode()):
            raise ValueError(
                f"{name} has a credential in it in the backend config, and both the config and the "
                "script are kept with the run; have the job read it from a variable, which "
                '"exports" takes with null'
            )


def check_sbatch(arguments: Sequence[str]) -> None:
    """Refuse options of sbatch that a key is for, or that the backend sets.

    Raises:
        ValueError: There is one, or an option by its letter.
    """
    for each in arguments:
        if not _LONG.fullmatch(each):
            raise ValueError(
                f"sbatch_args has {each!r} in the backend config; it takes options of sbatch by "
                'their long names, one an entry, such as "--licenses=matlab:1"'
            )
        option, _, value = each.partition("=")
        if why := _why_not(option, value):
            raise ValueError(f"sbatch_args has {option} in the backend config; {why}")


def _why_not(option: str, value: str) -> str:
    name = option.removeprefix("--")
    # GPUs alone: `--gres=tmpfs:100g` is for a site's disks.
    if "gres".startswith(name) and any(part.startswith("gpu") for part in value.split(",")):
        return _DEVICES
    keys = {
        (each.metadata["option"] or key.replace("_", "-")).removeprefix("--"): key
        for key, each in KEYS.items()
    }
    reasons = {full: f'give the key "{key}"' for full, key in keys.items()} | _REFUSED
    if name in reasons:
        return reasons[name]
    # sbatch takes a name's beginning for the name.
    meant = [full for full in reasons if full.startswith(name)]
    return f"that is short for --{meant[0]}; {reasons[meant[0]]}" if meant else ""


def check_kept(given: Mapping[str, Any]) -> None:
    """Refuse credentials in the configuration: the script and the JSON are kept with the run.

    Args:
        given: The configuration's keys that have lists of lines or options.

    Raises:
        ValueError: There is one; the name of its variable or option, and never its value.
    """
    for key, lines in given.items():
        for name in (name for line in lines for name in _credentials(_split(line))):
            raise ValueError(
                f"{key} gives {name} a value in the backend config, which looks like a credential, "
                f"and both the config and the script are kept with the run; {_advice(name)}"
            )


def check_parameters(given: Mapping[str, Any]) -> None:
    """Refuse credentials among a run's parameters: they would be in its script.

    Raises:
        ValueError: There is one.
    """
    for name, value in given.items():
        if mask(str(value), name) != str(value):
            raise ValueError(
                f"-P {name} looks like a credential, and parameters and the script are kept with "
                f"the run; have the project read it from a variable: {_advice(name)}"
            )


def _advice(name: str) -> str:
    variable = re.sub(r"\W", "_", name).strip("_").upper()
    return (
        f'export {variable} in this shell and give "exports": {{"{variable}": null}}, which takes '
        "it from the environment"
    )


def has_credentials(text: str) -> bool:
    """Whether a line of bash, or an option, gives a credential's name a value of its own."""
    return any(_credentials(_split(text)))


def _split(line: str) -> list[str]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:  # quotes that go on in the next line
        return line.split()


def _credentials(words: list[str]) -> Iterator[str]:
    """The names that look like a credential's, of `A_TOKEN=x`, `--token=x` and `--token x`."""
    named = [pair for word in words for part in word.split(",") for pair in _pairs(part)]
    named += [
        (option, value)
        for option, value in pairwise(words)
        if option.startswith("--") and "=" not in option and not value.startswith("-")
    ]
    for name, value in named:
        # What is read from elsewhere when the job runs is not written down.
        if mask(value, name.lstrip("-").replace("-", "_")) == MASK and not value.startswith(
            ("$", "`")
        ):
            yield name


def _pairs(part: str) -> Iterator[tuple[str, str]]:
    return pairwise(part.split("="))


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


def seconds_of(time: str) -> int:
    """The seconds of a time as sbatch takes it.

    Args:
        time: Minutes, or a clock's, as `TIME` takes it.
    """
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:  # days-hours:minutes:seconds
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes:seconds
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
