"""Options of sbatch that the configuration passes on as they are."""

import re
from collections.abc import Sequence

from pyclassify.slurm.keys import KEYS

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
