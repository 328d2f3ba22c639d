"""The classifier: what a step gives, and what is logged of it."""

import csv
import sysconfig
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pyclassify.data.transforms import Preprocess
from pyclassify.module import Classifier
from tests.support import networks, required


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier(model=networks.network, num_classes=4)


def test_network_is_made_for_the_number_of_classes():
    given = []

    def network(**options):
        given.append(options)
        return nn.Identity()

    Classifier(model=network, num_classes=7)

    assert given == [{"num_classes": 7}]


def test_classifier_step_returns_predicted_and_true_labels_and_the_loss(classifier):
    images, labels = torch.randn(5, 3, 64, 64), torch.tensor([0, 1, 2, 3, 0])

    predicted, true, loss = classifier._classifier_step((images, labels))

    logits = classifier.model(images)
    assert torch.equal(predicted, logits.argmax(dim=1))
    assert torch.equal(true, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("command", "flip_tta", "passes"),
    [
        ("fit", False, 2 + 2),  # two batches to train on and two to validate
        ("validate", False, 2),
        ("test", False, 2),
        ("predict", False, 2),
        ("test", True, 2 * 2),
    ],
)
def test_classifier_passes_each_batch_through_the_network_once(command, flip_tta, passes):
    classifier = Classifier(networks.network, 4, flip_tta=flip_tta)
    calls = []
    classifier.model.register_forward_hook(lambda *_: calls.append(1))
    loader = DataLoader(networks.byte_images(6), 3)
    loaders = (loader, loader) if command == "fit" else (loader,)

    getattr(networks.trainer(max_epochs=1), command)(classifier, *loaders)

    assert len(calls) == passes


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_classifier_keeps_no_tensor_of_a_batch(command):
    classifier = Classifier(networks.network, 4)
    count = 13  # of images in a batch; nothing else has this size
    trainer = networks.trainer(max_epochs=1)

    getattr(trainer, command)(classifier, DataLoader(networks.byte_images(count), count))

    stored = [
        (name, attribute)
        for name, module in classifier.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, torch.Tensor) and count in value.shape
    ]
    assert stored == []


def test_labels_are_smoothed_in_training_only():
    classifier = Classifier(networks.network, 4, label_smoothing=0.2)
    batch = torch.randn(5, 3, 64, 64), torch.tensor([0, 1, 2, 3, 0])

    _, labels, trained = classifier.train()._classifier_step(batch)
    evaluated = classifier.eval()._classifier_step(batch)[2]

    logits = classifier.model(batch[0])
    spread = 0.8 * F.one_hot(labels, 4) + 0.2 / 4
    torch.testing.assert_close(trained, -(spread * logits.log_softmax(1)).sum(1).mean())
    assert torch.equal(evaluated, F.cross_entropy(logits, labels))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_classifier_label_smoothing_out_of_range_raises(smoothing):
    with pytest.raises(
        MisconfigurationException, match=rf"^invalid label_smoothing: {smoothing} \("
    ):
        Classifier(networks.network, 4, label_smoothing=smoothing)


def test_flip_tta_averages_two_passes_and_has_its_own_metric():
    torch.manual_seed(0)
    classifier = Classifier(networks.network, 4, flip_tta=True)
    images, labels = torch.randn(60, 3, 64, 64), torch.randint(4, (60,))
    loader = DataLoader(TensorDataset(images, labels), 25)

    scores = networks.trainer().test(classifier, loader, verbose=False)[0]
    plain = networks.trainer().test(Classifier(networks.network, 4), loader, verbose=False)[0]

    with torch.inference_mode():
        one, other = classifier(images), classifier(images.flip(-1))
    both = ((one + other) / 2).argmax(1)
    assert scores["test_accuracy"] == pytest.approx(float((one.argmax(1) == labels).float().mean()))
    assert scores["test_flip_tta_accuracy"] == pytest.approx(float((both == labels).float().mean()))
    assert scores["test_flip_tta_accuracy"] != scores["test_accuracy"]
    assert plain.keys() == {"test_accuracy", "test_loss"}


def test_uint8_images_are_augmented_in_training_and_only_normalized_elsewhere():
    classifier = Classifier(model=lambda num_classes: nn.Flatten(), num_classes=3 * 64 * 64)
    images, _ = networks.byte_images(8)[:]

    augmented, other = (classifier.train()._prepare(images) for _ in range(2))

    assert augmented.shape == (8, 3, 64, 64)
    assert (augmented != other).flatten(1).any(dim=1).sum() > 4
    assert torch.equal(classifier.eval()._prepare(images), Preprocess()(images))


def test_prepared_floats_are_taken_as_they_are(classifier):
    images = torch.randn(2, 3, 64, 64)

    assert torch.equal(classifier._prepare(images), images)


def test_adam_at_1e_4_is_the_default(classifier):
    fit = networks.trainer(max_steps=1)
    fit.fit(classifier, DataLoader(networks.byte_images(4), 4))

    assert type(fit.optimizers[0]) is torch.optim.Adam
    assert fit.optimizers[0].param_groups[0]["lr"] == 1e-4


