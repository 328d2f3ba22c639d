"""Averaged weights: what is validated, saved and tested, and a training that is stopped."""

from functools import partial
from signal import SIGTERM, SIGUSR1

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from pyclassify.module import Classifier
from pyclassify.training.checkpoints import BestCheckpoint
from pyclassify.training.optim import EMAWeights
from pyclassify.training.trainer import Trainer
from tests.support import stopping
from tests.support.trainings import SHAPES

CLASSIFIER = partial(Classifier, stopping.Net, learning_rate=0.01)
STOPS = [(3, SIGUSR1), (4, SIGTERM), (12, 0), (3, SIGUSR1)]


def averaging():
    return [EMAWeights(decay=0.5, update_every_n_steps=2)]


class Watch(Callback):
    """Keeps the weights of each step and those that are validated and tested."""

    def __init__(self):
        self.trained, self.validated, self.tested = [], [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.trained.append(weights(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, *args):
        self.validated.append(weights(pl_module))

    def on_test_batch_start(self, trainer, pl_module, *args):
        self.tested.append(weights(pl_module))


def weights(module):
    return module.model[2].weight.detach().clone()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training of 3 epochs of 8 steps and its test, as `pyclassify train` does it."""
    folder = tmp_path_factory.mktemp("averaged")
    torch.manual_seed(1)
    watch, module, data = Watch(), CLASSIFIER(), stopping.ours()
    callbacks = [*averaging(), watch, BestCheckpoint(dirpath=folder)]
    trainer = Trainer(
        max_epochs=3,
        devices=1,
        num_sanity_val_steps=0,
        logger=False,
        callbacks=callbacks,
        **stopping.QUIET,
    )
    trainer.train(module, data)
    return watch, trainer, module


def test_ema_of_the_steps_is_validated(trained):
    watch, *_ = trained
    average, averages = None, []
    for step, each in enumerate(watch.trained):
        if step % 2 == 0:
            decay = min(0.5, (1 + step // 2) / (10 + step // 2))
            average = each if average is None else decay * average + (1 - decay) * each
        if step % 8 == 7:
            averages.append(average)

    assert len(watch.trained) == 24
    validated = torch.stack(watch.validated).view(3, -1, *watch.validated[0].shape)
    for each, expected in zip(validated, averages, strict=True):
        for batch in each:
            torch.testing.assert_close(batch, expected)
        assert not torch.equal(each[0], watch.trained[-1])


def test_best_ema_is_saved_and_tested_and_retested(trained):
    watch, trainer, module = trained
    path = trainer.checkpoint_callback.best_model_path
    saved = torch.load(path, weights_only=True)["state_dict"]["model.2.weight"]

    assert any(torch.equal(saved, each) for each in watch.validated)
    assert all(torch.equal(saved, each) for each in watch.tested)
    assert torch.equal(weights(module), saved)
    scores = {name: float(score) for name, score in trainer.callback_metrics.items()}
    options = {"logger": False, "devices": 1, **stopping.QUIET}
    for callbacks in (averaging(), []):
        retested = Trainer(callbacks=callbacks, enable_checkpointing=False, **options)
        data = stopping.ours()
        found = retested.test(CLASSIFIER(), data, ckpt_path=path, verbose=False)[0]
        assert {name: scores[name] for name in found} == found


def test_network_has_the_ema_after_fit(tmp_path):
    watch, module = Watch(), CLASSIFIER()
    trainer = Trainer(
        max_epochs=1, logger=False, callbacks=[*averaging(), watch], devices=1,
        enable_checkpointing=False, **stopping.QUIET,
    )  # fmt: skip

    trainer.fit(module, stopping.ours())

    assert torch.equal(weights(module), watch.validated[-1])
    assert not torch.equal(weights(module), watch.trained[-1])


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 3}], ids=str)
def test_stopped_training_ends_as_one_that_was_not(tmp_path, options):
    stopping.compare(
        tmp_path,
        partial(stopping.Schedules, "warm-up"),
        stopping.ours,
        disturbances=STOPS,
        resume={"every_n_train_steps": 2},
        more=averaging,
        **options,
    )


def test_training_resumed_for_more_epochs_equals_one_long_training(tmp_path):
    parts = CLASSIFIER, stopping.ours
    _, ended = stopping.train(tmp_path / "at once", *parts, more=averaging, max_epochs=3)
    for epochs in (1, 2, 3):
        _, last = stopping.train(tmp_path / "longer", *parts, more=averaging, max_epochs=epochs)

    assert stopping.same(last, ended)


@pytest.mark.parametrize(
    ("option", "value"), [("decay", 1.0), ("decay", -0.1), ("update_every_n_steps", 0)]
)
def test_ema_option_out_of_range_raises(option, value):
    with pytest.raises(MisconfigurationException, match=rf"^invalid {option}: {value} \(expected"):
        EMAWeights(**{option: value})


def test_retested_run_has_the_same_metrics(cli, tmp_path):
    recipe = {"trainer": {"callbacks": [{"class_path": "pyclassify.training.optim.EMAWeights"}]}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    options = f"--config=recipe.yaml {SHAPES} --model.label_smoothing=0.1 --learning_rate=0.01"

    trained = cli(f"train {options}")
    assert trained.code == 0, trained.err
    retested = cli(f"test {options} --ckpt_path={trained.runs[0].info.run_id}")

    assert retested.code == 0, retested.err
    assert "WeightAveraging" not in trained.err + retested.err
    found, expected = retested.runs[0].data.metrics, trained.runs[0].data.metrics
    assert found["test_loss"] == expected["test_loss"]
    assert found["test_accuracy"] == expected["test_accuracy"]
    params = trained.runs[0].data.params
    assert params["trainer/callbacks/EMAWeights/decay"] == "0.999"
    assert params["model/label_smoothing"] == "0.1"
