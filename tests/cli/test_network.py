"""The network that --model.model names: a class or a function, and its options."""

import mlflow
import pytest
import torch
import torchvision
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torchvision.models import ResNet18_Weights

from pyclassify.cli.network import NetworkSpec, merge_network_options
from pyclassify.cli.options import expand_options
from pyclassify.module import Classifier
from tests.support import networks
from tests.support.phrases import mentions
from tests.support.trainings import QUIET, SHAPES, refusal

OURS = "tests.support.networks"
SQUEEZENET = "torchvision.models.squeezenet1_1"


def read(line):
    """The network of a command line, as the parser is given it."""
    option = merge_network_options(expand_options(["fit", *line.split()]))[-1]
    return NetworkSpec(yaml.safe_load(option.removeprefix("--model.model=")))


def write(path, network):
    """Write a recipe of a network."""
    path.write_text(yaml.safe_dump({"model": {"init_args": {"model": network}}}))
    return path


# Command lines, and what of the network each of them sets.
OPTIONS = {
    f"--model.model {SQUEEZENET} --model.model.dropout 0.2": ("classifier.0.p", 0.2),
    f"--model.model.dropout=0.2 --model.model={SQUEEZENET}": ("classifier.0.p", 0.2),
    "--model.model.dropout 0.2": ("classifier.0.p", 0.2),  # of AlexNet, the default
    "--model.model torchvision.models.mobilenet_v3_small --model.model.dropout 0.4": (
        "classifier.2.p",
        0.4,
    ),
    "--model.model torchvision.models.googlenet --model.model.aux_logits false": (
        "aux_logits",
        False,
    ),
    "--model.model torchvision.models.SqueezeNet --model.model.version 1_1": (
        "features.0.kernel_size",
        (3, 3),
    ),
    "--model.model torchvision.models.resnet18 --model.model.norm_layer torch.nn.BatchNorm2d "
    "--model.model.norm_layer.eps 1e-3": ("bn1.eps", 1e-3),
    f"--model.model {OURS}.make_linear --model.model.side 3": ("0.output_size", 3),
    f"--model.model {OURS}.make_small --model.model.side 3": ("0.output_size", 3),
    f"--model.model {OURS}.create_model --model.model.model_name squeezenet "
    "--model.model.dropout 1e-1": ("classifier.0.p", 0.1),
    f"--model.model {OURS}.Deep --model.model.depth 2": ("layers.4.in_features", 48),
}


@pytest.mark.parametrize("line", OPTIONS)
def test_option_reaches_the_network_and_the_recipe_makes_it_again(line):
    name, value = OPTIONS[line]

    spec = read(line)

    for made in (spec(num_classes=5), NetworkSpec(spec.to_config())(num_classes=5)):
        module, _, attribute = name.rpartition(".")
        assert getattr(made.get_submodule(module), attribute) == value


@pytest.mark.parametrize(
    ("line", "config"),
    [
        (
            "--model.model.dropout 0.2",
            {"class_path": "pyclassify.model.AlexNet", "init_args": {"dropout": 0.2}},
        ),
        (
            f"--model.model {SQUEEZENET} --model.model.weights SqueezeNet1_1_Weights.DEFAULT",
            {"class_path": SQUEEZENET, "init_args": {"weights": "IMAGENET1K_V1"}},
        ),
        (
            f"--model.model {OURS}.create_model --model.model.model_name linear "
            "--model.model.sides [1,2]",
            {
                "class_path": f"{OURS}.create_model",
                "init_args": {"model_name": "linear", "sides": [1, 2]},
            },
        ),
    ],
)
def test_network_is_recorded_as_in_a_recipe(line, config):
    assert read(line).to_config() == config


def test_function_without_options_is_recorded_by_its_path():
    assert NetworkSpec(SQUEEZENET).to_config() == SQUEEZENET


def test_options_of_recipes_and_of_the_command_line_are_merged(tmp_path):
    a = write(tmp_path / "a.yaml", {"class_path": SQUEEZENET, "init_args": {"dropout": 0.1}})
    b = write(tmp_path / "b.yaml", {"init_args": {"dropout": 0.3}})

    merged = read(f"--config {a} --config {b} --model.model.progress false")
    replaced = read(f"--config {a} --model.model {OURS}.make_linear --model.model.side 2")

    assert merged.to_config() == {
        "class_path": SQUEEZENET,
        "init_args": {"dropout": 0.3, "progress": False},
    }
    assert replaced.to_config() == {
        "class_path": f"{OURS}.make_linear",
        "init_args": {"side": 2},
    }


