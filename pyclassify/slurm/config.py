"""The configuration of the SLURM backend: the JSON of `--backend-config`, validated.

`Config` is the one definition of a key: its type says what the key takes, its field what the key
means. The table in docs/slurm.md, the error messages and what `sbatch_args` refuses follow from it.
"""

import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from pyclassify.slurm.credentials import check_lines, check_text, is_credential
from pyclassify.utils.launcher import PROGRESS_ENV, SPOOL_ENV, STATUS_BY_SLURM_ENV

# What MLflow adds to what the user gave (mlflow.projects.utils, 3.17).
MLFLOW_KEYS = (
    *("ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR"),
    *("build_image", "docker_auth"),
)
_SET_BY_BACKEND = (
    *("MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"),
    *(PROGRESS_ENV, SPOOL_ENV, STATUS_BY_SLURM_ENV),
)
_FOLLOWS_FROM_DEVICES = "it follows from -P devices"
# What sbatch and others call the number of GPUs, and no key is called.
_GPU_KEYS = ("gres", "gpus_per_node", "gpus_per_socket", "gpu")
_GPU_GRES = re.compile(r"(gres[:/])?gpu\b:?")
# Options of sbatch that are not for the user to set, and why.
_REFUSED_OPTIONS = {
    "array": "a run is one job",
    "chdir": "the job runs in its snapshot",
    "export": "the job gets the environment that it is submitted from",
    "export-file": "the job gets the environment that it is submitted from",
    "gpus-per-node": _FOLLOWS_FROM_DEVICES,
    "gpus-per-socket": _FOLLOWS_FROM_DEVICES,
    "gpus-per-task": "it hides the other tasks' GPUs, so that two processes can't work together",
    "no-requeue": 'give the key "requeue"',
    "ntasks": "it follows from -P devices and -P num_nodes",
    "ntasks-per-gpu": _FOLLOWS_FROM_DEVICES,
    "parsable": "the backend sets it",
    "test-only": "`pyclassify slurm check` asks that",
    "tres-per-task": _FOLLOWS_FROM_DEVICES,
    "wait": 'give the key "wait"',
    "wrap": "the script is written by the backend",
}
_LONG_OPTION = re.compile(r"--[a-z][a-z0-9-]*(=.*)?", re.DOTALL)
_SIGNALS = "|".join(each.name.removeprefix("SIG") for each in signal.Signals)
_MAIL_TYPES = (
    *("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT"),
    *("TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50"),
)


@dataclass(frozen=True)
class _Takes:
    """What a type allows, to be read after "it takes"."""

    text: str


def _require(condition: bool, why: str = "") -> None:
    if not condition:
        raise ValueError(why)


def _check_file(value: str) -> str:
    # SLURM takes a backslash to mean that the rest is no pattern.
    _require("\\" not in value)
    folder = os.path.dirname(value)
    _require("%" not in folder, f"the folder {folder} is made before the job has numbers")
    return value


def _check_job_name(value: str) -> str:
    # It is part of the logs' names, by %x.
    _require("/" not in value, "logs are called by it")
    return value


def _join_mail_types(value: Any) -> str:
    types = value.split(",") if isinstance(value, str) else value
    _require(isinstance(types, list) and bool(types))
    _require(all(isinstance(each, str) and each.upper() in _MAIL_TYPES for each in types))
    return ",".join(each.upper() for each in types)


def _parse_exports(value: Any) -> tuple[tuple[str, str | None], ...]:
    _require(isinstance(value, dict))
    exports: dict[str, str | None] = {}
    for name, text in value.items():
        _require(name.isascii() and name.isidentifier(), f"{name!r} is no variable's name")
        _require(name not in _SET_BY_BACKEND, f"{name} is set by the backend")
        _require(text is None or type(text) in (str, int, float), f"{name} is {text!r}")
        exports[name] = text if text is None else str(text)
        harmless = text is None or not is_credential(name, str(text))
        _require(harmless, f"{name} looks like a credential, and the script is kept with the run")
    return tuple(exports.items())


