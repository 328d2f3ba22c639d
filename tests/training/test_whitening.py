"""A first layer that whitens: what its filters do to patches, and a training that has it."""

import os
import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from pyclassify.model import AlexNet, AlexNetBN
from pyclassify.module import Classifier
from pyclassify.training.optim import EMAWeights
from pyclassify.training.whitening import WhitenStem, compute_whitening_filters
from tests.support import tuned
from tests.support.processes import ROOT, run


def correlated(count):
    """Images whose neighbouring pixels and channels are much alike, as those of photographs."""
    torch.manual_seed(0)
    coarse = torch.rand(count, 1, 4, 4)
    smooth = nn.functional.interpolate(coarse, size=(16, 16), mode="bilinear")
    return smooth + 0.1 * torch.rand(count, 3, 16, 16)


@pytest.mark.parametrize(("kernel", "filters"), [(2, 24), (3, 54)])
def test_patches_vary_as_much_along_each_filter_and_along_no_two_together(kernel, filters):
    images, layer = correlated(64), nn.Conv2d(3, filters, kernel, bias=False)
    layer.weight.data = compute_whitening_filters(images, layer, eps=1e-9)

    values = layer(images).transpose(0, 1).flatten(1)

    covariance = torch.cov(values[::2])
    torch.testing.assert_close(covariance, torch.eye(filters // 2), atol=1e-3, rtol=0)
    torch.testing.assert_close(values[1::2], -values[::2])


def test_strongest_component_comes_first_and_eps_limits_the_weakest():
    images, layer = correlated(64), nn.Conv2d(3, 6, 2, bias=False)
    every = nn.Conv2d(3, 24, 2, bias=False)

    few = compute_whitening_filters(images, layer, eps=0.01)
    norms = compute_whitening_filters(images, every, eps=0.01)[::2].flatten(1).norm(dim=1)

    torch.testing.assert_close(few, compute_whitening_filters(images, every, eps=0.01)[:6])
    assert norms.diff().min() > 0
    assert norms[-1] < compute_whitening_filters(images, every, eps=1e-9)[-1].norm() * 0.9


def train(*callbacks, as_bytes=False, module=None, **options):
    """A training of AlexNetBN with a frozen stem on 16 images; the module, and the images."""
    torch.manual_seed(1)
    images = torch.randint(256, (16, 3, 12, 12), dtype=torch.uint8)
    if not as_bytes:
        images = images / 127.5 - 1
    data = torch.utils.data.TensorDataset(images, torch.arange(16) % 10)
    module = module or Classifier(AlexNetBN, freeze="stem", channels_last=True)
    if as_bytes and hasattr(module, "preprocess"):
        module.preprocess.resize = module.preprocess.crop = 12
    options = {"max_epochs": 1, "devices": 1, **options}
    trainer = tuned.trainer(callbacks=list(callbacks), **options)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=8))
    return module, images


@pytest.mark.parametrize("as_bytes", [False, True])
def test_training_whitens_by_its_first_batch_and_leaves_the_layer_so(as_bytes):
    module, images = train(WhitenStem(), as_bytes=as_bytes)
    first = images[:8] / 127.5 - 1 if as_bytes else images[:8]

    expected = compute_whitening_filters(first, module.model.stem, 0.0005)
    torch.testing.assert_close(module.model.stem.weight.detach(), expected)


def test_resumed_training_keeps_its_filters(tmp_path):
    class Stop(WhitenStem):
        def on_train_batch_end(self, trainer, *args):
            trainer.save_checkpoint(tmp_path / "stopped.ckpt")

    module, _ = train(Stop())
    filters = module.model.stem.weight.detach().clone()
    torch.manual_seed(2)
    others = torch.utils.data.TensorDataset(torch.rand(16, 3, 12, 12), torch.arange(16) % 10)
    resumed = Classifier(AlexNetBN, freeze="stem")
    trainer = tuned.trainer(max_epochs=3, devices=1, callbacks=[WhitenStem()])
    trainer.fit(
        resumed,
        torch.utils.data.DataLoader(others, batch_size=8),
        ckpt_path=tmp_path / "stopped.ckpt",
    )

    assert torch.equal(resumed.model.stem.weight, filters)