def test_every_function_of_torchvision_takes_its_options():
    names = torchvision.models.list_models(torchvision.models)

    for name in names:
        path = f"torchvision.models.{name}"
        weights = torchvision.models.get_model_weights(name)
        line = f"--model.model {path} --model.model.progress false --model.model.weights DEFAULT"
        spec = read(line)
        assert spec.pretrained is weights.DEFAULT
        given = {"progress": False, "weights": weights.DEFAULT.name}
        assert spec.to_config() == {"class_path": path, "init_args": given}
        # ConvNeXt ignores what it does not know, and is large.
        device = torch.device("meta" if "convnext" in name else "cpu")
        with device, pytest.raises(MisconfigurationException) as refused:
            read(f"--model.model {path} --model.model.progess 1")(num_classes=3)
        assert mentions(str(refused.value), name, "model.model.progress")

    assert len(names) >= 80


def test_timm_takes_its_options():
    pytest.importorskip("timm")

    spec = read(
        "--model.model timm.create_model --model.model.model_name resnet18 "
        "--model.model.drop_rate 0.25"
    )

    assert spec(num_classes=5).drop_rate == 0.25


INVALID = {
    f"--model.model {SQUEEZENET} --model.model.droput 0.2": (
        # the form of this message
        "squeezenet1_1 has no option 'model.model.droput'. Did you mean 'model.model.dropout'? See "
        "`--model.model.help`"
    ),
    f"--model.model {SQUEEZENET} --model.model.dropout two": (
        "invalid model.model.dropout: 'two' (expected float)"
    ),
    f"--model.model {SQUEEZENET} --model.model.weights ResNet18_Weights.DEFAULT": (
        "invalid model.model.weights: 'ResNet18_Weights.DEFAULT' (expected IMAGENET1K_V1 or "
        "DEFAULT)"
    ),
    f"--model.model {SQUEEZENET} --model.model.pretrained true": (
        "squeezenet1_1 has no option 'model.model.pretrained'; give --model.model.weights=DEFAULT"
    ),
    "--model.model torchvision.models.mobilenet_v3_small --model.model.droput 0.4": (
        "mobilenet_v3_small has no option 'model.model.droput'. Did you mean 'model.model.dropout'"
    ),
    f"--model.model {OURS}.make_linear --model.model.sides 2": (
        "make_linear has no option 'model.model.sides'. Did you mean 'model.model.side'"
    ),
    f"--model.model {OURS}.network --model.model.side 2": (
        "network has no option 'model.model.side'; it accepts num_classes only"
    ),
    f"--model.model {OURS}.create_model --model.model.side 2": (
        "create_model requires model_name; give --model.model.model_name VALUE"
    ),
    f"--model.model {OURS}.create_model --model.model.model_name linear --model.model.sid 2": (
        "create_model has no option 'model.model.sid'. Did you mean 'model.model.side'"
    ),
    f"--model.model {OURS}.Deep --model.model.norm_layer torch.nn.BatchNorm1d": (
        "Deep requires depth; give --model.model.depth VALUE"
    ),
    "--model.model torchvision.models.vit_b_32 --model.model.image_size 63": (
        "can't make vit_b_32 with image_size=63, num_classes=3: Input shape indivisible"
    ),
    f"--model.model {OURS}.make_nothing --model.model.num_classes 3": (
        f"invalid model.model: {OURS}.make_nothing makes a dict (expected a class or function that "
        "makes a torch.nn.Module)"
    ),
    f"--model.model {OURS}.make_two_classes --model.model.side 2": (
        f"invalid model.model: {OURS}.make_two_classes does not accept num_classes (expected a "
    ),
    f"--model.model {OURS}.SIDE --model.model.side 2": (
        f"invalid model.model: '{OURS}.SIDE' is of type int (expected the import path of a class"
    ),
    "--model.model resnet18 --model.model.progress false": (
        "invalid model.model: 'resnet18' can't be imported (expected the import path of a class or "
        "function, package.module.Name). Did you mean 'torchvision.models.resnet18'?"
    ),
    "--model.model no_such_package.create_model --model.model.drop_rate 0": (
        "invalid model.model: 'no_such_package.create_model' can't be imported (expected"
    ),
}


