"""The classifier: what a step gives, and what is logged of it."""

import csv

import pytest
import small
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

from pyclassify.module import Classifier
from pyclassify.transforms import Preprocess


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier(model=small.network, num_classes=4)


def test_network_is_made_for_the_number_of_classes():
    given = []

    def network(**options):
        given.append(options)
        return nn.Identity()

    Classifier(model=network, num_classes=7)

    assert given == [{"num_classes": 7}]


def test_step_gives_logits_and_labels_and_the_loss(classifier):
    images, labels = torch.randn(5, 3, 64, 64), torch.tensor([0, 1, 2, 3, 0])

    logits, true, loss = classifier._classifier_step((images, labels))

    assert torch.equal(logits, classifier.model(images))
    assert torch.equal(true, labels)
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_bytes_are_augmented_anew_in_training_and_prepared_alike_elsewhere():
    classifier = Classifier(model=lambda num_classes: nn.Flatten(), num_classes=3 * 64 * 64)
    images, _ = small.byte_images(8)[:]

    augmented, again = (classifier.train()._prepare(images) for _ in range(2))

    assert augmented.shape == (8, 3, 64, 64)
    assert (augmented != again).flatten(1).any(dim=1).sum() > 4
    assert torch.equal(classifier.eval()._prepare(images), Preprocess()(images))


def test_prepared_floats_are_taken_as_they_are(classifier):
    images = torch.randn(2, 3, 64, 64)

    assert classifier._prepare(images) is images


def test_adam_at_1e_4_is_the_default(classifier):
    fit = small.trainer(max_steps=1)
    fit.fit(classifier, DataLoader(small.byte_images(4), 4))

    assert type(fit.optimizers[0]) is torch.optim.Adam
    assert fit.optimizers[0].param_groups[0]["lr"] == 1e-4


def test_training_is_logged_by_step_and_evaluation_by_epoch(classifier, tmp_path):
    logger = CSVLogger(tmp_path)
    fit = small.trainer(logger=logger, max_epochs=2, log_every_n_steps=1)
    fit.fit(classifier, DataLoader(small.byte_images(12), 4), DataLoader(small.byte_images(12), 4))
    fit.test(classifier, DataLoader(small.byte_images(12), 4), verbose=False)

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
    loader = DataLoader(small.byte_images(5), 3)

    probabilities = torch.cat(small.trainer(precision=precision).predict(classifier, loader))

    assert probabilities.shape == (5, 4)
    torch.testing.assert_close(
        probabilities.double().sum(dim=1), torch.ones(5).double(), atol=1e-2, rtol=0
    )