_text_of_int = BeforeValidator(lambda value: str(value) if type(value) is int else value)
_tuple_of_list = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
_Line = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"),
    _Takes("one line of text"),
]
_Lines = Annotated[
    tuple[_Line, ...],
    _tuple_of_list,
    _Takes('a list of texts of one line each, such as ["cuda/12.1"]'),
]
_JobName = Annotated[
    _Line, AfterValidator(_check_job_name), _Takes("one line of text without slashes")
]
_FileName = Annotated[
    _Line,
    AfterValidator(_check_file),
    _Takes(
        "a file name without backslashes, which may have SLURM's %j, %x and others, but not in a "
        "folder's name"
    ),
]
_Flag = Annotated[bool, _Takes("true or false")]
_FromZero = Annotated[int, Field(ge=0), _Takes("a whole number from 0, such as 2")]
_FromOne = Annotated[int, Field(ge=1), _Takes("a whole number from 1, such as 2")]
# SLURM keeps the seconds of --signal in 16 bits.
_WarningSeconds = Annotated[
    int, Field(ge=1, le=65535), _Takes("a whole number from 1 to 65535, such as 300")
]
_Memory = Annotated[
    str,
    _text_of_int,
    Field(pattern=r"^\d+[KMGTkmgt]?$"),
    _Takes('megabytes, or a number with K, M, G or T, such as "64G"'),
]
_UNLIMITED = ("-1", "INFINITE", "UNLIMITED")  # sbatch takes them in any case
_Time = Annotated[
    str,
    _text_of_int,
    # Of sbatch(1), --time, and of time_str2secs() in SLURM's parse_time.c.
    Field(
        pattern=rf"^((?i:{'|'.join(_UNLIMITED)})"
        r"|\d+(:[0-5]?\d){0,2}|\d+-\d{1,2}(:[0-5]?\d){0,2})$"
    ),
    _Takes(
        "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, "
        'days-hours:minutes:seconds or "UNLIMITED", such as "02:00:00" or "1-12"'
    ),
]
_GpuType = Annotated[
    str,
    _text_of_int,
    Field(pattern=r"^[^\s:,=()/*\x00-\x1f\x7f]+$"),
    _Takes('the name of one type, as `sinfo -o %G` has it between colons, such as "a100"'),
]
_GpuOption = Annotated[
    Literal["gpus-per-node", "gres"], _Takes('"gpus-per-node" (with --gpus too) or "gres"')
]
_Signal = Annotated[
    str,
    _text_of_int,
    Field(pattern=rf"^([RB]{{1,2}}:)?(\d+|(SIG)?({_SIGNALS}))(@\d+)?$"),
    _Takes(
        'a signal and the seconds before the time limit, such as "USR1@90", for the batch script '
        'alone "B:USR1@90"'
    ),
]
_Exclusive = Annotated[bool | Literal["user", "mcs"], _Takes('true, false, "user" or "mcs"')]
_MailTypes = Annotated[
    str, BeforeValidator(_join_mail_types), _Takes(f"one or more of {', '.join(_MAIL_TYPES)}")
]
_Tracking = Annotated[Literal["direct", "spool"], _Takes('"direct" or "spool"')]
_Exports = Annotated[
    tuple[tuple[str, str | None], ...],
    PlainValidator(_parse_exports),
    _Takes(
        'names and texts, such as {"OMP_NUM_THREADS": 4}; null for the value that the variable has '
        "where the job is submitted, which is never written down"
    ),
]


def _key(meaning: str, unit: str = "", *, default: Any = None) -> Any:
    """A key of the backend's own."""
    return Field(default=default, description=meaning, json_schema_extra={"unit": unit})


def _option(meaning: str, unit: str = "", *, default: Any = None) -> Any:
    """A key that is the option of sbatch with the same name."""
    extra: dict[str, Any] = {"unit": unit, "sbatch": True}
    return Field(default=default, description=meaning, json_schema_extra=extra)


