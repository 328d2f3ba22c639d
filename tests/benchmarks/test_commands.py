"""The benchmarks run in a short form; their figures are valid only on a quiet machine."""

import itertools
import json
import re
import sys

import pytest
from lightning.pytorch.loops.fit_loop import _FitLoop

from benchmarks import startup, tracking, train
from benchmarks.parts import loops, report
from tests.support.forking_python import replace_python
from tests.support.phrases import mentions

LINEAR = "model.model=tests.support.networks.Linear"


def rows_of(text):
    """Parse the rows of a printed table."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def test_table_has_median_and_range_and_file_has_all_values(tmp_path, capsys):
    values, file = [3.0, 1.0, 2.0], tmp_path / "all.json"

    report.print_table([{"loop": "fit", "images/s": values}], {"rows": values}, file)

    assert rows_of(capsys.readouterr().out) == [{"loop": "fit", "images/s": "2 (1 to 3)"}]
    figures = json.loads(file.read_text())
    assert figures["rows"] == values
    assert re.search(r"\d cores, \d+ GB, .*, torch \d", figures["machine"])


def test_help_of_a_benchmark_has_defaults_and_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])

    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    assert mentions(help_text, "(default: 3)", "examples:\n  python -m benchmarks.train --batch 64")


@pytest.mark.parametrize("loop", ["upper_bound", "bare", "reference"])
def test_each_loop_trains_for_the_given_steps(loop, tmp_path):
    loops.main([loop, str(tmp_path / "result.json"), "--batch=2", "--steps=3"])

    result = json.loads((tmp_path / "result.json").read_text())
    assert result["step_ends"] == sorted(result["step_ends"])
    assert len(result["step_ends"]) == 3
    assert result["memory"]["host"] > 1e8


def test_two_processes_train_the_reference_together(tmp_path, monkeypatch):
    replace_python(monkeypatch)
    monkeypatch.setenv("PYTHON_EXEC", sys.executable)

    assert len(train.run("reference", 2, ["--batch", 2, "--steps", 2])["step_ends"]) == 2


def test_training_is_compared_with_its_upper_bound(tmp_path, monkeypatch, capsys):
    replace_python(monkeypatch)
    options = [f"--{word}" for word in ("batch=2", "processes=1", "steps=5", "repeats=1")]
    options += ["--loops", "fit", "upper_bound", f"--{LINEAR}"]

    train.main(
        [*options, f"--json={tmp_path / 'all.json'}", "--trainer.enable_checkpointing=false"]
    )

    (row,) = rows_of(capsys.readouterr().out)
    (figures,) = json.loads((tmp_path / "all.json").read_text())["rows"]
    rates = figures["images_per_second"]
    assert figures["ratios"]["upper_bound"] == [rates["fit"][0] / rates["upper_bound"][0]]
    ratio = figures["ratios"]["upper_bound"][0]
    assert float(row["fit / upper_bound"]) == pytest.approx(ratio, rel=0.01)


def test_loop_that_fails_raises_with_its_error(monkeypatch):
    replace_python(monkeypatch)

    with pytest.raises(RuntimeError) as failed:
        train.run("fit", 1, ["--batch", 0])

    assert mentions(str(failed.value), "fit failed with exit code", "invalid batch_size: 0")


def test_start_is_compared_with_its_lower_bound(monkeypatch, capsys):
    replace_python(monkeypatch)
    few = [LINEAR, "trainer.enable_checkpointing=false"]
    few += [f"data.{split}_size=64" for split in ("train", "val", "test")]

    startup.main(["--devices=1", "--repeats=1", *(f"-P{parameter}" for parameter in few)])

    (row,) = rows_of(capsys.readouterr().out)
    lower_bound = float(row["empty project, s"]) + float(row["import, s"])
    ratio = float(row["first step, s"]) / lower_bound
    assert float(row["ratio"]) == pytest.approx(ratio, rel=0.02)


def test_tracking_is_timed_within_the_epochs(cli, monkeypatch, capsys):
    sizes = [f"--data.{split}_size=16" for split in ("train", "val", "test")]
    for owner, attribute in itertools.chain(*tracking.TRACKING.values(), [(_FitLoop, "run")]):
        monkeypatch.setattr(owner, attribute, getattr(owner, attribute))  # so that it is restored

    tracking.main(["--max_epochs=1", *sizes, f"--{LINEAR}"])

    rows = {row["measured in"]: row for row in rows_of(capsys.readouterr().out)}
    assert [*rows] == ["seconds", "CPU"]
    assert 0 < float(rows["seconds"]["tracking, % of them"]) < 100