@pytest.mark.parametrize("line", INVALID)
@pytest.mark.filterwarnings("ignore:.*num_classes is ignored")
def test_invalid_network_is_reported_in_one_line(line):
    with pytest.raises(MisconfigurationException) as refused:
        read(line)(num_classes=3)

    assert str(refused.value).startswith(INVALID[line])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "network",
    [
        ["torch.nn.Linear"],
        3,
        {"init_args": {"dropout": 0.1}},
        "lambda num_classes: None",
        {"class_path": SQUEEZENET, "init_args": {"droput": 0.1}},
    ],
)
def test_invalid_network_of_a_recipe_exits_2_with_one_line(network, cli, tmp_path):
    recipe = write(tmp_path / "recipe.yaml", network)

    done = cli(f"fit --config {recipe} {SHAPES.partition(' --model')[0]}")

    assert "model.model" in refusal(done, code=2)
    assert done.runs == []


def test_options_are_listed(cli):
    done = cli(f"fit --model.model {SQUEEZENET} --model.model.help")

    assert done.code == 0
    assert mentions(done.out, "--model.model.dropout (default: 0.5)", "--model.model.weights")


def test_run_of_a_function_with_options_is_trained_scored_and_predicts(cli, tmp_path):
    network = f"--model.model={OURS}.make_linear --model.model.side=4"
    data = SHAPES.partition(" --model")[0]

    trained = cli(f"train {data} {QUIET} {network}")

    assert trained.code == 0, trained.err
    run = trained.runs[0]
    assert run.data.params["model/model"] == f"{OURS}.make_linear"
    assert run.data.params["model/model/side"] == "4"
    config = mlflow.artifacts.download_artifacts(None, run.info.run_id, "config.yaml")
    scored = cli(f"test --config {config} --ckpt_path {run.info.run_id} {QUIET}")
    assert scored.code == 0, scored.err
    accuracies = [each.data.metrics["test_accuracy"] for each in scored.runs]
    assert accuracies[0] == accuracies[1]
    predicted = cli(f"predict {data} --ckpt_path {run.info.run_id} --output p.csv {QUIET}")
    assert predicted.code == 0, predicted.err


class Weights:
    """ResNet18's weights of ImageNet without their download."""

    def __init__(self, monkeypatch):
        self.state = torchvision.models.resnet18().state_dict()
        self.reads = 0
        monkeypatch.setattr(ResNet18_Weights, "get_state_dict", self.get)

    def get(self, *_, **__):
        self.reads += 1
        return self.state


def test_weights_of_torchvision_are_loaded_except_for_the_head(monkeypatch, tmp_path):
    weights = Weights(monkeypatch)
    factory = NetworkSpec(
        {"class_path": "torchvision.models.resnet18", "init_args": {"weights": "DEFAULT"}}
    )
    classifier = Classifier(factory, num_classes=4)

    networks.trainer(max_steps=0).fit(classifier, torch.utils.data.DataLoader([]))

    assert torch.equal(classifier.model.conv1.weight, weights.state["conv1.weight"])
    assert classifier.model.fc.weight.shape == (4, 512)


def test_weights_of_torchvision_and_of_a_file_are_refused():
    factory = NetworkSpec(
        {"class_path": "torchvision.models.resnet18", "init_args": {"weights": "DEFAULT"}}
    )

    with pytest.raises(MisconfigurationException, match=r"weights \(w\.pth\) and model\.model"):
        Classifier(factory, num_classes=4, weights="w.pth")


def test_weights_that_can_not_be_downloaded_are_reported_in_one_line(monkeypatch):
    def refuse(*_, **__):
        raise OSError("<urlopen error [Errno -2] Name or service not known>")

    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", refuse)
    factory = NetworkSpec(
        {"class_path": "torchvision.models.resnet18", "init_args": {"weights": "DEFAULT"}}
    )

    with pytest.raises(MisconfigurationException) as refused:
        Classifier(factory, num_classes=4).prepare_data()

    assert mentions(str(refused.value), "not known", "pyclassify prepare", "resnet18", ".pth")
