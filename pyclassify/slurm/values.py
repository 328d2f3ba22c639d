"""The kinds of values that the backend's configuration takes."""

import math
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyclassify.slurm.credentials import has_credentials
from pyclassify.utils.masking import mask

# Of sbatch(1), --time.
_TIMES = re.compile(r"\d+(:[0-5]?\d){0,2}|\d+-\d{1,2}(:[0-5]?\d){0,2}")
_MEMORY = re.compile(r"\d+[KMGT]?", re.IGNORECASE)
_SIGNALS = "|".join(each.name.removeprefix("SIG") for each in signal.Signals)
_SIGNAL = re.compile(rf"([RB]{{1,2}}:)?(\d+|(SIG)?({_SIGNALS}))(@\d+)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_MAIL = (
    *("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT"),
    *("TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50"),
)

# What the script sets itself.
_OURS = (
    *("MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_TRACKING_URI"),
    *("PYCLASSIFY_PROGRESS", "PYCLASSIFY_SPOOL", "PYCLASSIFY_STATUS_BY_SLURM"),
)


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


def _require(condition: bool, why: str = "") -> None:
    if not condition:
        raise ValueError(why)


def _text(value: Any) -> str:
    _require(isinstance(value, str) and bool(value.strip()) and not _CONTROL.search(value))
    return str(value)


def _file(value: Any) -> str:
    # SLURM takes a backslash to mean that the rest is no pattern.
    _require("\\" not in _text(value))
    folder = os.path.dirname(value)
    _require("%" not in folder, f"the folder {folder} is made before the job has numbers")
    return str(value)


def _job_name(value: Any) -> str:
    # It is part of the logs' names, by %x.
    _require("/" not in _text(value), "logs are called by it")
    return str(value)


def _whole(least: int, most: float = math.inf) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        _require(type(value) is int and least <= value <= most)
        return int(value)

    return read


def _matching(pattern: re.Pattern[str]) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        value = str(value) if type(value) is int else value
        _require(isinstance(value, str) and bool(pattern.fullmatch(value)))
        return str(value)

    return read


def _flag(value: Any) -> bool:
    _require(isinstance(value, bool))
    return bool(value)


def _exclusive(value: Any) -> bool | str:
    _require(isinstance(value, bool) or value in ("user", "mcs"))
    return bool(value) if isinstance(value, bool) else str(value)


def _tracking(value: Any) -> str:
    _require(value in ("direct", "spool"))
    return str(value)


def _mail(value: Any) -> str:
    kinds = value.split(",") if isinstance(value, str) else value
    _require(isinstance(kinds, list) and bool(kinds))
    _require(all(isinstance(each, str) and each.upper() in _MAIL for each in kinds))
    return ",".join(each.upper() for each in kinds)


def _lines(value: Any) -> tuple[str, ...]:
    _require(isinstance(value, list))
    return tuple(_text(each) for each in value)


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


TEXT = Kind("one line of text", _text)
NAME = Kind("one line of text without slashes", _job_name)
FILE = Kind(
    "a file name without backslashes, which may have SLURM's %j, %x and others, but not in a "
    "folder's name",
    _file,
)
FROM_ONE = Kind("a whole number from 1, such as 2", _whole(1))
# SLURM keeps the seconds of --signal in 16 bits.
WARNING = Kind("a whole number from 1 to 65535, such as 300", _whole(1, 65535))
FROM_NONE = Kind("a whole number from 0, such as 2", _whole(0))
TIME = Kind(
    "minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or "
    'days-hours:minutes:seconds, such as "02:00:00" or "1-12"',
    _matching(_TIMES),
)
MEMORY = Kind('megabytes, or a number with K, M, G or T, such as "64G"', _matching(_MEMORY))
SIGNAL = Kind(
    'a signal and the seconds before the time limit, such as "USR1@90", for the batch script '
    'alone "B:USR1@90"',
    _matching(_SIGNAL),
)
FLAG = Kind("true or false", _flag)
TRACKING = Kind('"direct" or "spool"', _tracking)
EXCLUSIVE = Kind('true, false, "user" or "mcs"', _exclusive)
MAIL = Kind(f"one or more of {', '.join(_MAIL)}", _mail)
LINES = Kind('a list of texts of one line each, such as ["cuda/12.1"]', _lines)
EXPORTS = Kind(
    'names and texts, such as {"OMP_NUM_THREADS": 4}; null for the value that the variable has '
    "where the job is submitted, which is never written down",
    _exports,
)
