"""Every classification network of torchvision is trained a step and evaluated, or refused."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision

from tests.support import every_model
from tests.support.processes import run

# The smallest of each kind: with and without BatchNorm, auxiliary losses, attention. The slow test
# trains all.
KINDS = [
    "alexnet",
    "convnext_tiny",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mobilenet_v3_small",
    "resnet18",
    "squeezenet1_1",
    "vit_b_32",
]
LIMIT_BYTES = 9 * 2**30


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_network_of_each_kind_is_trained_and_evaluated_with_one_image_left(name):
    trainer = every_model.train(name)

    parts = trainer.lightning_module.modules()
    normalizes = any(isinstance(part, torch.nn.BatchNorm2d) for part in parts)
    # A batch of 4 images, with the one that is left or before it.
    assert trainer.global_step == (1 if normalizes else 2)
    assert math.isfinite(trainer.callback_metrics["train_loss"])
    assert math.isfinite(trainer.callback_metrics["val_loss"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch_size", [2, 3, 4, 5])
@pytest.mark.parametrize("count", [4, 5, 6, 7])
def test_any_number_of_images_may_be_left(count, batch_size):
    trainer = every_model.train("shufflenet_v2_x0_5", count, batch_size)

    is_joined = count % batch_size == 1
    assert trainer.global_step == math.ceil(count / batch_size) - is_joined


def try_model(name):
    done = run("-m", "tests.support.every_model", name, str(LIMIT_BYTES))
    return name, done.returncode, done.stdout.strip(), done.stderr


@pytest.mark.slow
def test_every_network_is_trained_or_refused_in_one_line():
    names = torchvision.models.list_models(torchvision.models)

    with ThreadPoolExecutor(2) as pool:
        results = [*pool.map(try_model, names)]

    refused = {name: out for name, code, out, _ in results if code == 1}
    for name, code, out, err in results:
        assert (code, out) == (0, "trained") or (code == 1 and "\n" not in out and out), (name, err)
    assert all("out of memory" in line for line in refused.values()), refused
    assert len(names) - len(refused) >= 70
