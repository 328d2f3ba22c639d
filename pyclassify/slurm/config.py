"""The configuration of the SLURM backend: the JSON of `--backend-config`, validated.

`Config` is the one definition of a key: its type defines the valid values, and its field describes
the key. The table in docs/slurm-keys.md, the error messages and what `sbatch_args` refuses follow
from it.
"""

import os
import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from pyclassify.utils.options import UsageError
from pyclassify.utils.text import suggest

# The keys that MLflow adds to the user's (mlflow.projects.utils, 3.17).
_MLFLOW_KEYS = (
    *("ENV_MANAGER", "SYNCHRONOUS", "DOCKER_ARGS", "STORAGE_DIR"),
    *("build_image", "docker_auth"),
)
_SET_BY_BACKEND = (
    *("MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"),
    *(PROGRESS_ENV, SPOOL_ENV, STATUS_BY_SLURM_ENV),
)
_FOLLOWS_FROM_DEVICES = "it follows from -P devices"
# Names of the number of GPUs in sbatch and elsewhere, none of which is a key.
_GPU_KEYS = ("gres", "gpus_per_node", "gpus_per_socket", "gpu")
_GPU_GRES = re.compile(r"(gres[:/])?gpu\b:?")
# Options of sbatch that the user can't set, and why.
_REFUSED_OPTIONS = {
    "array": "a run is one job",
    "chdir": "the job runs in the snapshot of the project",
    "export": "the job inherits the environment of the submission",
    "export-file": "the job inherits the environment of the submission",
    "gpus-per-node": _FOLLOWS_FROM_DEVICES,
    "gpus-per-socket": _FOLLOWS_FROM_DEVICES,
    "gpus-per-task": "it hides the other tasks' GPUs, which NCCL needs",
    "no-requeue": 'give the key "requeue"',
    "ntasks": "it follows from -P devices and -P num_nodes",
    "ntasks-per-gpu": _FOLLOWS_FROM_DEVICES,
    "parsable": "the backend sets it",
    "test-only": "run `pyclassify slurm check`",
    "tres-per-task": _FOLLOWS_FROM_DEVICES,
    "wait": 'give the key "wait"',
    "wrap": "the backend writes the script",
}
_LONG_OPTION = re.compile(r"--[a-z][a-z0-9-]*(=.*)?", re.DOTALL)
_SIGNALS = "|".join(number.name.removeprefix("SIG") for number in signal.Signals)
_MAIL_TYPES = (
    *("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT"),
    *("TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50"),
)


@dataclass(frozen=True)
class _Expected:
    """The valid values of a type, as an error has them after "expected"."""

    text: str


def _require(condition: bool, reason: str = "") -> None:
    if not condition:
        raise ValueError(reason)


def _check_file(value: str) -> str:
    # After a backslash SLURM expands no pattern.
    _require("\\" not in value)
    folder = os.path.dirname(value)
    _require("%" not in folder, f"the folder {folder} is created before the job has an id")
    return value


def _check_job_name(value: str) -> str:
    _require("/" not in value, "it is part of the names of the logs")  # by %x
    return value


def _join_mail_types(value: Any) -> str:
    types = value.split(",") if isinstance(value, str) else value
    _require(isinstance(types, list) and bool(types))
    _require(all(isinstance(name, str) and name.upper() in _MAIL_TYPES for name in types))
    return ",".join(name.upper() for name in types)


def _parse_exports(value: Any) -> tuple[tuple[str, str | None], ...]:
    _require(isinstance(value, dict))
    exports: dict[str, str | None] = {}
    for name, text in value.items():
        _require(name.isascii() and name.isidentifier(), f"{name!r} is not the name of a variable")
        _require(name not in _SET_BY_BACKEND, f"the backend sets {name}")
        _require(text is None or type(text) in (str, int, float), f"{name} is {text!r}")
        exports[name] = text if text is None else str(text)
        harmless = text is None or not is_credential(name, str(text))
        _require(harmless, f"{name} looks like a credential, and the script is stored with the run")
    return tuple(exports.items())


