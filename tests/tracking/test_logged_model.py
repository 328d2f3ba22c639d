"""Every finished training has one model at the server, and its weights lie there once."""

from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.entities import LoggedModelOutput
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from pyclassify import load
from pyclassify.cli.main import main
from pyclassify.data.transforms import Preprocess
from pyclassify.module import Classifier
from pyclassify.serving import artifact
from pyclassify.tracking.logger import RunLogger
from tests.support import networks
from tests.support.phrases import mentions
from tests.support.spooled import limit_file_size, open_run_with_spool
from tests.support.stores import using
from tests.support.trainings import QUIET, SHAPES, train_beside

OPTIONS = f"{SHAPES} --log_model=true --trainer.logger.system_metrics=false"


def find_models(run, client=None):
    """The models that a run logged."""
    client = client or mlflow.MlflowClient()
    condition = f"source_run_id = '{run.info.run_id}'"
    return client.search_logged_models([run.info.experiment_id], condition)


def list_artifacts(run):
    return {each.path for each in mlflow.MlflowClient().list_artifacts(run.info.run_id)}


def checkpoints(run):
    folder = Path("runs", run.info.experiment_id, run.info.run_id, "checkpoints")
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.ckpt"))


@pytest.fixture(scope="module")
def trained(module_store):
    """A training with a model, for reading only."""
    return train_beside(module_store, OPTIONS)


@pytest.fixture
def done(trained, module_store, monkeypatch):
    monkeypatch.chdir(Path(module_store.tracking_uri.removeprefix("sqlite:///")).parent)
    with using(module_store):
        yield trained


def test_train_logs_one_ready_model_with_result_data_and_code(done):
    run = done.run

    (model,) = find_models(run)

    assert (model.name, model.status, model.model_type) == ("model", "READY", "image-classifier")
    assert float(model.tags["test_accuracy"]) == pytest.approx(run.data.metrics["test_accuracy"])
    assert (model.tags["classes"], model.tags["input_size"]) == ("10", "64")
    digest = next(
        each.dataset.digest for each in run.inputs.dataset_inputs if each.tags[0].value == "test"
    )
    assert model.tags["test_data"].endswith(digest)
    assert model.tags.get("git_commit") == run.data.tags.get("mlflow.source.git.commit")
    assert model.params["model/learning_rate"] == run.data.params["model/learning_rate"]
    (output,) = run.outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 5)


def test_test_metrics_are_linked_to_the_model_with_the_data_set(done):
    (model,) = find_models(done.run)

    metrics = {each.key: each for each in model.metrics}

    assert metrics.keys() == {n for n in done.run.data.metrics if n.startswith("test_")}
    assert metrics["test_accuracy"].value == done.run.data.metrics["test_accuracy"]
    assert model.tags["test_data"] == " ".join(
        (metrics["test_accuracy"].dataset_name, metrics["test_accuracy"].dataset_digest)
    )


def test_models_can_be_sorted_by_accuracy(done):
    found = mlflow.MlflowClient().search_logged_models(
        [done.run.info.experiment_id],
        filter_string="metrics.test_accuracy >= 0",
        order_by=[{"field_name": "metrics.test_accuracy", "ascending": False}],
    )

    assert [each.model_id for each in found] == [find_models(done.run)[0].model_id]


def test_run_has_its_weights_once(done):
    assert "weights" not in list_artifacts(done.run)
    assert checkpoints(done.run) == ["resume/step=00000005.ckpt"]


def test_description_and_summary_name_the_command_that_registers(done):
    run = done.run
    command = f"pyclassify register {run.info.run_id}"

    assert f"\n{command} NAME\n" in run.data.tags["mlflow.note.content"]
    assert f"\nmodel          models:/{find_models(run)[0].model_id}\n" in done.out
    assert f"\nregister       pyclassify register {run.info.run_id[:8]} NAME\n" in done.out
    assert "\ncheckpoint " not in done.out


def test_fit_logs_a_model_of_the_best_weights(cli):
    run = cli(f"fit {OPTIONS} --max_epochs=2 --resume.keep_after=2").runs[0]

    (model,) = find_models(run)
    assert (model.status, "test_accuracy" in model.tags) == ("READY", False)
    (best,) = mlflow.search_logged_models(
        [run.info.experiment_id], output_format="list", max_results=1
    )
    assert best.metrics in (None, [])
    assert len(checkpoints(run)) == 2


def test_best_checkpoint_is_restored_when_a_finished_run_is_trained_further(cli, monkeypatch):
    run = cli(f"train {OPTIONS}").runs[0]
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    # no epoch is better, so that the best weights are still those of the first
    done = cli(f"train {OPTIONS} --max_epochs=2 --model.learning_rate=0")

    assert done.code == 0, done.err
    models = sorted(find_models(run), key=lambda each: each.creation_timestamp)
    assert [each.status for each in models] == ["READY", "READY"]
    outputs = mlflow.get_run(run.info.run_id).outputs.model_outputs
    assert sorted(each.step for each in outputs) == [5, 10]