class Config(BaseModel):
    """A valid configuration; None where a key is not given.

    A new key is a field here, and its line in job.sh.j2.

    Example:
        >>> Config(partition="gpu", time="02:00:00").mem is None
        True
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    job_name: _JobName | None = _option("the job's name; the project's else")
    partition: _Line | None = _option("the partition (queue)")
    account: _Line | None = _option("who pays")
    qos: _Line | None = _option("the quality of service")
    reservation: _Line | None = _option("the reservation")
    constraint: _Line | None = _option("features of the nodes")
    nodelist: _Line | None = _option("nodes that must be there")
    exclude: _Line | None = _option("nodes that must not")
    nodes: _FromOne | None = _key("checked against -P num_nodes", "nodes")
    ntasks_per_node: _FromOne | None = _key("checked against -P devices", "processes a node")
    gpus: _FromZero | None = _key("checked against num_nodes x devices; 0 for none", "GPUs in all")
    gpus_per_task: _FromOne | None = _key("checked: each process has one", "GPUs a process")
    gpu_type: _GpuType | None = _key("the type of all GPUs; SLURM chooses else")
    gpu_option: _GpuOption = _key(
        "the option of sbatch that asks for GPUs; some sites take `gres` alone",
        default="gpus-per-node",
    )
    cpus_per_task: _FromOne | None = _option("for each process, by srun too", "cores a process")
    mem: _Memory | None = _option("memory of each node; 0 for all", "MB a node")
    time: _Time | None = _option("the time limit", "minutes, or a clock's")
    output: _FileName = _option("where stdout goes, in the run's folder", default="%x-%j.out")
    error: _FileName = _option("where stderr goes, in the run's folder", default="%x-%j.err")
    exclusive: _Exclusive | None = _option("whether to share the nodes with no other job")
    dependency: _Line | None = _option("what must have ended")
    signal: _Signal | None = _option("a warning before the time limit", "seconds before")
    requeue: _Flag | None = _option(
        "whether the job starts again to go on: where the training, told before the time limit, "
        "leaves with exit code 75, and by SLURM itself after a preemption or the loss of a node"
    )
    requeue_seconds: _WarningSeconds = _key(
        "how long before the time limit a job with requeue is told to save and leave (default: "
        "120); SLURM may be a minute early",
        "seconds",
        default=120,
    )
    requeue_attempts: _FromOne = _key(
        "how many times a job with requeue may start in all (default: 100)", "starts", default=100
    )
    mail_type: _MailTypes | None = _option("when to write a mail")
    mail_user: _Line | None = _option("to whom")
    sbatch_args: _Lines = _key('more options of sbatch, each "--name=value"', default=())
    modules: _Lines = _key("modules to load, in this order", default=())
    setup: _Lines = _key("lines of bash, after the modules, before the environment", default=())
    environment: _Line | None = _key(
        "a conda environment's name or prefix, a virtualenv's path, or none; wins over "
        "--env-manager"
    )
    container: _Line | None = _key(
        "an Apptainer image to run in, by --nv; in place of an environment"
    )
    exports: _Exports = _key("variables of the job", default=())
    srun_args: _Lines = _key("more options of srun", default=())
    work_dir: _Line | None = _key(
        "a folder that compute nodes see, for a folder of each run; beside the folder of the "
        "submission else"
    )
    tracking: _Tracking = _key(
        "how the job tells MLflow what it logs: to the server, or into the folder of the run, for "
        "`pyclassify sync` where nodes have no network",
        default="direct",
    )
    wait: _Flag = _key("whether to wait for the job's end", default=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_sbatch_args(self.sbatch_args)
        for key in ("modules", "setup", "sbatch_args", "srun_args"):
            check_lines(key, getattr(self, key))
        for key, value in self:
            check_text(key, str(value))
        if self.container and self.environment not in (None, "none"):
            raise ValueError(
                f"container is {self.container!r} and environment {self.environment!r} in the "
                "backend config; give one of the two: what an image runs is in the image"
            )
        if self.gpu_type is not None and self.gpus == 0:
            raise ValueError(
                f"gpu_type is {self.gpu_type!r} and gpus is 0 in the backend config; leave one of "
                "the two out"
            )
        _check_requeue(self)
        missing = [name for name, text in self.exports if text is None and name not in os.environ]
        if missing:
            raise ValueError(
                f"exports.{missing[0]} is null in the backend config, and {missing[0]} is not set "
                "here; export it in this shell first"
            )
        return self


def parse_config(backend_config: Mapping[str, Any]) -> Config:
    """Validate a configuration.

    Args:
        backend_config: The JSON's keys, and those that MLflow adds; None is as if not given.

    Raises:
        ValueError: There is an unknown key or a wrong value; the message says what is allowed.
    """
    values = {
        key: value
        for key, value in backend_config.items()
        if key not in MLFLOW_KEYS and value is not None
    }
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        keys = [*values]
        # Of several the one that the user reads first; pydantic has them in the order of fields.
        first = min(error.errors(), key=lambda e: keys.index(str(e["loc"][0])) if e["loc"] else -1)
        raise ValueError(_format_error(first, values)) from None


def parse_time_limit(value: str) -> str:
    """Validate a time limit that is given by an option `--time`.

    Raises:
        ValueError: sbatch takes no such time.
    """
    try:
        return str(Config(time=value).time)
    except ValidationError:
        raise ValueError(f"--time is {value!r}; it takes {describe_values('time')}") from None


def _format_error(error: ErrorDetails, values: Mapping[str, Any]) -> str:
    why = str(error["ctx"]["error"]) if error["type"] == "value_error" else ""
    if not error["loc"]:  # of several keys together
        return why
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden" and key in _GPU_KEYS:
        name = "gres" if key == "gres" else ""
        return f"the backend config has no key {key!r}; {_explain_gpus(name, str(values[key]))}"
    if error["type"] == "extra_forbidden":
        known = sorted(Config.model_fields)
        near = get_close_matches(key, Config.model_fields, n=1)
        hint = f" (nearest: {near[0]})" if near else ""
        return f"the backend config has no key {key!r}{hint}; there are {', '.join(known)}"
    # What looks like a credential is not repeated.
    shown = key if key == "exports" else f"{key} is {values[key]!r}"
    if key in ("gpus", "gpus_per_task", "gpu_type") and ":" in str(values[key]):
        why = _explain_gpus("", str(values[key]))
    reason = f" ({why})" if why else ""
    return f"{shown} in the backend config{reason}; it takes {describe_values(key)}"


def describe_values(key: str) -> str:
    """Describe the values that a key takes, as errors and docs/slurm.md do."""
    field = Config.model_fields[key]
    # Of `X | None` the metadata is with X.
    metadata = field.metadata or get_args(field.annotation)[0].__metadata__
    return [each.text for each in metadata if isinstance(each, _Takes)][-1]


def _check_requeue(config: Config) -> None:
    if not config.requeue:
        for key in ("requeue_seconds", "requeue_attempts"):
            if key in config.model_fields_set:
                raise ValueError(
                    f"{key} is {getattr(config, key)} in the backend config, which is for a job "
                    f'that starts again; give "requeue": true too, or leave {key} out'
                )
        return
    if config.signal is not None:
        raise ValueError(
            f"signal is {config.signal!r} and requeue is true in the backend config, and SLURM "
            "sends a job one signal before its time limit, which is USR1 to the script here; leave "
            'signal out, and say by "requeue_seconds" how long before'
        )
    if config.time is not None and 0 < _parse_seconds(config.time) <= config.requeue_seconds:
        raise ValueError(
            f"time is {config.time!r} in the backend config, and the job is told to leave "
            f'{config.requeue_seconds} seconds before that; give more "time", or less '
            '"requeue_seconds"'
        )


def _check_sbatch_args(arguments: Sequence[str]) -> None:
    """Refuse options of sbatch that a key is for, that the backend sets, or by their letter."""
    for argument in arguments:
        if not _LONG_OPTION.fullmatch(argument):
            raise ValueError(
                f"sbatch_args has {argument!r} in the backend config; it takes options of sbatch "
                'by their long names, one an entry, such as "--licenses=matlab:1"'
            )
        option, _, value = argument.partition("=")
        if why := _why_refused(option.removeprefix("--"), value):
            raise ValueError(f"sbatch_args has {option} in the backend config; {why}")


def _why_refused(name: str, value: str) -> str:
    if "gres".startswith(name) and len(name) > 1:
        # GPUs alone: `--gres=tmpfs:100g` is for a site's disks.
        gpus = [part for part in value.split(",") if _GPU_GRES.match(part)]
        return _explain_gpus("gres", gpus[0]) if gpus else ""
    if name.startswith("gpus") and ":" in value:
        return _explain_gpus("", value)
    reasons = {key.replace("_", "-"): f'give the key "{key}"' for key in Config.model_fields}
    reasons |= _REFUSED_OPTIONS
    if name in reasons:
        return reasons[name]
    # sbatch takes a name's beginning for the name.
    meant = [option for option in reasons if option.startswith(name)]
    return f"that is short for --{meant[0]}; {reasons[meant[0]]}" if meant else ""


def _explain_gpus(option: str, value: str) -> str:
    """Say which keys stand for an option of sbatch that asks for GPUs.

    Args:
        option: "gres" for `--gres`; empty for the others.
        value: The option's value: `[TYPE:]NUMBER`, and in --gres `gpu[:TYPE][:NUMBER]`.
    """
    kind, _, number = _GPU_GRES.sub("", value, count=1).partition(":")
    has_type = kind and (number.isdigit() or not (number or kind.isdigit()))
    keys = [f'"gpu_type": "{kind}"'] if has_type else []
    keys += ['"gpu_option": "gres"'] if option == "gres" else []
    hint = f"; give {' and '.join(keys)}" if keys else ""
    return f"the number of GPUs follows from -P devices{hint}"


def _parse_seconds(time: str) -> int:
    """Convert a time as sbatch takes it, such as "1-12:30", to seconds; 0 where it is unlimited."""
    if time.upper() in _UNLIMITED:
        return 0
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not dash and len(parts) < 3:  # minutes, or minutes:seconds
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
