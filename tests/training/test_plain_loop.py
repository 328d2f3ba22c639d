"""Training as a whole takes the steps of a loop that one would write by hand."""

import copy

import torch
import torch.nn.functional as F

from pyclassify.datamodule import SyntheticDataModule
from pyclassify.module import Classifier
from tests.support import networks, tuned


def test_weights_are_those_of_plain_adam_on_the_same_batches():
    torch.manual_seed(0)
    data = SyntheticDataModule(64, 16, 16, batch_size=16, resize=36, crop=32)
    classifier, recorder = Classifier(networks.network, 10, learning_rate=1e-3), networks.Recorder()
    network = copy.deepcopy(classifier.model)

    tuned.trainer(max_epochs=3, devices=1, callbacks=[recorder]).fit(classifier, data)

    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=False)
    for images, labels in recorder.training:
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert len(recorder.training) == 12
    for trained, by_hand in zip(classifier.model.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(trained, by_hand, atol=1e-5, rtol=1e-4)