_text_of_int = BeforeValidator(lambda value: str(value) if type(value) is int else value)
_tuple_of_list = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
_Line = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$"),
    _Expected("one line of text"),
]
_Lines = Annotated[tuple[_Line, ...], _tuple_of_list]
_Modules = Annotated[_Lines, _Expected('a list of names, one line each, such as ["cuda/12.1"]')]
_Commands = Annotated[
    _Lines, _Expected('a list of commands, one line each, such as ["ulimit -n 4096"]')
]
_SbatchArgs = Annotated[
    _Lines, _Expected('a list of options, one line each, such as ["--licenses=matlab:1"]')
]
_SrunArgs = Annotated[
    _Lines, _Expected('a list of options, one line each, such as ["--cpu-bind=cores"]')
]
_JobName = Annotated[
    _Line, AfterValidator(_check_job_name), _Expected("one line of text without slashes")
]
_FileName = Annotated[
    _Line,
    AfterValidator(_check_file),
    _Expected(
        "a file name without backslashes; it may contain SLURM's patterns, such as %j and %x, and "
        "its folder may not"
    ),
]
_Flag = Annotated[bool, _Expected("true or false")]
_FromZero = Annotated[int, Field(ge=0), _Expected("an integer from 0, such as 2")]
_FromOne = Annotated[int, Field(ge=1), _Expected("an integer from 1, such as 2")]
# SLURM stores the seconds of --signal in 16 bits.
_WarningSeconds = Annotated[
    int, Field(ge=1, le=65535), _Expected("an integer from 1 to 65535, such as 300")
]
_Memory = Annotated[
    str,
    _text_of_int,
    Field(pattern=r"^\d+[KMGTkmgt]?$"),
    _Expected('megabytes, or a number with K, M, G or T, such as "64G"'),
]
_UNLIMITED = ("-1", "INFINITE", "UNLIMITED")  # in any case
_Time = Annotated[
    str,
    _text_of_int,
    # Of sbatch(1), --time, and of time_str2secs() in SLURM's parse_time.c.
    Field(
        pattern=rf"^((?i:{'|'.join(_UNLIMITED)})"
        r"|\d+(:[0-5]?\d){0,2}|\d+-\d{1,2}(:[0-5]?\d){0,2})$"
    ),
    _Expected(
        "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, "
        'days-hours:minutes:seconds or "UNLIMITED", such as "02:00:00" or "1-12"'
    ),
]
_GpuType = Annotated[
    str,
    _text_of_int,
    Field(pattern=r"^[^\s:,=()/*\x00-\x1f\x7f]+$"),
    _Expected('the name of one type, as `sinfo -o %G` shows it between colons, such as "a100"'),
]
_GpuOption = Annotated[
    Literal["gpus-per-node", "gres"],
    _Expected('"gpus-per-node" (and --gpus for all nodes) or "gres"'),
]
_Signal = Annotated[
    str,
    _text_of_int,
    Field(pattern=rf"^([RB]{{1,2}}:)?(\d+|(SIG)?({_SIGNALS}))(@\d+)?$"),
    _Expected(
        'a signal and the seconds before the time limit, such as "USR1@90"; "B:USR1@90" signals '
        "only the batch script"
    ),
]
_Exclusive = Annotated[bool | Literal["user", "mcs"], _Expected('true, false, "user" or "mcs"')]
_MailTypes = Annotated[
    str, BeforeValidator(_join_mail_types), _Expected(f"one or more of {', '.join(_MAIL_TYPES)}")
]
_Tracking = Annotated[Literal["direct", "spool"], _Expected('"direct" or "spool"')]
_Exports = Annotated[
    tuple[tuple[str, str | None], ...],
    PlainValidator(_parse_exports),
    _Expected(
        'names and values, such as {"OMP_NUM_THREADS": 4}; null passes on the value of the '
        "submitting shell without storing it"
    ),
]


def _key(meaning: str, unit: str = "", *, default: Any = None) -> Any:
    """A key that is not an option of sbatch."""
    return Field(default=default, description=meaning, json_schema_extra={"unit": unit})


def _option(meaning: str, unit: str = "", *, default: Any = None) -> Any:
    """A key that is the sbatch option of the same name."""
    extra: dict[str, Any] = {"unit": unit, "sbatch": True}
    return Field(default=default, description=meaning, json_schema_extra=extra)


