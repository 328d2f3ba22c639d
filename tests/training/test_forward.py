"""A pass of any network: logits, auxiliary losses, last batches, and errors in one line."""

from collections import OrderedDict, namedtuple
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from pyclassify.model import AlexNet
from pyclassify.module import Classifier
from pyclassify.training.forward import check_network, compute_outputs
from tests.support import networks
from tests.support.phrases import mentions

CLASSES = 4
Pair = namedtuple("Pair", ["logits", "aux_logits"])


class Returning(nn.Module):
    """Returns its logits in some container."""

    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = networks.network(CLASSES), wrap

    def forward(self, images):
        return self.wrap(self.inner(images))


# How networks return logits, and how many auxiliary ones each has.
OUTPUTS = {
    "alone": (lambda logits: logits, 0),
    "namedtuple": (lambda logits: Pair(logits, logits * 2), 1),
    "tuple": (lambda logits: (logits, logits * 2, logits * 3), 2),
    "tuple with features": (lambda logits: (logits, torch.zeros(len(logits), 7)), 0),
    "list": (lambda logits: [logits, None], 0),
    "mapping": (lambda logits: OrderedDict(out=logits, aux=logits * 2), 1),
    "object": (lambda logits: SimpleNamespace(logits=logits, hidden_states=None), 0),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_logits_are_found_and_auxiliary_losses_are_added_in_training_alone(kind):
    wrap, count = OUTPUTS[kind]
    classifier = Classifier(lambda num_classes: Returning(wrap), CLASSES)
    images, labels = torch.randn(5, 3, 8, 8), torch.arange(5) % CLASSES
    logits = classifier.model.inner(images)

    trained = classifier.train()._classifier_step((images, labels))[2]
    evaluated = classifier.eval()._classifier_step((images, labels))[2]

    auxiliary = sum(0.4 * F.cross_entropy(logits * (2 + i), labels) for i in range(count))
    torch.testing.assert_close(evaluated, F.cross_entropy(logits, labels))
    torch.testing.assert_close(trained, evaluated + auxiliary)
    assert torch.equal(classifier(images), logits)


def test_auxiliary_losses_of_googlenet_weigh_as_in_its_paper():
    torch.manual_seed(0)
    network = torchvision.models.googlenet(num_classes=CLASSES, init_weights=False)
    images = torch.randn(2, 3, 32, 32)

    outputs = compute_outputs(network.train(), images, CLASSES)

    assert (len(outputs.auxiliary), outputs.weight) == (2, 0.3)
    assert compute_outputs(network.eval(), images, CLASSES).auxiliary == []


@pytest.mark.parametrize(
    ("wrap", "facts"),
    [
        (lambda logits: logits[:, :3], ["a tensor [2, 3]", "[2, 4]"]),
        (lambda logits: logits.sum(), ["a tensor []", "[2, 4]"]),
        (lambda logits: logits[:, :, None, None], ["[2, 4, 1, 1]"]),
        (lambda logits: {"boxes": logits, "scores": logits}, ["a mapping of boxes, scores"]),
        (lambda logits: [{"boxes": logits}], ["a list of a mapping of boxes"]),
        (lambda logits: None, ["type NoneType"]),
    ],
)
def test_output_that_is_not_logits_is_refused_in_one_line(wrap, facts):
    with pytest.raises(MisconfigurationException) as refused:
        check_network(Returning(wrap), CLASSES, side=8)

    assert mentions(str(refused.value), "output of Returning", "4 classes", "--model.model", *facts)
    assert "\n" not in str(refused.value)


def one_channel(num_classes):
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(1800, num_classes))


def flat(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, num_classes))


def vit(num_classes):
    return torchvision.models.VisionTransformer(224, 32, 1, 1, 8, 8, num_classes=num_classes)


