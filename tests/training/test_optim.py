"""The schedule of the learning rate by step, and which parameters decay."""

import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LambdaLR, MultiplicativeLR
from torch.utils.data import DataLoader, IterableDataset

from pyclassify.cli.lightning_cli import TrainingCli
from pyclassify.training.optim import WarmupCosine, exclude_from_weight_decay
from tests.support.trainings import LINEAR


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def rates(steps, warmup_ratio, more=0):
    optimizer = SGD(network().parameters(), lr=0.5)
    schedule = WarmupCosine(optimizer, warmup_ratio)
    schedule.configure(steps)
    found = []
    for _ in range(steps + more):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_learning_rate_warms_up_linearly_and_decays_to_0():
    found = rates(100, warmup_ratio=0.2, more=3)

    assert found[:20] == pytest.approx([0.5 * (step + 1) / 21 for step in range(20)])
    cosine = [0.25 * (1 + math.cos(math.pi * step / 80)) for step in range(80)]
    assert found[20:100] == pytest.approx(cosine)
    assert found[100:] == pytest.approx([0, 0, 0], abs=1e-12)


def test_learning_rate_without_warmup_begins_at_the_peak():
    assert rates(10, warmup_ratio=0)[0] == 0.5


def test_schedule_is_by_step_and_for_each_group():
    one, other = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = SGD([{"params": [one], "lr": 0.1}, {"params": [other], "lr": 0.3}])

    configured = WarmupCosine(optimizer, 0.1).configure(100)

    assert configured["lr_scheduler"]["interval"] == "step"
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1 / 11, 0.3 / 11])


def test_longer_training_has_the_longer_schedule():
    optimizer = SGD(network().parameters(), lr=0.5)
    short, long = WarmupCosine(optimizer), WarmupCosine(optimizer)
    short.configure(10)
    long.configure(20)

    for _ in range(10):
        optimizer.step()
        short.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)

    long.load_state_dict(short.state_dict())

    assert long.total == 20
    assert [optimizer.param_groups[0]["lr"]] == long.get_last_lr() == [rates(20, 0.1)[10]]


@pytest.mark.parametrize("warmup_ratio", [-0.1, 1.0])
def test_warmup_cosine_ratio_out_of_range_raises(warmup_ratio):
    with pytest.raises(MisconfigurationException, match=rf"warmup_ratio.*{warmup_ratio}"):
        WarmupCosine(SGD(network().parameters()), warmup_ratio)


def test_schedule_of_an_endless_training_is_refused():
    with pytest.raises(MisconfigurationException, match="--max_epochs"):
        WarmupCosine(SGD(network().parameters())).configure(math.inf)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(3, 4, 4)


class Named(pl.LightningModule):
    """Has its optimizer made by the command line."""

    def training_step(self, batch, batch_idx):
        return batch.sum()

    def configure_optimizers(self):
        optimizer = SGD(network().parameters())
        return TrainingCli.configure_optimizers(self, optimizer, WarmupCosine(optimizer))


@pytest.mark.parametrize(
    ("data", "callbacks", "message"),
    [
        (Endless(), [], r"length.*--trainer\.max_steps"),
        (
            torch.zeros(8, 3, 4, 4),
            [GradientAccumulationScheduler({1: 2})],
            r"GradientAccumulationScheduler.*--trainer\.accumulate_grad",
        ),
    ],
    ids=["no length", "accumulation"],
)
def test_training_whose_steps_are_not_known_is_refused(data, callbacks, message):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, **quiet)

    with pytest.raises(MisconfigurationException, match=message):
        trainer.fit(Named(), DataLoader(data))


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_biases_and_norms_are_excluded_from_weight_decay(kind):
    net = network()
    optimizer = kind(net.parameters(), lr=0.1, weight_decay=0.3)

    exclude_from_weight_decay(optimizer)

    decayed, excluded = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3
    assert excluded["weight_decay"] == 0
    assert {id(each) for each in decayed["params"]} == {id(net[0].weight), id(net[3].weight)}
    others = (net[0].bias, net[1].weight, net[1].bias, net[3].bias)
    assert {id(each) for each in excluded["params"]} == {id(each) for each in others}
    assert decayed["lr"] == excluded["lr"] == 0.1


def test_existing_scheduler_includes_the_new_groups():
    optimizer = SGD(network().parameters(), lr=0.1, weight_decay=0.3)
    schedule = CosineAnnealingLR(optimizer, T_max=4)

    exclude_from_weight_decay(optimizer, schedule)
    optimizer.step()
    schedule.step()

    expected = 0.05 * (1 + math.cos(math.pi / 4))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda optimizer: CyclicLR(optimizer, 0.1, 0.2), "CyclicLR has max_lrs"),
        (lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.5), "LambdaLR has lr_lambdas"),
        (
            lambda optimizer: MultiplicativeLR(optimizer, lambda epoch: 0.5),
            "MultiplicativeLR has lr_lambdas",
        ),
    ],
)
def test_schedule_with_lists_for_the_groups_is_refused(make, message):
    optimizer = SGD(network().parameters(), lr=0.1, momentum=0.9, weight_decay=0.3)

    with pytest.raises(MisconfigurationException, match=f"{message} .*lr_s"):
        exclude_from_weight_decay(optimizer, make(optimizer))

    assert len(optimizer.param_groups) == 1


def test_optimizer_without_decay_is_refused():
    with pytest.raises(
        MisconfigurationException, match=r"decay_bias_and_norm.*Rprop.* no weight_decay"
    ):
        exclude_from_weight_decay(torch.optim.Rprop(network().parameters()))


def test_command_line_has_both_reach_the_trainer(cli, monkeypatch):
    seen = []

    def keep(metrics, trainer, pl_module):
        seen.append((trainer.optimizers[0], trainer.lr_scheduler_configs[0]))

    monkeypatch.setattr("pyclassify.tracking.metrics.RunMetrics.on_fit_end", keep)
    command_line = (
        "fit --data=SyntheticDataModule --data.train_size=40 --data.val_size=8 --data.test_size=8 "
        f"--batch_size=8 --max_epochs=2 {LINEAR} --model.decay_bias_and_norm=false "
        "--optimizer=SGD --learning_rate=0.2 --optimizer.weight_decay=0.1 "
        "--lr_scheduler=WarmupCosine --trainer.enable_checkpointing=false "
        "--resume.max_checkpoints=0 --trainer.enable_progress_bar=false "
        "--trainer.enable_model_summary=false"
    )

    done = cli(command_line)

    assert done.code == 0
    optimizer, configured = seen[0]
    assert type(optimizer) is not Adam
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    assert configured.interval == "step"
    assert configured.scheduler.total == configured.scheduler.last_epoch == 10
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    assert done.runs[0].data.params["lr_scheduler/warmup_ratio"] == "0.1"
