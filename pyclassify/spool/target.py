"""What a spool is for: the run that it is delivered to, as it was when the spool was made."""

from pathlib import Path
from typing import Any

from pyclassify.spool import records
from pyclassify.utils.masking import mask


def prepare(root: Path, client: Any, run_id: str) -> Path:
    """Make the spool of a run that the server has, unless there is one.

    Args:
        root: The folder of the spools.
        client: An `MlflowClient` of the server.
        run_id: The run.

    Returns:
        The run's folder.

    Raises:
        mlflow.exceptions.MlflowException: The server does not know it, or does not answer.
        OSError: The folder can't be written.
    """
    folder = root / run_id
    if records.is_spool(folder):
        return folder
    run = client.get_run(run_id)
    info, data = run.info, run.data
    experiment = client.get_experiment(info.experiment_id)
    known = {
        "experiment": {
            "name": experiment.name,
            "creation_time": experiment.creation_time,
            "tags": experiment.tags,
        },
        "info": {
            **{name: getattr(info, name) for name in ("run_id", "experiment_id", "run_name")},
            **{name: getattr(info, name) for name in ("status", "start_time", "end_time")},
            "user_id": info.user_id,
        },
        "params": data.params,
        "tags": data.tags,
        "metrics": [[m.key, m.value, m.timestamp, m.step] for m in data._metric_objs],
        "steps": {  # that are not to be logged again
            name: [each.step for each in client.get_metric_history(run_id, name)]
            for name in data.metrics
        },
        "inputs": [each.to_dictionary() for each in run.inputs.dataset_inputs],
    }
    _write(folder, known, client.tracking_uri)
    return folder


def make(
    folder: Path,
    experiment_id: str,
    run_name: str,
    tags: dict[str, str],
    start_time: int,
    tracking_uri: str = "",
    given_id: bool = False,
) -> Path:
    """Make the spool of a run that no server was asked about.

    Args:
        folder: The run's folder, called by its id.
        experiment_id: The experiment's id; `name:` and its name where that alone is known.
        run_name: The run's name.
        tags: Its tags.
        start_time: When it started, in milliseconds since 1970.
        tracking_uri: Where it is to be delivered; nothing where MLFLOW_TRACKING_URI shall say.
        given_id: Whether the server has a run of this id; else delivery makes one.

    Returns:
        The run's folder.
    """
    info: dict[str, Any] = {
        "run_id": folder.name,
        "experiment_id": experiment_id,
        "run_name": run_name,
    }
    info |= {"status": "RUNNING", "start_time": start_time, "end_time": None}
    info |= {"user_id": tags.get("mlflow.user")}
    known: dict[str, Any] = {
        "info": info,
        "params": {},
        "tags": {**tags, "mlflow.runName": run_name},
    }
    name = experiment_id.removeprefix("name:")
    known |= {"metrics": [], "inputs": []}
    known |= {"experiment": {"name": name, "creation_time": start_time, "tags": {}}}
    _write(folder, known, tracking_uri, made_here=not given_id)
    return folder


def _write(folder: Path, known: dict[str, Any], tracking_uri: str, made_here: bool = False) -> None:
    (folder / "artifacts").mkdir(parents=True, exist_ok=True, mode=0o700)
    uri = mask(_absolute(tracking_uri))
    target = {"layout": 1, "tracking_uri": uri, "made_here": made_here}
    records.replace(folder / records.SPOOL, {**target, **known})


def _absolute(uri: str) -> str:
    """Let a database's address be the same from every folder."""
    path = uri.removeprefix("sqlite:///")
    return uri if path == uri or path.startswith("/") else f"sqlite:///{Path(path).absolute()}"
