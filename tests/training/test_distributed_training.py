"""Two processes train and evaluate as one does, with batches of half the size."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from pyclassify.datamodule import SyntheticDataModule
from pyclassify.module import Classifier
from pyclassify.training.distributed import destroy_process_group_on_exit
from pyclassify.utils.signals import stop_with_parent
from tests.support import networks
from tests.support.processes import run_ranks

BATCH = 64  # in all processes


def train_and_evaluate(devices):
    """Do what is compared, in each process.

    Of 65 images the second of two processes gets 32 and a batch that is all padding, and of 3 one
    and another. 130 leave the last step a batch of 2 or two of 1.
    """
    data = SyntheticDataModule(130, 65, 3, batch_size=BATCH // devices, resize=36, crop=32)
    torch.manual_seed(0)
    classifier, recorder = Classifier(networks.network, 10), networks.Recorder()
    strategy = "ddp" if devices > 1 else "auto"
    trainer = networks.trainer(
        devices=devices, strategy=strategy, max_epochs=2, callbacks=[recorder]
    )
    trainer.fit(classifier, data)
    weights = {name: each.clone() for name, each in classifier.state_dict().items()}
    scores = {name: float(score) for name, score in trainer.callback_metrics.items()}
    scores.pop("train_loss"), scores.pop("train_accuracy")  # of a process's own images
    scores |= trainer.test(classifier, data, verbose=False)[0]
    foreign = DataLoader(networks.byte_images(7), batch_size=1)
    probabilities = torch.cat(trainer.predict(classifier, data))
    return {
        "places": [batch.indices.tolist() for batch in recorder.training],
        "images": [batch[0] for batch in recorder.training],
        "gradients": recorder.gradients,
        "weights": weights,
        "scores": scores,
        "foreign scores": trainer.validate(classifier, foreign, verbose=False)[0],
        "probabilities": probabilities,
        "rank": trainer.global_rank,
    }


@pytest.fixture(scope="module")
def alone():
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PL_GLOBAL_SEED", "1")
        return train_and_evaluate(devices=1)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes of this file as a script found, by rank."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PL_GLOBAL_SEED", "1")
        run_ranks(__file__, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_a_step_takes_the_same_images_in_two_processes_as_in_one(alone, ranks):
    together = [sorted(a + b) for a, b in zip(*(rank["places"] for rank in ranks), strict=True)]

    assert together == [sorted(places) for places in alone["places"]]


def test_image_is_cropped_equally_in_either_process(alone, ranks):
    for step, places in enumerate(alone["places"]):
        expected = dict(zip(places, alone["images"][step], strict=True))
        for rank in ranks:
            for place, image in zip(rank["places"][step], rank["images"][step], strict=True):
                torch.testing.assert_close(image, expected[place])


def test_two_processes_have_the_gradients_of_one_with_twice_the_batch(alone, ranks):
    assert len(alone["gradients"]) == 6
    for rank in ranks:
        torch.testing.assert_close(rank["gradients"], alone["gradients"], rtol=1e-4, atol=1e-6)


def test_weights_are_the_same_in_both_processes(ranks):
    one, other = (rank["weights"] for rank in ranks)

    assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_are_those_of_one_process(alone, ranks):
    torch.testing.assert_close(ranks[0]["weights"], alone["weights"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("of", ["scores", "foreign scores"])
def test_padding_counts_in_neither_process(alone, ranks, of):
    assert ranks[0][of] == pytest.approx(alone[of], rel=1e-5)
    assert ranks[1][of] == ranks[0][of]


def test_each_image_is_predicted_once(alone, ranks):
    both = [rank["probabilities"] for rank in ranks]

    assert [len(each) for each in both] == [2, 1]
    torch.testing.assert_close(torch.cat(both)[[0, 2, 1]], alone["probabilities"])


if __name__ == "__main__":
    stop_with_parent()
    with destroy_process_group_on_exit():
        found = train_and_evaluate(devices=2)
    torch.save(found, Path(sys.argv[1]) / f"{found['rank']}.pt")