class Config(BaseModel):
    """A valid configuration of the backend; a key that is not given is None.

    A new key is a field here, and a line in job.sh.j2.

    Raises:
        pydantic.ValidationError: A key is unknown, or a value is invalid.

    Example:
        >>> Config(partition="gpu", time="02:00:00").mem is None
        True
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    job_name: _JobName | None = _option("the name of the job (default: that of the project)")
    partition: _Line | None = _option("the partition (queue) to submit to")
    account: _Line | None = _option("the account to charge")
    qos: _Line | None = _option("the quality of service (QOS)")
    reservation: _Line | None = _option("the reservation to run in")
    constraint: _Line | None = _option("features that the nodes must have")
    nodelist: _Line | None = _option("nodes that the job must include")
    exclude: _Line | None = _option("nodes that the job must not use")
    nodes: _FromOne | None = _key("number of nodes, checked against -P num_nodes")
    ntasks_per_node: _FromOne | None = _key("tasks on each node, checked against -P devices")
    gpus: _FromZero | None = _key(
        "GPUs of the job, checked against num_nodes x devices; 0 for none"
    )
    gpus_per_task: _FromOne | None = _key("GPUs of each task; with -P devices only 1 is valid")
    gpu_type: _GpuType | None = _key("the type of all GPUs (default: any)")
    gpu_option: _GpuOption = _key(
        "the option of sbatch that requests GPUs; some sites accept only `gres`",
        default="gpus-per-node",
    )
    cpus_per_task: _FromOne | None = _option("CPU cores of each task, in sbatch and srun", "cores")
    mem: _Memory | None = _option("memory of each node; 0 for all of it", "MB")
    time: _Time | None = _option("the time limit of the job", "minutes")
    output: _FileName = _option("the file for stdout, in the run's folder", default="%x-%j.out")
    error: _FileName = _option("the file for stderr, in the run's folder", default="%x-%j.err")
    exclusive: _Exclusive | None = _option("whether the nodes run no other job")
    dependency: _Line | None = _option("jobs that must end before this one starts")
    signal: _Signal | None = _option("the signal to send before the time limit", "seconds")
    requeue: _Flag | None = _option(
        "whether to requeue the job after exit code 75 (an interruption), a preemption or the "
        "failure of a node"
    )
    requeue_seconds: _WarningSeconds = _key(
        "with requeue: how long before the time limit the training gets SIGUSR1 (default: 120); "
        "SLURM may send it up to a minute earlier",
        "seconds",
        default=120,
    )
    requeue_attempts: _FromOne = _key(
        "with requeue: the maximum number of starts of the job (default: 100)", default=100
    )
    mail_type: _MailTypes | None = _option("the events that send an email")
    mail_user: _Line | None = _option("the recipient of the emails")
    sbatch_args: _SbatchArgs = _key('more options of sbatch, each "--name=value"', default=())
    modules: _Modules = _key("environment modules to load, in this order", default=())
    setup: _Commands = _key(
        "lines of bash to run after the modules are loaded and before the environment is activated",
        default=(),
    )
    environment: _Line | None = _key(
        "the environment to activate: the name or prefix of a conda environment, the path of a "
        "virtualenv, or none; overrides --env-manager"
    )
    container: _Line | None = _key(
        "the Apptainer image to run in, with --nv; replaces the environment"
    )
    exports: _Exports = _key("environment variables of the job", default=())
    srun_args: _SrunArgs = _key("more options of srun", default=())
    work_dir: _Line | None = _key(
        "the folder in which each run gets its folder; compute nodes must see it (default: for the "
        "current folder NAME, NAME-slurm beside it)"
    )
    tracking: _Tracking = _key(
        "where the job logs to: the tracking server (direct), or a write-ahead log in the run's "
        "folder that `pyclassify sync` uploads (spool), for nodes without a network",
        default="direct",
    )
    wait: _Flag = _key("whether `mlflow run` waits until the job ends", default=False)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_sbatch_args(self.sbatch_args)
        for key in ("modules", "setup", "sbatch_args", "srun_args"):
            check_lines(key, getattr(self, key))
        for key, value in self:
            check_text(key, str(value))
        if self.container and self.environment not in (None, "none"):
            raise ValueError(
                f"container is {self.container!r} and environment is {self.environment!r} in the "
                "backend config; give one of the two: an image contains its environment"
            )
        if self.gpu_type is not None and self.gpus == 0:
            raise ValueError(
                f"gpu_type is {self.gpu_type!r} and gpus is 0 in the backend config; remove one "
                "of the two"
            )
        _check_requeue(self)
        missing = [name for name, text in self.exports if text is None and name not in os.environ]
        if missing:
            raise ValueError(
                f"exports.{missing[0]} is null in the backend config, but {missing[0]} is not set "
                f"in this shell; run `export {missing[0]}=VALUE` first"
            )
        return self


def parse_config(backend_config: Mapping[str, Any]) -> Config:
    """Validate a configuration.

    Args:
        backend_config: The keys of the JSON, and those that MLflow adds. A key whose value is None
            counts as not given.

    Raises:
        UsageError: A key is unknown, or a value is invalid; the message has the valid ones.
    """
    values = drop_mlflow_keys(backend_config)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        keys = [*values]
        # The first error in the user's order; pydantic has them in the order of fields.
        first = min(error.errors(), key=lambda e: keys.index(str(e["loc"][0])) if e["loc"] else -1)
        raise UsageError(_format_error(first, values)) from None


def drop_mlflow_keys(backend_config: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the keys that MLflow adds, and those whose value is None."""
    return {
        key: value
        for key, value in backend_config.items()
        if key not in _MLFLOW_KEYS and value is not None
    }