def test_ema_of_the_weights_has_the_filters():
    options = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "max_epochs": 2}
    module, images = train(WhitenStem(), EMAWeights(decay=0.5), **options)

    expected = compute_whitening_filters(images[:8], module.model.stem, 0.0005)
    torch.testing.assert_close(module.model.stem.weight.detach(), expected)


def test_network_that_starts_from_weights_keeps_their_filters(tmp_path):
    torch.save(AlexNetBN().state_dict(), tmp_path / "w.pth")
    given = torch.load(tmp_path / "w.pth")["stem.weight"]

    module = Classifier(AlexNetBN, freeze="stem", weights=f"{tmp_path}/w.pth")
    train(WhitenStem(), module=module)

    assert torch.equal(module.model.stem.weight, given)


def test_second_training_of_a_network_keeps_its_filters():
    module, _ = train(WhitenStem())
    filters = module.model.stem.weight.detach().clone()
    with torch.no_grad():
        module.model.stem.weight.mul_(2)

    train(WhitenStem(), module=module)

    assert torch.equal(module.model.stem.weight, 2 * filters)


class Keep(WhitenStem):
    """Keeps what each process has seen first, and its filters after the last step."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, *args):
        filters = pl_module.model.stem.weight.detach()
        torch.save((batch[0], filters), f"{self.folder}/{trainer.global_rank}.pt")


def test_two_processes_have_the_filters_of_the_first(tmp_path):
    run(__file__, tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    (images, first), (others, second) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))

    assert not torch.equal(images, others)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, compute_whitening_filters(images, AlexNetBN().stem, 0.0005))


@pytest.mark.parametrize("layer", ["nothing", "classifier", "features.1"])
def test_whiten_stem_layer_that_is_not_a_suitable_convolution_raises(layer):
    module = Classifier(AlexNetBN)
    if layer == "features.1":
        module.model.features[1] = nn.Conv2d(24, 24, 3, groups=24)
    trainer = tuned.trainer(max_epochs=1, callbacks=[WhitenStem(layer)])

    with pytest.raises(MisconfigurationException, match=f"'{layer}'.*AlexNetBN"):
        trainer.fit(module, torch.utils.data.DataLoader([(torch.rand(3, 12, 12), 0)]))


class Foreign(pl.LightningModule):
    """Somebody's network, which is the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)

    def training_step(self, batch, batch_idx):
        return self.first(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.0)


def test_other_modules_first_layer_is_whitened_too():
    module, images = train(WhitenStem("first"), module=Foreign())

    expected = compute_whitening_filters(images[:8], module.first, 0.0005)
    torch.testing.assert_close(module.first.weight.detach(), expected)


def test_whiten_stem_uint8_images_without_preprocess_raise():
    with pytest.raises(MisconfigurationException, match=r"uint8.*Foreign.*`prep"):
        train(WhitenStem("first"), module=Foreign(), as_bytes=True)


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_images_that_do_not_vary_are_refused(value):
    with pytest.raises(MisconfigurationException, match="one color"):
        compute_whitening_filters(torch.full((4, 3, 8, 8), value), nn.Conv2d(3, 6, 2), 0.0005)


def test_alexnets_own_first_layer_may_be_whitened():
    network = AlexNet()

    filters = compute_whitening_filters(
        correlated(64), nn.Conv2d(3, 64, 11, stride=4, padding=2), 0.01
    )

    assert filters.shape == network.features[0].weight.shape


@pytest.mark.parametrize("eps", [0, -1.0, float("nan")])
def test_whiten_stem_eps_out_of_range_raises(eps):
    with pytest.raises(MisconfigurationException, match=rf"^invalid eps: {eps} \(expected"):
        WhitenStem(eps=eps)


if __name__ == "__main__":
    torch.manual_seed(1)
    pairs = [(torch.rand(3, 12, 12), number % 10) for number in range(16)]
    callback, two = Keep(sys.argv[1]), {"devices": 2, "strategy": "ddp_fork"}
    made = tuned.trainer(max_epochs=1, callbacks=[callback], **two)
    module = Classifier(AlexNetBN, freeze="stem", channels_last=True)
    made.fit(module, torch.utils.data.DataLoader(pairs, batch_size=8))