def test_best_checkpoint_is_restored_from_the_trained_model_beside_another(
    cli, monkeypatch, recwarn
):
    run = cli(f"train {OPTIONS}").runs[0]
    client = mlflow.MlflowClient()
    other = client.create_logged_model(run.info.experiment_id, "probe", run.info.run_id)
    client.log_outputs(run.info.run_id, [LoggedModelOutput(other.model_id, 99)])
    client.finalize_logged_model(other.model_id, "READY")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    done = cli(f"train {OPTIONS} --max_epochs=2 --model.learning_rate=0")

    assert done.code == 0, done.err
    assert [m.status for m in find_models(run) if m.name == "model"] == ["READY", "READY"]
    assert not [each for each in recwarn if "could not restore" in str(each.message)]


def test_training_that_is_started_again_logs_no_second_model(cli, monkeypatch):
    run = cli(f"train {OPTIONS}").runs[0]
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    assert cli(f"train {OPTIONS}").code == 0

    assert len(find_models(run)) == 1


def test_network_that_can_not_be_exported_costs_a_warning_and_leaves_a_failed_model(cli):
    options = OPTIONS.replace("networks.Linear", "networks.Unexportable")
    with pytest.warns(UserWarning, match="could not log the model .+ continues without"):
        done = cli(f"train {options}")

    assert done.code == 0, done.err
    run = done.runs[0]
    assert (run.info.status, [m.status for m in find_models(run)]) == ("FINISHED", ["FAILED"])
    assert "weights" in list_artifacts(run)
    assert "\nregister " not in done.out


FREE_BYTES = 5_000  # less than the weights of networks.Linear


def fill_disk(monkeypatch, owner, name):
    """Have a function write to a full disk."""
    original = getattr(owner, name)

    def write(*args, **kwargs):
        with limit_file_size(FREE_BYTES):
            return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, write)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(artifact, "save_model"), (mlflow.MlflowClient, "log_model_artifacts")],
    ids=["export", "copy"],
)
def test_disk_error_of_the_model_costs_a_warning_and_the_weights_are_logged(
    owner, name, cli, monkeypatch
):
    fill_disk(monkeypatch, owner, name)
    with pytest.warns(UserWarning, match=r"could not log the model .+ continues without"):
        done = cli(f"train {OPTIONS}")

    assert done.code == 0, done.err
    run = done.runs[0]
    assert (run.info.status, [m.status for m in find_models(run)]) == ("FINISHED", ["FAILED"])
    path = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/weights/best.ckpt")
    best = Path("runs", run.info.experiment_id, run.info.run_id, "checkpoints/best.ckpt")
    expected = torch.load(best)["state_dict"]
    torch.testing.assert_close(torch.load(path)["state_dict"], expected, rtol=0, atol=0)


def test_disk_error_of_model_and_weights_fails_the_run_and_names_the_checkpoint(cli, monkeypatch):
    fill_disk(monkeypatch, artifact, "save_model")
    fill_disk(monkeypatch, RunLogger, "_log_weights")
    with pytest.warns(UserWarning, match="could not log"):
        done = cli(f"train {OPTIONS}")

    run = done.runs[0]
    assert (done.code, run.info.status) == (1, "FAILED")
    best = Path("runs", run.info.experiment_id, run.info.run_id, "checkpoints/best.ckpt")
    assert mentions(run.data.tags["status_reason"], "the best weights, which are in", best.name)
    assert "could not log the model" not in run.data.tags["status_reason"]
    assert "optimizer_states" in torch.load(best, weights_only=False)


def test_network_without_preprocessing_has_weights_and_no_model(cli):
    foreign = "--model=tests.support.networks.Module --data=tests.support.networks.Data"

    done = cli(f"train {foreign} --max_epochs=1 {QUIET} --log_model=true")

    assert done.code == 0, done.err
    assert find_models(done.runs[0]) == []
    assert "weights" in list_artifacts(done.runs[0])


def test_log_model_false_logs_weights_and_no_model(cli):
    done = cli(f"train {OPTIONS} --log_model=false --resume.keep_after=0")

    run = done.runs[0]
    assert (done.code, find_models(run)) == (0, [])
    assert "weights" in list_artifacts(run)
    assert checkpoints(run) == ["best.ckpt"]
    best = Path("runs", run.info.experiment_id, run.info.run_id, "checkpoints/best.ckpt")
    assert "optimizer_states" not in torch.load(best)
    assert f"checkpoint     {best.absolute()}" in done.out