def test_training_is_logged_by_step_and_evaluation_by_epoch(classifier, tmp_path):
    logger = CSVLogger(tmp_path)
    fit = networks.trainer(logger=logger, max_epochs=2, log_every_n_steps=1)
    fit.fit(
        classifier, DataLoader(networks.byte_images(12), 4), DataLoader(networks.byte_images(12), 4)
    )
    fit.test(classifier, DataLoader(networks.byte_images(12), 4), verbose=False)

    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    steps = {name: [int(row["step"]) for row in rows if row[name]] for name in rows[0]}
    for metric in ("accuracy", "loss"):
        assert steps[f"train_{metric}"] == [0, 1, 2, 3, 4, 5]
        assert steps[f"val_{metric}"] == [2, 5]
        assert steps[f"test_{metric}"] == [6]


def test_step_accuracy_is_of_that_step_alone(classifier):
    classifier.log = lambda name, value, **_: logged.setdefault(name, value)
    for count in (5, 9):
        logged, batch = {}, (torch.randn(count, 3, 64, 64), torch.randint(4, (count,)))
        classifier.training_step(batch, 0)

        hits = classifier.model(batch[0]).argmax(dim=1) == batch[1]
        assert logged["train_accuracy"]._forward_cache == hits.float().mean()


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "64-true"])
def test_bytes_become_probabilities_in_any_precision(classifier, precision):
    loader = DataLoader(networks.byte_images(5), 3)

    probabilities = torch.cat(networks.trainer(precision=precision).predict(classifier, loader))

    assert probabilities.shape == (5, 4)
    torch.testing.assert_close(
        probabilities.double().sum(dim=1), torch.ones(5).double(), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize("channels_last", [True, False])
def test_convolutions_have_the_memory_format_of_channels_last(channels_last):
    classifier = Classifier(channels_last=channels_last).eval()  # drops nothing
    images = torch.rand(2, 3, 64, 64)
    kernels = classifier.model.features[3].weight

    assert kernels.is_contiguous(memory_format=torch.channels_last) == channels_last
    prepared = classifier._prepare(images)
    assert prepared.is_contiguous(memory_format=torch.channels_last) == channels_last
    torch.testing.assert_close(classifier(prepared), classifier(images))


def test_steps_are_those_of_a_bare_loop():
    images, labels = torch.rand(3, 4, 3, 64, 64), torch.randint(10, (3, 4))
    torch.manual_seed(0)
    classifier = Classifier(learning_rate=1e-3)
    plain = torchvision.models.alexnet(num_classes=10)
    plain.load_state_dict(classifier.model.state_dict())
    fast = torch.optim.Adam(classifier.parameters(), lr=1e-3, fused=True)
    slow = torch.optim.Adam(plain.parameters(), lr=1e-3)
    losses = {}
    for network, optimizer in ((classifier, fast), (plain, slow)):
        torch.manual_seed(1)  # of the dropout
        losses[optimizer] = []
        for batch in zip(images, labels, strict=True):
            prepared = classifier._prepare(batch[0]) if optimizer is fast else batch[0]
            loss = F.cross_entropy(network(prepared), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[optimizer].append(loss.item())

    assert losses[fast] == pytest.approx(losses[slow], rel=1e-3)
    assert len({*losses[fast]}) == 3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_are_clipped_in_any_precision(precision):
    trainer = networks.trainer(max_steps=1, precision=precision, gradient_clip_val=1.0)

    trainer.fit(Classifier(networks.network, 4), DataLoader(networks.byte_images(4), 4))

    assert trainer.global_step == 1


@pytest.mark.parametrize("asked_for", [True, False])
def test_checkpoint_of_the_other_memory_format_resumes_with_the_same_steps(asked_for, tmp_path):
    def network(num_classes):
        # Of several channels in and out, without which both layouts are the same.
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)
        )

    def train(steps, channels_last, path=None):
        torch.manual_seed(0)
        trainer = networks.trainer(max_steps=steps)
        classifier = Classifier(network, 4, learning_rate=0.01, channels_last=channels_last)
        images = torch.rand(4, 3, 32, 32)  # of floats, which are not augmented
        loader = DataLoader(TensorDataset(images, torch.arange(4)), 4)
        trainer.fit(classifier, loader, ckpt_path=path)
        return trainer, classifier.state_dict()

    trainer, _ = train(3, not asked_for)
    trainer.save_checkpoint(tmp_path / "other.ckpt")

    _, weights = train(5, asked_for, tmp_path / "other.ckpt")

    expected = train(5, asked_for)[1]
    for name, each in weights.items():
        torch.testing.assert_close(each, expected[name])


@pytest.fixture(params=["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def backend(request, monkeypatch):
    """What torch.compile hands a network's graph to: nothing, and the compiler of C++."""
    if request.param == "inductor":
        require_compiler()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=request.param))


def require_compiler():
    required.program("g++")  # by which torch.compile makes its programs on a CPU
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        required.lack("torch.compile needs the headers of this Python")


def test_network_is_compiled_for_training_and_saved_uncompiled(backend, tmp_path):
    classifier = Classifier(networks.network, 4, compile=True)
    loader = DataLoader(networks.byte_images(4), 4)
    trainer = networks.trainer(max_steps=2)

    trainer.fit(classifier, loader)

    assert classifier.model._compiled_call_impl is not None
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    plain = Classifier(networks.network, 4)
    plain.load_state_dict(torch.load(tmp_path / "saved.ckpt", weights_only=True)["state_dict"])
    images = torch.rand(4, 3, 32, 32)
    torch.testing.assert_close(plain.eval()(images), classifier.eval()(images))
