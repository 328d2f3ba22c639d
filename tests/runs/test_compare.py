"""`pyclassify compare` on runs of a real store: what is written, for people and for programs."""

import json
from pathlib import Path
from urllib.parse import unquote

import mlflow
import pytest

from pyclassify.tracking.ui import link_comparison
from tests.support.phrases import mentions
from tests.support.runs import record, two_runs

PAGE = Path(__file__).with_name("compared.txt")


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_two_runs_are_compared_in_a_page_of_eighty_columns(cli):
    first, second = two_runs()

    done = cli(f"compare {first} {second}")

    text, link = done.out.replace(first, "1" * 32).replace(second, "2" * 32).rsplit("\n", 2)[:2]
    assert (done.code, done.err) == (0, "")
    assert text + "\n" == PAGE.read_text()
    assert unquote(link) == (
        f'http://127.0.0.1:5000/#/compare-runs?runs=["{"1" * 32}","{"2" * 32}"]&experiments=["1"]'
        "&workflowType=machine_learning"
    )


def test_link_leads_to_the_server_without_its_password():
    link = link_comparison("https://me:secret@runs.example.org/team/", ["a", "b"], ["3", "3"])

    assert unquote(link).startswith('https://runs.example.org/team/#/compare-runs?runs=["a","b"]&e')
    assert 'experiments=["3"]&' in unquote(link)


def test_json_has_what_the_page_has(cli):
    runs = two_runs()

    data = json.loads(cli(f"compare --json {' '.join(runs)}").out)

    assert [run["run_id"] for run in data["runs"]] == runs
    assert data["parameters_that_differ"]["model/model/dropout"] == ["0.5", None]
    assert data["parameters_the_same"] == 2
    assert data["metrics"]["test_accuracy"] == {"values": [0.4, 0.8], "differences": [None, 0.4]}
    assert data["metrics"]["test_loss"] == {"values": [1.5, None], "differences": [None, None]}
    assert "system/cpu_utilization_percentage" in data["metrics"]
    assert data["paired_test"]["right"] == [4, 8]
    assert data["paired_test"]["p_value"] == 0.21875
    assert data["notes"] == []


def test_first_digits_of_an_id_stand_for_it(cli):
    first, second = record(), record()

    data = json.loads(cli(f"compare --json {first[:12]} {second[:12].upper()}").out)

    assert [run["run_id"] for run in data["runs"]] == [first, second]


def test_many_runs_with_long_values_fit_into_eighty_columns(cli):
    folder = "/a/very/long/path/to/the/images/of/the/experiment/number"
    for number in range(7):
        record(f"network-of-mine-{number}", {"data/data_path": f"{folder}/{number}/images"})

    lines = cli("compare --experiment tested --best 7").out.splitlines()[:-1]

    assert max(map(len, lines)) <= 80
    cells = [cell for line in lines if "data/data_path" in line for cell in line.split()[1:]]
    assert len(set(cells)) == 7


def test_best_of_an_experiment_come_first_and_the_unfinished_not_at_all(cli):
    for name, accuracy in [("fair", 0.5), ("best", 0.9), ("good", 0.8), ("broken", float("nan"))]:
        wrong = 1 - accuracy
        record(name, metrics={"test_accuracy": accuracy, "test_loss": wrong, "test_ece": wrong})
    record("stopped", metrics={"test_accuracy": 0.95}, status="KILLED")
    record("untested", metrics={"val_accuracy": 0.99})

    best = json.loads(cli("compare --experiment tested --json --best 3").out)

    assert [run["name"] for run in best["runs"]] == ["best", "good", "fair"]
    for metric in ("test_loss", "test_ece"):  # of which less is better
        found = json.loads(cli(f"compare --experiment tested --json --metric {metric}").out)
        assert [run["name"] for run in found["runs"]][:3] == ["best", "good", "fair"]


def test_parameters_as_typed_stay_where_there_are_no_others(cli):
    first, second = record(params={"seed": "0"}), record(params={"seed": "1"})

    data = json.loads(cli(f"compare --json {first} {second}").out)
    assert data["parameters_that_differ"] == {"seed": ["0", "1"]}


def test_run_that_goes_on_is_said_to(cli):
    done = cli(f"compare {record()} {record(status='RUNNING')}")

    assert mentions(done.out, "Note: run 2 is RUNNING", "No parameter differs (0 are the same)")


def test_comparing_leaves_the_run_of_mlflow_run_alone(cli, monkeypatch):
    going = record("given", status="RUNNING")
    monkeypatch.setenv("MLFLOW_RUN_ID", going)

    assert cli(f"compare {record()} {record()}").code == 0
    assert mlflow.get_run(going).info.status == "RUNNING"


@pytest.mark.parametrize(
    "help_of", ["--help", "compare --help"], ids=["the program", "the verb itself"]
)
def test_help_names_the_verb(help_of, cli):
    done = cli(help_of)

    assert done.code == 0
    assert "compare" in done.out