def test_all_checkpoints_of_a_finished_run_lose_the_state_of_the_optimizer(cli):
    saved = "--checkpoint.save_top_k=-1 --checkpoint.save_last=true --checkpoint.filename={epoch}"
    done = cli(f"train {OPTIONS} --log_model=false --resume.keep_after=1 --max_epochs=2 {saved}")

    assert done.code == 0, done.err
    run = done.runs[0]
    assert checkpoints(run) == [
        *("epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt", "resume/step=00000010.ckpt")
    ]
    folder = Path("runs", run.info.experiment_id, run.info.run_id, "checkpoints")
    for path in folder.glob("*.ckpt"):
        assert "state_dict" in torch.load(path)
        assert "optimizer_states" not in torch.load(path)
    assert "optimizer_states" in torch.load(next(folder.glob("resume/*.ckpt")), weights_only=False)


def test_failed_run_keeps_all_that_it_needs_to_resume(cli):
    crash = "--trainer.callbacks+=tests.support.stopping.StopTest"

    done = cli(f"train {OPTIONS} {crash}")

    assert done.code != 0
    assert find_models(done.runs[0]) == []
    assert checkpoints(done.runs[0]) == ["best.ckpt", "resume/step=00000005.ckpt"]


def test_model_of_an_offline_run_is_made_when_it_is_uploaded(
    empty_store, tmp_path, cli, monkeypatch
):
    (tmp_path / "there").mkdir()
    with open_run_with_spool(empty_store, tmp_path / "there") as spool:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"spool://{spool.root}")
        monkeypatch.setenv("MLFLOW_RUN_ID", spool.run_id)
        assert main(f"train {OPTIONS}".split()) == 0
        # The server has no model yet, and the upload may lose its files.
        run = spool.there.get_run(spool.run_id)
        assert checkpoints(run) == ["best.ckpt", "resume/step=00000005.ckpt"]
        monkeypatch.setenv("MLFLOW_TRACKING_URI", spool.there.tracking_uri)
        for _ in range(2):
            assert main(["sync", str(spool.root)]) == 0

        (model,) = find_models(spool.there.get_run(spool.run_id), spool.there)
        assert model.status == "READY"
        assert mlflow.pyfunc.load_model(model.artifact_location).predict is not None


def forget_models(monkeypatch):
    """Have the store answer as one of MLflow 2."""

    def fail(*args, **kwargs):
        raise MlflowException("Not Found", ENDPOINT_NOT_FOUND)

    for name in ("search_logged_models", "create_logged_model", "get_logged_model"):
        monkeypatch.setattr(SqlAlchemyStore, name, fail)


def test_server_without_models_has_the_weights_and_all_commands_find_them(cli, monkeypatch):
    forget_models(monkeypatch)
    with pytest.warns(UserWarning, match="upgrade the server to MLflow 3") as warned:
        done = cli(f"train {OPTIONS}")

    assert done.code == 0, done.err
    assert not [each for each in warned if "could not" in str(each.message)]
    (run,) = done.runs
    best = Path("runs", run.info.experiment_id, run.info.run_id, "checkpoints/best.ckpt")
    assert f"checkpoint     {best.absolute()}" in done.out
    assert "\nregister " not in done.out
    expected = torch.load(best)["state_dict"]
    best.unlink()
    network = load(run.info.run_id)
    classifier = Classifier(networks.Linear).eval()
    classifier.load_state_dict(expected)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    probabilities = classifier(Preprocess()(images)).softmax(dim=1)
    torch.testing.assert_close(network(images), probabilities)
    tested = cli(f"test {OPTIONS} --ckpt_path={run.info.run_id}")
    assert tested.code == 0, tested.err
    refused = cli(f"register {run.info.run_id} shapes")
    assert mentions(refused.err, "does not know logged models; upgrade it to MLflow 3")


def test_model_has_the_tested_weights(done):
    (model,) = find_models(done.run)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    resumed = torch.load(
        Path(
            "runs",
            done.run.info.experiment_id,
            done.run.info.run_id,
            "checkpoints/resume/step=00000005.ckpt",
        ),
        weights_only=False,
    )
    classifier = Classifier(networks.Linear).eval()
    classifier.load_state_dict(resumed["state_dict"])

    program = mlflow.pytorch.load_model(f"models:/{model.model_id}")

    expected = classifier(Preprocess()(images)).softmax(dim=1)
    torch.testing.assert_close(program(images), expected)


@pytest.mark.parametrize("keep_after", ["-1", "two"])
def test_invalid_keep_after_is_a_usage_error(cli, keep_after):
    done = cli(f"train {OPTIONS} --resume.keep_after={keep_after}")

    assert (done.code, done.runs) == (2, [])
    assert mentions(done.err, "keep_after")
