"""What can be trained can be registered and served, whatever the network and the module."""

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from pyclassify.data import synthetic
from pyclassify.data.transforms import Preprocess
from pyclassify.module import Classifier
from pyclassify.serving.artifact import save_model
from pyclassify.serving.export import read_state_dict
from tests.support import networks
from tests.support.images import encode, file_of, grow
from tests.support.trainings import QUIET, SHAPES

REGISTER = "--register=any"
FEW = "--trainer.logger.system_metrics=false --resume.max_checkpoints=0"


def ask(uri, pictures, top_k):
    """The probabilities that a model answers with: names, each with its number, for each image."""
    table = pd.DataFrame({"image": pictures})
    answers = mlflow.pyfunc.load_model(uri).predict(table, {"top_k": top_k})
    return [dict(zip(each["classes"], each["probabilities"], strict=True)) for each in answers]


@torch.inference_mode()
def expect(network, preprocess, images, names):
    """What a network says itself of images, uint8 [3, height, width] each."""
    rows = [network(preprocess(each[None])).softmax(dim=1)[0] for each in images]
    return [pytest.approx(dict(zip(names, each.tolist(), strict=True)), abs=1e-5) for each in rows]


def read(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def best(run, network):
    (output,) = run.outputs.model_outputs
    model = mlflow.MlflowClient().get_logged_model(output.model_id)
    path = mlflow.artifacts.download_artifacts(f"{model.artifact_location}/artifacts/model.pt2")
    network.load_state_dict(read_state_dict(path))
    return network.eval()


@pytest.mark.slow
def test_resnet18_of_100_classes_is_trained_registered_and_answers_by_their_names(cli, tmp_path):
    names = [f"class {number:03}" for number in range(100)]
    grow(tmp_path / "data", *(f"train/{name}" for name in names), count=2)
    grow(tmp_path / "data", *(f"test/{name}" for name in names[:5]), count=1)
    data = "--data=ImageFolderDataModule --data_path=data --data.num_workers=0 --batch_size=32"
    sizes = "--data.resize=36 --data.crop=32 --trainer.limit_train_batches=1 --max_epochs=1"
    network = "--model.model=torchvision.models.resnet18"

    said = cli(f"train {data} {sizes} {network} {QUIET} {FEW} {REGISTER}")

    assert said.code == 0, said.err
    files = sorted((tmp_path / "data/test").rglob("*.png"))
    answers = ask("models:/any/1", [encode(file.read_bytes()) for file in files], top_k=100)
    network = best(said.runs[0], Classifier(resnet18, num_classes=100))
    preprocess = Preprocess(36, 32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert answers == expect(network, preprocess, map(read, files), names)


@pytest.mark.parametrize("module", ["Foreign", "Prepared"])
def test_module_of_someone_else_is_served_with_its_own_preprocessing_or_the_datas(module, cli):
    data = f"{SHAPES.partition(' --model')[0]} --data.resize=20 --data.crop=16"
    if module == "Prepared":
        data = "--data=tests.support.networks.Bytes --max_epochs=1"

    said = cli(f"train --model=tests.support.networks.{module} {data} {QUIET} {FEW} {REGISTER}")

    assert said.code == 0, said.err
    images, _ = synthetic.generate_images(3, seed=9)
    pictures = [encode(file_of(each.permute(1, 2, 0).numpy())) for each in images]
    network = best(said.runs[0], getattr(networks, module)())
    names = synthetic.CLASSES if module == "Foreign" else ["0", "1", "2", "3"]
    preprocess = Preprocess(20, 16) if module == "Foreign" else network.preprocess
    answers = ask("models:/any/1", pictures, top_k=len(names))
    assert answers == expect(network, preprocess, images, names)


@pytest.mark.parametrize(
    "network",
    [networks.Transformer, networks.TorchvisionTransformer],
)
def test_network_of_one_size_takes_images_of_any(network, tmp_path):
    torch.manual_seed(0)
    classifier, preprocess = Classifier(network, num_classes=3).eval(), Preprocess(16, 16)
    names = ["a", "b", "c"]
    images = [
        torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((40, 30), (7, 9), (16, 16))
    ]

    save_model(tmp_path / "model", classifier, preprocess, names)

    pictures = [encode(file_of(each.permute(1, 2, 0).numpy())) for each in images]
    answers = ask(str(tmp_path / "model"), pictures, top_k=3)
    assert answers == expect(classifier, preprocess, images, names)
    assert answers[0] != answers[1] != answers[2]
