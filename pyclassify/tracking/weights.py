"""The file of weights that a training starts from, as its run tells of it."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def describe(config: Mapping[str, Any]) -> dict[str, str] | None:
    """Tell a network's first weights by their content.

    Args:
        config: A resolved configuration; the model in it may have an argument `weights`.

    Returns:
        The `file` and its `sha256`; nothing where that argument names no file.
    """
    given = (config["model"].get("init_args") or {}).get("weights")
    if not isinstance(given, str) or not Path(given).expanduser().is_file():
        return None
    with Path(given).expanduser().open("rb") as file:
        return {"file": given, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
