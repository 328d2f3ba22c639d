"""A version that a run asked for, made when the run's files have arrived, and judged."""

import warnings
from collections.abc import Mapping
from typing import Any

from pyclassify.registry.champion import judge
from pyclassify.registry.versions import register


def make_version(client: Any, run_id: str, record: Mapping[str, Any]) -> str:
    """Make a version and judge it, as far as that needs no images; done again it changes nothing.

    Args:
        client: An `MlflowClient` of the server.
        run_id: The run.
        record: That of the spool, of the kind `version`.

    Returns:
        What became of it, in a line.

    Raises:
        mlflow.exceptions.MlflowException: The registry does not answer, or refuses the version.
    """
    name = record["name"]
    version = register(client, run_id, name, record["tags"], record["path"])
    bounds = {key: record[key] for key in ("alpha", "min_accuracy")}
    # By other images than the test's only the training can judge, which has them, and does next.
    others = record["judge_by"] != "test"
    try:
        return judge(client, name, version, afresh=others, **bounds).text
    except Exception as error:  # the version is there; `pyclassify promote` judges it again
        warnings.warn(f"{name} version {version} was not judged ({error})", stacklevel=2)
        return f"{name} version {version}"
