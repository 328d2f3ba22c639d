"""A network that was trained becomes a version of a registered model, and never gets lost."""

import math
import re
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from pyclassify.cli.main import main
from pyclassify.data import synthetic
from pyclassify.data.transforms import Preprocess
from pyclassify.module import Classifier
from pyclassify.registry.register import RegisterModel
from pyclassify.registry.versions import format_serve_command, register_version
from tests.support import networks
from tests.support.images import encode, file_of
from tests.support.phrases import mentions
from tests.support.spooled import open_run_with_spool
from tests.support.stores import using
from tests.support.trainings import QUIET, SHAPES, train_beside

REGISTER = "--register"
TESTED, _ = synthetic.generate_images(20, seed=2)  # the test images of SHAPES
PICTURE = encode(file_of(TESTED[0].permute(1, 2, 0).numpy()))


def models(run):
    """The models that a run logged, the newest first."""
    client, experiment = mlflow.MlflowClient(), run.info.experiment_id
    return client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'")


@pytest.fixture(scope="module")
def registered(module_store):
    return train_beside(module_store, f"{SHAPES} {REGISTER}=shapes")


@pytest.fixture
def trained(registered, module_store, monkeypatch):
    """A training that registered its network, in its folder, for reading only."""
    monkeypatch.chdir(Path(module_store.tracking_uri.removeprefix("sqlite:///")).parent)
    with using(module_store):
        yield registered


@pytest.fixture
def train(cli):
    """Train and register: the result of the command, and the run."""

    def train(name="shapes", options="", code=0):
        result = cli(f"train {SHAPES} {REGISTER}={name} {options}")
        assert result.code == code, result.err
        return result, result.runs[0]

    return train


def test_version_has_tags_of_its_run_data_and_accuracy(trained):
    run = trained.run

    version = mlflow.MlflowClient().get_model_version("shapes", "1")
    assert version.run_id == run.info.run_id
    assert (version.tags["classes"], version.tags["input_size"]) == ("10", "64")
    assert math.isclose(float(version.tags["test_accuracy"]), run.data.metrics["test_accuracy"])
    digest = next(
        each.dataset.digest for each in run.inputs.dataset_inputs if each.tags[0].value == "test"
    )
    assert version.tags["test_data"].endswith(digest)


def test_version_predicts_with_the_tested_weights(trained):
    run = trained.run
    # of the only epoch, which are the best
    (path,) = Path(f"runs/1/{run.info.run_id}/checkpoints/resume").glob("*.ckpt")
    classifier = Classifier(networks.Linear).eval()
    classifier.load_state_dict(torch.load(path, weights_only=False)["state_dict"])

    pictures = [encode(file_of(each.permute(1, 2, 0).numpy())) for each in TESTED]
    model = mlflow.pyfunc.load_model("models:/shapes/1")
    predictions = model.predict(pd.DataFrame({"image": pictures}))

    best = classifier(Preprocess()(TESTED)).softmax(dim=1).max(dim=1)
    expected = [synthetic.CLASSES[n] for n in best.indices]
    assert [each["classes"][0] for each in predictions] == expected
    probabilities = [each["probabilities"][0] for each in predictions]
    assert probabilities == pytest.approx(best.values.tolist(), abs=1e-5)


def test_version_description_names_network_data_and_run(trained):
    run = trained.run

    version = mlflow.MlflowClient().get_model_version("shapes", "1")
    accuracy = version.tags["test_accuracy"]
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    text = version.description
    assert text.startswith("Linear, ")
    assert mentions(text, "10 classes", "64 x 64 pixels", f"Test accuracy {accuracy} on Synthetic")
    assert f"[{run.info.run_name}]({page})" in text


def test_model_of_a_run_is_registered_once(trained):
    run, client = trained.run, mlflow.MlflowClient()

    assert re.search(
        r"^model +shapes version 1 is champion: no champion to compare", trained.out, re.M
    )
    assert f"serve          {format_serve_command('models:/shapes/1')}\n" in trained.out
    (model,) = models(run)
    assert register_version(client, model.model_id, "shapes") == "1"
    assert register_version(client, model.model_id, "other") == "1"
    assert len(client.search_model_versions("name = 'shapes'")) == 1


def test_run_that_is_trained_for_longer_has_a_version_of_both(train, monkeypatch):
    _, run = train()
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    train(options="--max_epochs=2")

    versions = mlflow.MlflowClient().search_model_versions("name = 'shapes'")
    sources = [each.source for each in sorted(versions, key=lambda each: int(each.version))]
    outputs = mlflow.get_run(run.info.run_id).outputs.model_outputs
    by_step = sorted(outputs, key=lambda each: each.step)
    assert sources == [f"models:/{each.model_id}" for each in by_step]
    assert by_step[0].step < by_step[1].step


