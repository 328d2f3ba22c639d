"""The benchmarks work, in a short form: what they say of speed is for a quiet machine."""

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
    """The lines of the table that was written."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def test_a_table_has_medians_and_spreads_and_a_file_has_all(tmp_path, capsys):
    values = [3.0, 1.0, 2.0]

    report.tell([{"way": "ours", "images/s": values}], {"rows": values}, tmp_path / "all.json")

    assert rows_of(capsys.readouterr().out) == [{"way": "ours", "images/s": "2 (1 to 3)"}]
    kept = json.loads((tmp_path / "all.json").read_text())
    assert kept["rows"] == values
    assert re.search(r"\d cores, \d+ GB, .*, torch \d", kept["machine"])


@pytest.mark.parametrize("way", ["ceiling", "bare", "reference"])
def test_each_way_to_train_takes_the_steps_that_are_asked_for(way, tmp_path):
    loops.main([way, str(tmp_path / "told.json"), "--batch=2", "--steps=3"])

    told = json.loads((tmp_path / "told.json").read_text())
    assert told["ended"] == sorted(told["ended"])
    assert len(told["ended"]) == 3
    assert told["memory"]["host"] > 1e8


def test_two_processes_train_the_reference_together(tmp_path, monkeypatch):
    replace_python(monkeypatch)
    monkeypatch.setenv("PYTHON_EXEC", sys.executable)

    assert len(train.run("reference", 2, ["--batch", 2, "--steps", 2])["ended"]) == 2


def test_training_is_compared_with_its_ceiling(tmp_path, monkeypatch, capsys):
    replace_python(monkeypatch)
    options = [f"--{word}" for word in ("batch=2", "processes=1", "steps=5", "repeats=1")]
    ways = ["--ways", "fit", "ceiling", f"--{LINEAR}", "--trainer.enable_checkpointing=false"]

    train.main([*options, f"--json={tmp_path / 'all.json'}", *ways])

    (row,) = rows_of(capsys.readouterr().out)
    (figures,) = json.loads((tmp_path / "all.json").read_text())["rows"]
    rates = figures["images_per_second"]
    assert figures["ratios"]["ceiling"] == [rates["fit"][0] / rates["ceiling"][0]]
    assert float(row["fit / ceiling"]) == pytest.approx(figures["ratios"]["ceiling"][0], rel=0.01)


def test_a_way_that_fails_is_said_with_its_words(monkeypatch):
    replace_python(monkeypatch)

    with pytest.raises(RuntimeError) as failed:
        train.run("fit", 1, ["--batch", 0])

    assert mentions(str(failed.value), "fit ended with 1:\n", "invalid batch_size: 0")


def test_start_is_compared_with_what_cant_be_less(monkeypatch, capsys):
    replace_python(monkeypatch)
    few = [LINEAR, "trainer.enable_checkpointing=false"]
    few += [f"data.{part}_size=64" for part in ("train", "val", "test")]

    startup.main(["--devices=1", "--repeats=1", *(f"-P{each}" for each in few)])

    (row,) = rows_of(capsys.readouterr().out)
    least = float(row["nothing, s"]) + float(row["import, s"])
    assert float(row["ratio"]) == pytest.approx(float(row["first step, s"]) / least, rel=0.02)


def test_tracking_is_timed_within_the_epochs(cli, monkeypatch, capsys):
    sizes = [f"--data.{part}_size=16" for part in ("train", "val", "test")]
    for owner, attribute in itertools.chain(*tracking.TRACKING.values(), [(_FitLoop, "run")]):
        monkeypatch.setattr(owner, attribute, getattr(owner, attribute))  # so that it is restored

    tracking.main(["--max_epochs=1", *sizes, f"--{LINEAR}"])

    rows = {row["measured in"]: row for row in rows_of(capsys.readouterr().out)}
    assert [*rows] == ["seconds", "CPU"]
    assert 0 < float(rows["seconds"]["tracking, % of them"]) < 100