def parse_time_limit(value: str) -> str:
    """Validate the value of an option `--time`.

    Raises:
        UsageError: It is not a time limit of sbatch.
    """
    try:
        return str(Config(time=value).time)
    except ValidationError:
        raise UsageError(
            f"invalid --time: {value!r} (expected {describe_values('time')})"
        ) from None


def _format_error(error: ErrorDetails, values: Mapping[str, Any]) -> str:
    reason = str(error["ctx"]["error"]) if error["type"] == "value_error" else ""
    if not error["loc"]:  # of several keys together
        return reason
    key = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        message = f"unknown key {key!r} in the backend config"
        if key in _GPU_KEYS:
            option = "gres" if key == "gres" else ""
            return f"{message}; {_format_gpu_hint(option, str(values[key]))}"
        hint = suggest(key, Config.model_fields) or "."
        return f"{message}{hint} Valid keys: {', '.join(sorted(Config.model_fields))}"
    # A value that looks like a credential is not repeated.
    value = "" if key == "exports" else f": {values[key]!r}"
    if key in ("gpus", "gpus_per_task", "gpu_type") and ":" in str(values[key]):
        reason = _format_gpu_hint("", str(values[key]))
    expected = f"expected {describe_values(key)}"
    details = f"{reason}; {expected}" if reason else expected
    return f"invalid {key} in the backend config{value} ({details})"


def describe_values(key: str) -> str:
    """Describe the valid values of a key, as errors and docs/slurm-keys.md do."""
    field = Config.model_fields[key]
    # Of `X | None` the metadata is with X.
    metadata = field.metadata or get_args(field.annotation)[0].__metadata__
    return [item.text for item in metadata if isinstance(item, _Expected)][-1]


def _check_requeue(config: Config) -> None:
    if not config.requeue:
        for key in ("requeue_seconds", "requeue_attempts"):
            if key in config.model_fields_set:
                raise ValueError(
                    f"{key} is {getattr(config, key)} in the backend config, but the job is not "
                    f'requeued; give "requeue": true too, or remove {key}'
                )
        return
    if config.signal is not None:
        raise ValueError(
            f"signal is {config.signal!r} and requeue is true in the backend config, but SLURM "
            "sends a job only one signal before the time limit, and requeue needs USR1; remove "
            'signal, and set "requeue_seconds"'
        )
    if config.time is not None and 0 < _parse_seconds(config.time) <= config.requeue_seconds:
        raise ValueError(
            f"time is {config.time!r} in the backend config, but the training is signaled to save "
            f"{config.requeue_seconds} seconds before the time limit; give more "
            '"time", or less "requeue_seconds"'
        )


def _check_sbatch_args(arguments: Sequence[str]) -> None:
    """Refuse short options, those that have a key, and those that the backend sets."""
    for argument in arguments:
        if not _LONG_OPTION.fullmatch(argument):
            raise ValueError(
                f"invalid sbatch_args in the backend config: {argument!r} (expected options of "
                'sbatch by their long names, one per entry, such as "--licenses=matlab:1")'
            )
        option, _, value = argument.partition("=")
        if reason := _find_refusal_reason(option.removeprefix("--"), value):
            raise ValueError(f"invalid sbatch_args in the backend config: {option}; {reason}")


def _find_refusal_reason(name: str, value: str) -> str:
    if "gres".startswith(name) and len(name) > 1:
        # Other resources are accepted, such as a disk: `--gres=tmpfs:100g`.
        gpus = [part for part in value.split(",") if _GPU_GRES.match(part)]
        return _format_gpu_hint("gres", gpus[0]) if gpus else ""
    if name.startswith("gpus") and ":" in value:
        return _format_gpu_hint("", value)
    reasons = {key.replace("_", "-"): f'give the key "{key}"' for key in Config.model_fields}
    reasons |= _REFUSED_OPTIONS
    if name in reasons:
        return reasons[name]
    # sbatch accepts the beginning of a name as the name.
    meant = [option for option in reasons if option.startswith(name)]
    return f"it is short for --{meant[0]}; {reasons[meant[0]]}" if meant else ""


def _format_gpu_hint(option: str, value: str) -> str:
    """Name the keys that replace an option of sbatch for GPUs.

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
    """Convert a time limit of sbatch, such as "1-12:30", to seconds; 0 where it is unlimited."""
    if time.upper() in _UNLIMITED:
        return 0
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not dash and len(parts) < 3:  # minutes, or minutes:seconds
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
