"""What the first of several processes decides, told to the others by a file of a shared folder.

Each of them was started by a launcher (srun, torchrun), perhaps on a node of its own, and has not
met the others yet.
"""

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pyclassify.utils import files

PATIENCE = 600.0  # seconds for the first process to decide

# By these a start of a job, or of a launcher's processes, differs from the one before.
_START = (
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"),
    *("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)


def tell(folder: Path, decided: Any) -> None:
    """Tell the other processes of this start.

    Args:
        folder: A folder that they all see.
        decided: What JSON can write.
    """
    path = _file(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, json.dumps(decided))


def hear(folder: Path) -> Any:
    """Wait for what the first process of this start decides.

    Raises:
        TimeoutError: It says nothing.
    """
    path, end = _file(folder), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(OSError):
            return json.loads(path.read_text())
        time.sleep(0.1)
    raise TimeoutError(
        f"the first process has not said in {PATIENCE:.0f} s what to do, in {path}; see what it "
        "says of itself, and whether all processes see that folder"
    )


def _file(folder: Path) -> Path:
    return folder / ("-".join(os.environ.get(name, "0") for name in _START) + ".json")
