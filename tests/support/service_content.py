"""What a group has on its server, of every kind, and all of that server told to compare it."""

import hashlib
import math
import tempfile
from pathlib import Path

import mlflow
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import DatasetInput, InputTag, Metric, Param, ViewType

# The numbers that a database may round, clip or refuse.
VALUES = [1 / 3, 0.1 + 0.2, 1e-300, 5e-324, 2.0**60, -1e17, math.nan, math.inf, -math.inf]
TEXT = "a tab\there, a line\nand another, back\\slash, 'quotes', \"more\", \u00fc, \u4e2d, \\N"
EPOCHS = 100


def fill(client, folder):
    """Make two experiments, one deleted, three runs, one deleted, and a model of two versions.

    Returns:
        The ids of the runs, the parent first and the deleted one last.
    """
    experiment = client.create_experiment("net", tags={"owner": TEXT})
    client.delete_experiment(client.create_experiment("given up"))
    parent = make_run(client, experiment, folder, "FINISHED")
    children = [
        make_run(client, experiment, folder, status, {"mlflow.parentRunId": parent})
        for status in ("FAILED", "KILLED")
    ]
    client.create_registered_model("net", {"owner": "the group"}, TEXT)
    for run_id, accuracy in ((parent, "0.5"), (children[0], "0.6")):
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        client.create_model_version("net", source, run_id, {"test_accuracy": accuracy})
    client.set_registered_model_alias("net", "champion", "2")
    client.create_logged_model(experiment, "net", parent, {"seed": "1"}, params={"layers": "8"})
    client.delete_run(children[1])
    return [parent, *children]


def make_run(client, experiment, folder, status="FINISHED", tags=None):
    """Make a run with a history, data, and a model of two files, each run's another."""
    run_id = client.create_run(experiment, tags={"note": TEXT, **(tags or {})}).info.run_id
    history = [Metric("train_loss", 1 / (1 + step), 1000 + step, step) for step in range(EPOCHS)]
    strange = [Metric("strange", value, 1000, step) for step, value in enumerate(VALUES)]
    params = [Param("long", "x" * 500), Param("learning_rate", "0.0001"), Param("note", TEXT)]
    client.log_batch(run_id, history + strange, params)
    images = MetaDataset(HTTPDatasetSource("http://localhost/images"), "images", run_id[:8])
    context = InputTag("mlflow.data.context", "test")
    client.log_inputs(run_id, [DatasetInput(images._to_mlflow_entity(), [context])])
    model = Path(folder, run_id, "model")
    model.mkdir(parents=True)
    (model / "MLmodel").write_text(f"run_id: {run_id}\n")
    (model / "weights \u00fc 1+1.bin").write_bytes(bytes.fromhex(run_id) * 1000)
    client.log_artifacts(run_id, str(model), "model")
    client.set_terminated(run_id, status)
    return run_id


def tell(client, folder):
    """All that a server has, but for the addresses of files: these are told by their hashes.

    Args:
        client: An `MlflowClient`.
        folder: A folder for the files.
    """
    experiments = client.search_experiments(ViewType.ALL)
    ids = [each.experiment_id for each in experiments]
    versions = [
        client.get_model_version(each.name, each.version)  # which has its aliases, unlike `each`
        for each in client.search_model_versions()
    ]
    return {
        "experiments": _by("experiment_id", map(_bare, experiments)),
        "runs": _by("run_id", (_tell_run(client, run) for run in _runs(client, ids))),
        "files": {
            run.info.run_id: _hashes(client.download_artifacts, (run.info.run_id, ""), folder)
            for run in _runs(client, ids)
        },
        "models": _by("name", map(_bare, client.search_registered_models())),
        "versions": _by("version", map(_bare, versions)),
        "served": {str(each.version): _hashes(_fetch, (client, each), folder) for each in versions},
        "logged models": _by("model_id", map(_bare, client.search_logged_models(ids))),
    }


def _runs(client, experiments):
    return client.search_runs(experiments, "", ViewType.ALL)


def _tell_run(client, run):
    """A run with the whole history of its metrics, as text where numbers are not themselves."""
    known = run.to_dictionary()
    history = {
        name: [
            (each.step, each.timestamp, repr(each.value))
            for each in client.get_metric_history(run.info.run_id, name)
        ]
        for name in run.data.metrics
    }
    known["info"].pop("artifact_uri")
    known["data"]["metrics"] = {name: repr(value) for name, value in run.data.metrics.items()}
    return {"run_id": run.info.run_id, "history": history, **known}


def _bare(entity):
    """What MLflow tells of a thing, without where its files are.

    As text and without what is empty, which a database and a server tell each in its own way.
    """
    known = entity.to_dictionary() if hasattr(entity, "to_dictionary") else dict(entity)
    if "latest_versions" in known:
        del known["latest_versions"], known["aliases"]  # which the versions tell
    for hidden in ("artifact_location", "source", "deployment_job_state"):
        known.pop(hidden, None)
    return {name: str(value) for name, value in known.items() if value}


def _by(name, known):
    return {each[name]: each for each in known}


def _fetch(client, version, folder):
    """The files that are served where a version is asked for."""
    uri = client.get_model_version_download_uri(version.name, version.version)
    mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=client.tracking_uri)


def _hashes(fetch, of, folder):
    """The SHA-256 of each file that is fetched."""
    with tempfile.TemporaryDirectory(dir=folder) as there:
        fetch(*of, there)
        return {
            str(path.relative_to(there)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in Path(there).rglob("*")
            if path.is_file()
        }
