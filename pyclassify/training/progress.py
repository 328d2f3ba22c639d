"""Show the progress of a training: one bar in a terminal, lines in a log.

Lightning would choose its bar and its table of the network by whether rich is installed, and draw
the bar into logs. `Trainer` has `Progress` and `ModelSummaryLine` as its defaults instead.
"""

import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_summary import get_human_readable_count
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from tqdm import tqdm

from pyclassify.utils.text import format_duration, join_some

_LINE_SECONDS = 60.0  # the least time between two lines within an epoch
_REFRESH_SECONDS = 0.1  # of the bar
_BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"
# Metrics that are shown first, and also where they were not logged with prog_bar=True.
_TRAINING_METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
_EVALUATION_METRICS = ("{}_loss", "{}_accuracy", "{}_ece")
_MAX_MODULES = 3  # in the line about the network


class Progress(ProgressBar):
    """Show the progress of a Trainer on stdout, from the process of rank zero.

    In a terminal that is one bar, with the time left and the metrics. Elsewhere, such as in a pipe,
    in CI or in the log of a SLURM job, it is a line at the end of each epoch, and within an epoch
    at most one line per `line_seconds`. Validation, test and prediction have one line at their
    end, and lines at the same rate before it.

    The metrics are `train_loss`, `train_accuracy`, `val_loss`, `val_accuracy` and what else was
    logged with `prog_bar=True`. A metric whose name begins with "train" is the mean over the
    epoch's steps so far in this process. The time left is that of the whole training, at the mean
    speed since its start or resume.

    Args:
        line_seconds: The least time in seconds between two lines within an epoch.

    Example:
        >>> trainer = Trainer(callbacks=[Progress(line_seconds=10)])
    """

    def __init__(self, line_seconds: float = _LINE_SECONDS) -> None:
        super().__init__()
        self.line_seconds = line_seconds
        self._is_enabled = self._is_rank_zero = True
        self._display: _Bar | _Lines = _Lines(line_seconds)
        self._training_started = self._epoch_started = self._evaluation_started = time.monotonic()
        self._first_step = 0  # of this attempt
        self._attempt_batches = 0  # of training, in this attempt
        self._epoch_batches = 0  # of training, in this epoch
        self._evaluated_batches = 0
        self._has_validated = False  # in this epoch
        self._means = _Means()

    @property
    def is_enabled(self) -> bool:
        """Whether this process shows progress."""
        return self._is_enabled and self._is_rank_zero

    def disable(self) -> None:
        self._is_enabled = False

    def enable(self) -> None:
        self._is_enabled = True

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print lines above the bar, for `LightningModule.print`."""
        self._display.print(sep.join(map(str, args)))

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Get the metrics that were logged with `prog_bar=True`; a subclass may add others."""
        return dict(trainer.progress_bar_metrics)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._is_rank_zero = trainer.is_global_zero
        self._display = _Bar() if is_terminal() else _Lines(self.line_seconds)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._display.close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """End the bar's line, so that the error has its own."""
        self._display.close()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training_started = time.monotonic()
        self._attempt_batches, self._first_step = 0, trainer.global_step
        self._start_epoch()  # a training that resumes within an epoch starts none

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start_epoch()

    def _start_epoch(self) -> None:
        self._epoch_started = time.monotonic()
        self._epoch_batches, self._has_validated, self._means = 0, False, _Means()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.is_enabled:
            self._attempt_batches += 1
            self._epoch_batches = batch_idx + 1
            self._means.update(self.get_metrics(trainer, pl_module))
            if self._display.is_due():
                self._show_training()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # In each process: metrics of an epoch are reduced over all of them when they are read.
        metrics = self._get_training_metrics(pl_module)
        if self.is_enabled:
            seconds = time.monotonic() - self._epoch_started
            facts = self._list_training_facts(metrics, format_duration(seconds))
            total = self.trainer.num_training_batches
            self._display.end_epoch(self._epoch_label, self._epoch_batches, total, facts)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._display.close()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation_started, self._evaluated_batches = time.monotonic(), 0

    on_test_start = on_predict_start = on_validation_start

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        if self.is_enabled and not trainer.sanity_checking:
            self._evaluated_batches += 1
            if self._display.is_due():
                self._show_evaluation()

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end  # type: ignore[assignment]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if trainer.state.fn == TrainerFn.FITTING:
            self._has_validated = True
        else:
            self._end_evaluation(pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_evaluation(pl_module)

    on_predict_end = on_test_end

    @property
    def _epoch_label(self) -> str:
        epochs = self.trainer.max_epochs or -1
        return f"epoch {self.trainer.current_epoch + 1}" + (f"/{epochs}" if epochs > 0 else "")

    def _show_training(self) -> None:
        facts = self._list_training_facts(self._get_training_metrics(self.trainer.lightning_module))
        total = self.trainer.num_training_batches
        self._display.show(self._epoch_label, self._epoch_batches, total, facts)

    def _show_evaluation(self) -> None:
        count, total = self._evaluated_batches, _sum_batches(self.trainer)
        stage = _get_stage(self.trainer)
        if stage == "fit":
            label, seconds = f"{self._epoch_label}, validation", self._estimate_seconds_left()
        else:
            elapsed = time.monotonic() - self._evaluation_started
            label, seconds = stage, elapsed / count * (total - count)
        self._display.show(label, count, total, _format_seconds_left(seconds))

    def _end_evaluation(self, pl_module: pl.LightningModule) -> None:
        if not self.is_enabled:
            return
        stage, count = _get_stage(self.trainer), self._evaluated_batches
        prefix = "val" if stage == "validate" else stage
        logged = self.trainer.callback_metrics
        names = [name.format(prefix) for name in _EVALUATION_METRICS]
        metrics = {name: logged[name] for name in names if name in logged}
        metrics |= self.get_metrics(self.trainer, pl_module) | {**logged}
        seconds = time.monotonic() - self._evaluation_started
        facts = _format_metrics(metrics)[: self._display.max_metrics] or [f"{count:,} batches"]
        facts.append(format_duration(seconds))
        self._display.end_epoch(stage, count, count, facts)
        self._display.close()

    def _get_training_metrics(self, pl_module: pl.LightningModule) -> dict[str, Any]:
        """Get what is shown of the epoch: means of the training, and the last validation."""
        logged = self.trainer.callback_metrics
        metrics = {name: logged[name] for name in _TRAINING_METRICS if name in logged}
        metrics |= self.get_metrics(self.trainer, pl_module) | self._means.compute()
        for name in [name for name in metrics if name.endswith("_epoch")]:
            # A metric that was logged by step and by epoch is shown once.
            base = name.removesuffix("_epoch")
            metrics.pop(f"{base}_step", None)
            metrics[base] = metrics.pop(name)
        if not self._has_validated and not self._display.shows_last_validation:
            metrics = {name: value for name, value in metrics.items() if not name.startswith("val")}
        first = {name: metrics[name] for name in self._display.order if name in metrics}
        return dict([*(first | metrics).items()][: self._display.max_metrics])

    def _list_training_facts(self, metrics: Mapping[str, Any], *durations: str) -> list[str]:
        facts = _format_metrics(metrics)
        if self.trainer.max_steps > 0:
            facts.append(f"step {self.trainer.global_step:,}/{self.trainer.max_steps:,}")
        left = _format_seconds_left(self._estimate_seconds_left())
        if self._display.shows_time_first:
            return [*(left or durations), *facts]
        return [*facts, *durations, *left]

    def _estimate_seconds_left(self) -> float:
        """Estimate how long the training takes until its end; inf where that is not known."""
        trainer, elapsed = self.trainer, time.monotonic() - self._training_started
        estimates = [math.inf]
        epochs, batches = trainer.max_epochs or -1, trainer.num_training_batches
        if epochs > 0 and self._attempt_batches and math.isfinite(batches):
            remaining = batches * (epochs - trainer.current_epoch) - self._epoch_batches
            estimates.append(elapsed / self._attempt_batches * remaining)
        steps = trainer.global_step - self._first_step
        if trainer.max_steps > 0 and steps > 0:
            estimates.append(elapsed / steps * (trainer.max_steps - trainer.global_step))
        return min(estimates)


class ModelSummaryLine(ModelSummary):
    """Log the number of a network's parameters in one line.

    Example:
        >>> trainer = Trainer(callbacks=[ModelSummaryLine()])
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        **__: Any,
    ) -> None:
        columns = dict(summary_data)
        rows = zip(*(columns.get(name, []) for name in ("Name", "Type", "Params")), strict=False)
        modules = [
            f"{name} ({kind})" for name, kind, count in rows if count.strip() not in ("0", "--")
        ]
        total, trainable = map(get_human_readable_count, (total_parameters, trainable_parameters))
        line = f"{total.strip()} parameters, {trainable.strip()} of them trainable"
        rank_zero_info(f"{line}: {join_some(modules, _MAX_MODULES)}" if modules else line)


def is_terminal() -> bool:
    """Whether stdout is a terminal that can draw a bar."""
    if sys.stdout is None or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return False
    # Containers and programs such as expect may have a terminal without a size; tqdm draws nothing
    # in fewer than two lines.
    size = os.get_terminal_size(sys.stdout.fileno())
    return size.columns > 0 and size.lines > 1


class _Lines:
    """Progress as lines."""

    order = _TRAINING_METRICS
    max_metrics = 8
    shows_last_validation = False  # an epoch's line has the epoch's validation alone
    shows_time_first = False

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = time.monotonic() + seconds

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def show(self, label: str, batch: int, total: float, facts: Sequence[str]) -> None:
        position = f"batch {batch:,}"
        if math.isfinite(total):
            position += f"/{total:,} ({batch / total:.0%})"
        self._write(f"{label}, {position}", facts)

    def end_epoch(self, label: str, batch: int, total: float, facts: Sequence[str]) -> None:
        self._write(label, facts)

    def print(self, text: str) -> None:
        sys.stdout.write(f"{text}\n")

    def close(self) -> None:
        pass

    def _write(self, label: str, facts: Sequence[str]) -> None:
        self._next = time.monotonic() + self._seconds
        self.print(f"{label}: {', '.join(facts)}" if facts else label)
        sys.stdout.flush()


class _Bar:
    """Progress as one bar, whose last state stays."""

    order = ("val_accuracy", *_TRAINING_METRICS)
    max_metrics = 2  # more leave no room for the bar
    shows_last_validation = True
    shows_time_first = True

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._next = 0.0

    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def show(self, label: str, batch: int, total: float, facts: Sequence[str]) -> None:
        self._next = time.monotonic() + _REFRESH_SECONDS
        if self._bar is None:
            self._bar = tqdm(file=sys.stdout, dynamic_ncols=True, bar_format=_BAR_FORMAT, delay=1)
            self._bar.delay = 0  # it drew nothing yet, and is to draw its end
        self._bar.n, self._bar.total = batch, total if math.isfinite(total) else None
        self._bar.set_description_str(f"{label}: ", refresh=False)
        self._bar.set_postfix_str(", ".join(facts), refresh=False)
        self._bar.refresh()

    end_epoch = show

    def print(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Means:
    """The means of the training's metrics over an epoch's steps."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def update(self, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            if name.startswith("train") and isinstance(value, int | float):
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1

    def compute(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}


def _get_stage(trainer: pl.Trainer) -> str:
    """The Trainer's command: "fit", "validate", "test" or "predict"."""
    return trainer.state.fn.value if trainer.state.fn else ""


def _sum_batches(trainer: pl.Trainer) -> float:
    """The number of batches of the evaluation that is under way, over all its data loaders."""
    if trainer.testing:
        batches: Any = trainer.num_test_batches
    else:
        batches = trainer.num_predict_batches if trainer.predicting else trainer.num_val_batches
    return sum(batches) if isinstance(batches, list) else batches


def _format_metrics(metrics: Mapping[str, Any]) -> list[str]:
    facts = []
    for name, value in metrics.items():
        if isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1):
            facts.append(f"{name} {_format_number(float(value))}")
    return facts


def _format_number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.3e}"


def _format_seconds_left(seconds: float) -> list[str]:
    is_known = math.isfinite(seconds) and seconds > 0
    return [f"{format_duration(seconds)} left"] if is_known else []
