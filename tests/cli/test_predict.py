"""`pyclassify predict` on a folder of images: the table that it writes, and what it says."""

from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import pytest
import torch

from pyclassify.cli.main import main
from pyclassify.data import synthetic
from pyclassify.registry.source import download_program, find_model_files
from pyclassify.serving.export import read_state_dict
from tests.support import trainings
from tests.support.images import encode
from tests.support.phrases import mentions
from tests.support.trainings import LINEAR, QUIET, SHAPES

FOLDER = f"--data=ImageFolderDataModule --data_path=pictures --data.num_workers=0 {QUIET}"


@pytest.fixture(scope="module")
def trained(empty_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    with trainings.trained(empty_store, folder) as found:
        found.pictures = trainings.write_images(folder / "pictures")
        # The same training, whose weights are in a checkpoint.
        assert main(f"train {SHAPES} --log_model=false".split()) == 0
        found.weights = next(folder.glob("runs/*/*/checkpoints/best.ckpt"))
        found.run_without_model = mlflow.search_runs(output_format="list")[0].info.run_id
        yield found


@pytest.fixture
def predict(trained, tmp_path, capsys):
    """Predict: `predict(ckpt_path, options)`; the exit code, what was said, and the table."""

    def predict(ckpt_path, options="", name="table.parquet", data=FOLDER):
        path = tmp_path / name
        given = f"predict {data} --ckpt_path={ckpt_path} --output={path} {options}"
        code = main(given.split())
        out, err = capsys.readouterr()
        read = pd.read_csv if name.endswith("csv") else pd.read_parquet
        table = read(path) if path.exists() else None
        return SimpleNamespace(code=code, out=out, err=err, table=table, path=path)

    return predict


@pytest.fixture
def broken(trained):
    path = trained.pictures / "broken.jpg"
    path.write_bytes(b"\xff\xd8\xff no more")
    yield path
    path.unlink()


def given_as(kind, trained):
    return {
        "run": trained.run_id,
        "digits": trained.run_id[:8],
        "run without model": trained.run_without_model,
        "file": f"{trained.weights} {LINEAR}",
        "alias": "models:/shapes@champion",
        "version": "models:/shapes/1",
    }[kind]


@pytest.mark.parametrize("kind", ["run", "digits", "run without model", "file", "alias", "version"])
def test_each_image_gets_the_answer_that_the_test_gave_it(kind, trained, predict):
    done = predict(given_as(kind, trained))

    assert done.code == 0, done.err
    assert list(done.table.columns) == ["file", "label", "probability"]
    assert list(done.table["file"]) == sorted(trained.expected)
    for file, label, probability in done.table.itertuples(index=False):
        assert (label, pytest.approx(probability, abs=1e-5)) == trained.expected[file]


def test_served_model_gives_the_answers_of_the_test(trained):
    files = list(trained.expected)
    pictures = [encode((trained.pictures / file).read_bytes()) for file in files]

    model = mlflow.pyfunc.load_model("models:/shapes@champion")
    answers = model.predict(pd.DataFrame({"image": pictures}), {"top_k": 1})

    for file, answer in zip(files, answers, strict=True):
        label, probability = trained.expected[file]
        assert answer["classes"] == [label]
        assert answer["probabilities"] == pytest.approx([probability], abs=1e-5)


def test_champion_is_a_network_of_pytorch_for_the_same_answers(trained, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

    network = mlflow.pytorch.load_model("models:/shapes@champion")

    images, _ = synthetic.generate_images(20, seed=2)
    probabilities, labels = network(images).max(dim=1)
    for index, answer in enumerate(zip(labels, probabilities, strict=True)):
        label, probability = trained.expected[trainings.name_file(index)]
        assert (synthetic.CLASSES[answer[0]], float(answer[1])) == (
            label,
            pytest.approx(probability, abs=1e-5),
        )


def test_version_whose_program_has_another_name_predicts_too(trained, predict, tmp_path):
    client = mlflow.MlflowClient()
    source = client.get_model_version_download_uri("shapes", "1")
    folder = Path(mlflow.artifacts.download_artifacts(source, dst_path=str(tmp_path / "older")))
    (folder / "artifacts" / "model.pt2").rename(folder / "artifacts" / "program.pt2")
    description = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(description.replace("model.pt2", "program.pt2"))
    client.create_registered_model("older")
    client.create_model_version("older", str(folder))

    done = predict("models:/older/1")

    assert done.code == 0, done.err
    assert list(done.table["label"]) == [trained.expected[file][0] for file in done.table["file"]]


@pytest.mark.parametrize("kind", ["run", "alias"])
def test_store_is_that_of_the_loggers_tracking_uri(kind, trained, predict, other_store):
    done = predict(given_as(kind, trained), f"--trainer.logger.tracking_uri={other_store}")

    assert done.code == 0, done.err
    assert len(done.table) == 20


def test_table_may_be_csv(trained, predict):
    table = predict("models:/shapes@champion", name="table.csv").table

    assert table["probability"].between(0.1, 1).all()
    assert dict(zip(table["file"], table["label"], strict=True)) == {
        file: label for file, (label, _) in trained.expected.items()
    }


def test_end_tells_the_table_and_how_many_images_it_has(trained, predict):
    done = predict("models:/shapes@champion")

    assert done.out.splitlines()[-2:] == [f"predictions    {done.path}", "images         20"]


def test_scoring_makes_no_run(trained, predict):
    before = mlflow.search_runs(search_all_experiments=True)

    predict(trained.run_id)

    assert len(mlflow.search_runs(search_all_experiments=True)) == len(before)


def test_scoring_by_mlflow_run_ends_the_run_that_it_was_given(trained, predict, monkeypatch):
    client = mlflow.MlflowClient()
    made = client.create_run("1").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)

    assert predict("models:/shapes@champion").code == 0

    assert client.get_run(made).info.status == "FINISHED"
    assert client.get_run(made).data.params["ckpt_path"] == "models:/shapes@champion"


def test_images_in_memory_are_told_by_their_place(trained, predict):
    table = predict("models:/shapes@champion", data=SHAPES).table

    assert list(table.columns) == ["index", "label", "probability"]
    answers = dict(zip(map(trainings.name_file, table["index"]), table["label"], strict=True))
    assert answers == {file: label for file, (label, _) in trained.expected.items()}


@pytest.mark.parametrize("kind", ["run", "alias"])
def test_file_that_does_not_decode_has_a_row_without_a_label(kind, trained, broken, predict):
    with pytest.warns(UserWarning, match=r"^1 of 21 files .*pictures/broken\.jpg$"):
        done = predict(given_as(kind, trained))

    assert done.code == 0
    row = done.table.set_index("file").loc["broken.jpg"]
    assert list(row.isna()) == [True, True]
    assert done.table.dropna()["file"].tolist() == sorted(trained.expected)
    assert "\nunreadable     1, without a label\n" in done.out


def test_file_that_does_not_decode_ends_it_where_that_is_asked_for(broken, predict):
    done = predict("models:/shapes@champion", "--data.unreadable=stop")

    assert done.code == 1
    assert mentions(done.err, "error: pictures/broken.jpg", "decode")
    assert not done.path.exists()


def test_checkpoint_that_does_not_name_its_classes_is_asked_for_them(trained, predict, tmp_path):
    path = tmp_path / "older.ckpt"
    checkpoint = torch.load(trained.weights)
    del checkpoint["SyntheticDataModule"]
    torch.save(checkpoint, path)
    alike = f"{LINEAR} --data.mean=[0.5,0.5,0.5] --data.std=[0.5,0.5,0.5]"

    refused = predict(path, alike)
    with pytest.warns(UserWarning, match="classes.*numbers"):
        numbered = predict(path, f"{alike} --model.num_classes=10", name="numbered.parquet")

    assert mentions(refused.err, "--data.classes='[cat, d")
    names = [synthetic.CLASSES[int(label)] for label in numbered.table["label"]]
    assert names == [trained.expected[file][0] for file in sorted(trained.expected)]


@pytest.mark.parametrize("kind", ["run", "digits", "run without model", "alias", "program"])
def test_weights_of_a_run_or_a_model_are_fine_tuned(kind, trained, tmp_path):
    files = find_model_files(mlflow.MlflowClient(), "models:/shapes/1")
    program = download_program(mlflow.MlflowClient(), files, str(tmp_path))
    given = program if kind == "program" else given_as(kind, trained)

    assert main(f"fit {SHAPES} --weights={given} --freeze=2.weight".split()) == 0

    run = mlflow.search_runs(output_format="list")[0]
    path = mlflow.artifacts.download_artifacts(None, run.info.run_id, "weights/best.ckpt")
    before, after = read_state_dict(program), torch.load(path)["state_dict"]
    assert torch.equal(before["model.2.weight"], after["model.2.weight"])
    assert not torch.equal(before["model.2.bias"], after["model.2.bias"])
    assert len(run.data.params["model/weights_sha256"]) == 64


@pytest.mark.parametrize("given", ["0" * 32, "models:/no@one"])
def test_weights_of_an_unknown_run_or_model_are_refused(given, trained, capsys):
    assert main(f"fit {SHAPES} --weights={given} --trainer.max_steps=1".split()) == 1

    assert mentions(capsys.readouterr().err, "invalid weights", given)
