"""Progress: lines where stdout is not a terminal, one bar in a pseudo-terminal."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
from contextlib import redirect_stdout
from types import SimpleNamespace
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.connectors import callback_connector
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from pyclassify.module import Classifier
from pyclassify.training import progress
from pyclassify.training.progress import ModelSummaryLine, Progress
from pyclassify.training.trainer import Trainer
from tests.support import networks

IMAGES = DataLoader(networks.byte_images(12), 4)
FLOATS = DataLoader(TensorDataset(torch.rand(12, 3, 8, 8), torch.zeros(12).long()), 4)
SECONDS = r"(\d+ s|under 1 s)"


class Stream(IterableDataset):
    """Images without a length, and without an end."""

    def __iter__(self):
        images = networks.byte_images(12)
        while True:
            yield from images


def make_classifier():
    return Classifier(networks.network, num_classes=4)


def fit(callback, train=IMAGES, val=IMAGES, module=None, **options):
    trainer = networks.trainer(callbacks=[callback], enable_progress_bar=True, **options)
    out = io.StringIO()
    with redirect_stdout(out):
        trainer.fit(module or make_classifier(), train, val)
    return out.getvalue()


def test_epoch_has_one_line_with_metrics_duration_and_time_left():
    lines = fit(Progress(), max_epochs=2, num_sanity_val_steps=2).splitlines()

    metrics = r"train_loss \S+, train_accuracy \S+, val_loss \S+, val_accuracy 0\.\d{4}"
    assert len(lines) == 2
    assert re.fullmatch(rf"epoch 1/2: {metrics}, {SECONDS}, {SECONDS} left", lines[0])
    assert re.fullmatch(rf"epoch 2/2: {metrics}, {SECONDS}", lines[1])


def test_long_epoch_has_lines_with_position_loss_and_time_left():
    lines = fit(Progress(line_seconds=0), max_epochs=1, num_sanity_val_steps=2).splitlines()

    position = r"epoch 1/1, batch 1/3 \(33%\)"
    metrics = r"train_loss \S+, train_accuracy \S+"
    assert re.fullmatch(rf"{position}: {metrics}, {SECONDS} left", lines[0])
    assert lines[4].startswith("epoch 1/1, validation, batch 2/3 (67%)")
    assert len(lines) == 7  # three batches, three of validation, the epoch


def test_lines_within_an_epoch_come_once_in_a_while(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(pl.Callback):
        def on_train_batch_start(self, *_):
            clock.now += 25

    trainer = networks.trainer(callbacks=[Slow(), Progress()], enable_progress_bar=True)
    trainer.fit_loop.max_epochs = 1
    out = io.StringIO()
    with redirect_stdout(out):
        trainer.fit(make_classifier(), DataLoader(networks.byte_images(24), 4))

    lines = out.getvalue().splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "epoch 1/1, batch 3/6 (50%)",
        "epoch 1/1, batch 6/6 (100%)",
        "epoch 1/1",
    ]
    assert lines[0].endswith(", 1 min 15 s left")
    assert lines[-1].endswith(", 2 min 30 s")


def test_metric_of_the_training_is_the_mean_over_the_epochs_steps():
    class Fixed(networks.Module):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", float(batch_idx), prog_bar=True)
            self.log("both", float(batch_idx), on_step=True, on_epoch=True, prog_bar=True)
            return super().training_step(batch, batch_idx)

    (line,) = fit(Progress(), FLOATS, None, Fixed(), max_epochs=1).splitlines()

    assert line.startswith("epoch 1/1: train_loss 1.0000, both 1.0000, ")


def test_epoch_without_validation_does_not_repeat_the_last_one():
    lines = fit(Progress(), max_epochs=3, check_val_every_n_epoch=2).splitlines()

    assert ["val_accuracy" in line for line in lines] == [False, True, False]


def test_stream_of_unknown_length_shows_steps_and_no_total():
    out = fit(Progress(line_seconds=0), DataLoader(Stream(), 4), None, max_steps=2)

    assert re.match(r"epoch 1, batch 1: .*, step 1/2, .* left\n", out)
    assert re.fullmatch(rf"epoch 1: .*, step 2/2, {SECONDS}", out.splitlines()[-1])


def test_accumulated_steps_and_limited_batches_are_counted_as_they_are():
    limits = {"accumulate_grad_batches": 2, "limit_train_batches": 2, "max_steps": 2}
    lines = fit(Progress(line_seconds=0), val=None, **limits).splitlines()

    assert "batch 2/2 (100%)" in lines[1]
    assert "step 1/2" in lines[1]
    assert lines[-1].startswith("epoch 2: ")


def test_resumed_epoch_continues_at_its_batch(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    networks.trainer(callbacks=[Save()], max_epochs=1).fit(make_classifier(), IMAGES)
    trainer = networks.trainer(
        callbacks=[Progress(line_seconds=0)], enable_progress_bar=True, max_epochs=1
    )
    out = io.StringIO()
    with redirect_stdout(out):
        trainer.fit(make_classifier(), IMAGES, ckpt_path=tmp_path / "1.ckpt", weights_only=False)

    lines = [line.partition(":")[0] for line in out.getvalue().splitlines()]
    assert lines == ["epoch 1/1, batch 2/3 (67%)", "epoch 1/1, batch 3/3 (100%)", "epoch 1/1"]


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_has_one_line_at_its_end(command):
    trainer = networks.trainer(callbacks=[Progress()], enable_progress_bar=True)
    out = io.StringIO()
    with redirect_stdout(out):
        more = {} if command == "predict" else {"verbose": False}
        getattr(trainer, command)(make_classifier(), IMAGES, **more)

    (line,) = out.getvalue().splitlines()
    stage = {"validate": "val"}.get(command, command)
    metrics = rf"{stage}_loss \S+, {stage}_accuracy \S+"
    facts = "3 batches" if command == "predict" else metrics
    assert re.fullmatch(rf"{command}: {facts}, {SECONDS}", line)


def test_metric_of_another_module_is_shown_at_the_end_of_a_test():
    trainer = networks.trainer(callbacks=[Progress()], enable_progress_bar=True)
    out = io.StringIO()
    with redirect_stdout(out):
        trainer.test(networks.Module(), FLOATS, verbose=False)

    assert re.fullmatch(rf"test: its_own_loss \S+, {SECONDS}\n", out.getvalue())


def test_other_ranks_read_the_epochs_metrics_and_write_nothing(capsys):
    trainer = Mock(is_global_zero=False, callback_metrics={}, progress_bar_metrics={})
    shown = Progress(line_seconds=0)
    shown.setup(trainer, None, "fit")
    shown.get_metrics = Mock(return_value={})

    shown.on_train_batch_end(trainer, None, None, None, 0)
    shown.on_train_epoch_end(trainer, None)

    shown.get_metrics.assert_called_once()  # reducing them takes all ranks
    assert capsys.readouterr().out == ""


@pytest.fixture
def terminal():
    """Train with stdout in a pseudo-terminal; returns what was written to it."""

    def train(callback, columns=100, rows=30, **options):
        reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        written = b""
        with os.fdopen(writer, "w") as stdout, redirect_stdout(stdout):
            trainer = networks.trainer(callbacks=[callback], enable_progress_bar=True, **options)
            trainer.fit(make_classifier(), IMAGES, IMAGES)
            stdout.flush()
            os.set_blocking(reader, False)
            while True:
                try:
                    written += os.read(reader, 65536)
                except BlockingIOError:
                    break
        os.close(reader)
        return written.decode()

    return train


def test_terminal_has_one_bar_with_time_left_and_validation_accuracy(terminal, monkeypatch):
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0)
    monkeypatch.setenv("TERM", "xterm")

    out = terminal(Progress(), max_epochs=2, num_sanity_val_steps=2)

    states = [state for state in out.replace("\r\n", "\r").split("\r") if state.strip()]
    assert re.fullmatch(
        r"epoch 1/2:  33%\|.*\| 1/3, \S+ \S+( \S+)? left, train_loss \S+, train_accuracy \S+ *",
        states[0],
    )
    assert any(re.match(r"epoch 1/2, validation:  67%\|.*\| 2/3, .* left", each) for each in states)
    assert re.fullmatch(
        rf"epoch 2/2: 100%\|.*\| 3/3, {SECONDS}, val_accuracy 0\.\d{{4}}, train_loss \S+ *",
        states[-1],
    )
    assert out.count("\n") == 1  # one bar
    assert "\x1b[A" not in out  # and none above another


@pytest.mark.parametrize(
    ("kind", "columns", "rows"), [("dumb", 100, 30), ("xterm", 0, 0), ("xterm", 100, 0)]
)
def test_terminal_that_can_draw_no_bar_has_lines(kind, columns, rows, terminal, monkeypatch):
    monkeypatch.setenv("TERM", kind)

    assert re.match(r"epoch 1/1: .*\r\n$", terminal(Progress(), columns, rows, max_epochs=1))


@pytest.mark.parametrize("has_rich", [False, True])
def test_display_does_not_depend_on_rich(has_rich, monkeypatch):
    monkeypatch.setattr(callback_connector, "_RICH_AVAILABLE", has_rich)

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)

    kinds = [type(callback) for callback in trainer.callbacks]
    assert kinds == [Progress, ModelSummaryLine]


@pytest.mark.parametrize("callback", [TQDMProgressBar, Progress])
def test_progress_bar_of_the_user_replaces_the_default(callback):
    mine = callback()

    trainer = Trainer(accelerator="cpu", logger=False, callbacks=mine)

    assert trainer.progress_bar_callback is mine


def test_progress_and_summary_can_be_switched_off():
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}

    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=None, **quiet
    )

    assert trainer.callbacks == []


def test_model_summary_is_one_line(caplog):
    trainer = networks.trainer(callbacks=[ModelSummaryLine()], max_epochs=1)
    with caplog.at_level("INFO", "lightning.pytorch"):
        trainer.fit(make_classifier(), IMAGES)

    assert "772 parameters, 772 of them trainable: model (Sequential)" in caplog.messages