@pytest.mark.parametrize(
    ("make", "side", "facts"),
    [
        # the form of this message
        (
            vit,
            64,
            [
                "VisionTransformer failed for 2 images of 64x64 pixels: Wrong image height! "
                "Expected 224 but got 64!; change --data.crop and --data.resize, or the network "
                "or its options (--model.model.image_size 64); images of 224x224 pixels work: "
                "--data.resize 224 --data.crop 224"
            ],
        ),
        (AlexNet, 32, ["AlexNet", "32x32", "63x63"]),
        (flat, 64, ["Sequential", "64x64", "2x12288 and 3072x4"]),
        (one_channel, 32, ["Sequential", "1 channel(s)", "in_chans"]),
        (
            torchvision.models.squeezenet1_1,
            16,
            ["SqueezeNet", "16x16", "images of 32x32 pixels work"],
        ),
    ],
)
def test_images_that_a_network_does_not_take_are_refused_in_one_line(make, side, facts):
    with pytest.raises(MisconfigurationException) as refused:
        check_network(make(num_classes=CLASSES), CLASSES, side)

    assert mentions(str(refused.value), *facts)
    assert "\n" not in str(refused.value)


def test_auxiliary_classifiers_are_checked_too():
    network = torchvision.models.inception_v3(num_classes=CLASSES, init_weights=False)

    with pytest.raises(MisconfigurationException, match=r"Inception3 .* 96x96 pixels"):
        check_network(network, CLASSES, side=96)
    network.aux_logits = False
    check_network(network, CLASSES, side=96)


def test_check_network_changes_neither_network_nor_random_states():
    torch.manual_seed(0)
    network = torchvision.models.googlenet(num_classes=CLASSES, init_weights=False)
    network.inception5b.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random_state = torch.get_rng_state()

    check_network(network, CLASSES, side=32)

    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in network.modules()] == modes
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in network.parameters())


def test_error_in_a_network_has_its_line_and_other_errors_keep_their_type():
    class Broken(nn.Module):
        def forward(self, images):
            if len(images) == 3:
                raise ArithmeticError("three")
            return images.view(-1, 7)

    with pytest.raises(MisconfigurationException, match=r"test_forward\.py, line \d+"):
        compute_outputs(Broken(), torch.zeros(2, 3, 8, 8), CLASSES)
    with pytest.raises(ArithmeticError):
        compute_outputs(Broken(), torch.zeros(3, 3, 8, 8), CLASSES)


def test_check_network_ignores_unknown_errors():
    def fail(logits):
        raise ArithmeticError("in one of several processes")

    network = Returning(fail)

    check_network(network, CLASSES, side=8)

    with pytest.raises(ArithmeticError):
        compute_outputs(network, torch.zeros(2, 3, 8, 8), CLASSES)


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 7) is killed by signal: Killed. ",  # raised by a signal's handler
        "CUDA error: an illegal memory access was encountered",
        "Connection closed by peer",
    ],
)
def test_error_that_is_not_of_the_network_stays_as_it_is(message):
    def fail(logits):
        raise RuntimeError(message)

    with pytest.raises(RuntimeError) as raised:
        compute_outputs(Returning(fail), torch.zeros(2, 3, 8, 8), CLASSES)

    assert str(raised.value) == message


def test_batch_that_can_not_be_normalized_is_refused_in_one_line():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3), nn.Flatten())

    with pytest.raises(MisconfigurationException) as refused:
        compute_outputs(network, torch.zeros(1, 3, 8, 8), 3)

    assert mentions(str(refused.value), "1 image", "BatchNorm", "--data.batch_size 2")


@pytest.mark.parametrize(("label", "named"), [(4, 4), (-1, -1)])
def test_label_out_of_range_is_refused_in_one_line(label, named):
    classifier = Classifier(networks.network, CLASSES)
    images = torch.utils.data.TensorDataset(torch.zeros(2, 3, 8, 8), torch.tensor([0, label]))

    with pytest.raises(MisconfigurationException) as refused:
        networks.trainer(max_steps=1).fit(classifier, torch.utils.data.DataLoader(images, 2))

    assert mentions(str(refused.value), f"invalid label: {named} (expected 0 to 3", "4 classes")