def test_run_that_is_trained_no_longer_has_one_version(train, monkeypatch):
    _, run = train()
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    train()

    (version,) = mlflow.MlflowClient().search_model_versions("name = 'shapes'")
    (model,) = models(run)
    assert version.source == f"models:/{model.model_id}"


def test_run_of_an_offline_job_is_registered_when_it_is_uploaded(
    empty_store, tmp_path, cli, monkeypatch, capsys
):
    (tmp_path / "there").mkdir()
    with open_run_with_spool(empty_store, tmp_path / "there") as spool:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"spool://{spool.root}")
        monkeypatch.setenv("MLFLOW_RUN_ID", spool.run_id)
        with pytest.warns(UserWarning, match="not yet .+ 'shapes' .+`pyclassify sync"):
            assert main([*f"train {SHAPES} {REGISTER}=shapes".split()]) == 0
        assert spool.there.search_model_versions("name = 'shapes'") == []

        monkeypatch.setenv("MLFLOW_TRACKING_URI", spool.there.tracking_uri)
        capsys.readouterr()
        assert main(["sync", str(spool.root)]) == 0

        (version,) = spool.there.search_model_versions("name = 'shapes'")
        assert version.run_id == spool.run_id
        assert "shapes version 1 is champion: no champion to compare" in capsys.readouterr().out
        files = spool.there.get_model_version_download_uri("shapes", "1")
        model = mlflow.pyfunc.load_model(files)
        (answer,) = model.predict(pd.DataFrame({"image": [PICTURE]}))
        assert len(answer["classes"]) == 5


def test_model_that_can_not_be_registered_stays_in_the_run(train, monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    # the form of this message
    message = r"to the run, and not yet registered as 'shapes' \(.*connection refused.*\); .+ sync "

    with pytest.warns(UserWarning, match=message):
        _, run = train()

    assert run.info.status == "FINISHED"
    assert [each.status for each in models(run)] == ["READY"]

    monkeypatch.delenv("MLFLOW_REGISTRY_URI")
    assert main(["sync", "runs/spool"]) == 0
    assert mlflow.MlflowClient().get_model_version("shapes", "1").run_id == run.info.run_id


def test_version_refused_by_the_registry_is_reported_with_the_command(train, monkeypatch):
    def refuse(self, name, **options):  # as a registry does that wants "catalog.schema.name"
        raise MlflowException(f"invalid name: {name}", INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(mlflow.MlflowClient, "create_registered_model", refuse)
    with pytest.warns(UserWarning, match="register a version") as caught:
        _, run = train("shapes", code=1)

    messages = [str(each.message) for each in caught]
    (message,) = (text for text in messages if "register a version" in text)
    command = f"`pyclassify register {run.info.run_id} shapes`"
    assert mentions(message, "the registry refused", command)
    assert run.info.status == "FAILED"
    assert message.startswith(run.data.tags["status_reason"])
    assert [each.status for each in models(run)] == ["READY"]


@pytest.mark.parametrize("name", ["", "no/name", "a:b", ".", "..", "..net"])
def test_invalid_name_is_refused_at_the_start(name):
    with pytest.raises(MisconfigurationException, match=f"model: {name!r} .*/ and :"):
        RegisterModel(name)


@pytest.mark.parametrize(("bound", "value"), [("alpha", 5), ("min_accuracy", -1)])
def test_bound_out_of_range_is_refused_at_the_start(bound, value):
    with pytest.raises(MisconfigurationException, match=f"invalid {bound}: {value} "):
        RegisterModel("net", **{bound: value})


def test_network_without_preprocessing_fails_a_run_that_was_to_be_registered(cli):
    foreign = "--model=tests.support.networks.Module --data=tests.support.networks.Data"

    with pytest.warns(UserWarning, match="could not log the model .+`preprocess`"):
        result = cli(f"train {foreign} --max_epochs=1 {QUIET} {REGISTER}=shapes")

    assert result.code == 1
    assert result.runs[0].info.status == "FAILED"
    assert models(result.runs[0]) == []


def test_nothing_is_registered_without_a_test_of_what_was_trained(cli):
    result = cli(f"fit {SHAPES} {REGISTER}=shapes")

    assert result.code == 0, result.err
    assert models(result.runs[0]) == []
