"""`pyclassify compare` on runs of a real store: its page, its JSON and its errors."""

import json
import sqlite3
from pathlib import Path
from urllib.parse import unquote

import mlflow
import pytest
from scipy.stats import ttest_ind

from pyclassify.cli.main import main
from pyclassify.runs.stats import mean_interval
from pyclassify.tracking.ui import link_comparison
from tests.support.phrases import mentions
from tests.support.runs import log_predictions, record, two_runs
from tests.support.trainings import refusal

PAGE = Path(__file__).with_name("compared.txt")
NOWHERE = "0123456789abcdef" * 2
HELP = "`pyclassify compare --help`"
GOOD, BETTER = (0.80, 0.81, 0.82, 0.79, 0.80), (0.84, 0.86, 0.83, 0.85, 0.87)


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


def test_compare_two_runs_fits_eighty_columns(cli):
    first, second = two_runs()

    done = cli(f"compare {first} {second}")

    text, link = done.out.replace(first, "1" * 32).replace(second, "2" * 32).rsplit("\n", 2)[:2]
    assert (done.code, done.err) == (0, "")
    assert text + "\n" == PAGE.read_text()
    assert unquote(link) == (
        f'http://127.0.0.1:5000/#/compare-runs?runs=["{"1" * 32}","{"2" * 32}"]&experiments=["1"]'
        "&workflowType=machine_learning"
    )


def test_link_of_server_with_password_omits_it():
    link = link_comparison("https://me:secret@runs.example.org/team/", ["a", "b"], ["3", "3"])

    assert unquote(link).startswith('https://runs.example.org/team/#/compare-runs?runs=["a","b"]&e')
    assert 'experiments=["3"]&' in unquote(link)


def test_json_of_two_runs_has_the_content_of_the_page(cli):
    runs = two_runs()

    data = json.loads(cli(f"compare --json {' '.join(runs)}").out)

    assert [run["run_id"] for run in data["runs"]] == runs
    assert data["differing_parameters"]["model/model/dropout"] == ["0.5", None]
    assert data["num_equal_parameters"] == 2
    assert data["metrics"]["test_accuracy"] == {"values": [0.4, 0.8], "differences": [None, 0.4]}
    assert data["metrics"]["test_loss"] == {"values": [1.5, None], "differences": [None, None]}
    assert "system/cpu_utilization_percentage" in data["metrics"]
    assert data["paired_test"]["num_correct"] == [4, 8]
    assert data["paired_test"]["p_value"] == 0.21875
    assert data["notes"] == []


def test_compare_first_digits_of_an_id_finds_the_run(cli):
    first, second = record(), record()

    data = json.loads(cli(f"compare --json {first[:12]} {second[:12].upper()}").out)

    assert [run["run_id"] for run in data["runs"]] == [first, second]


def test_table_of_many_runs_with_long_values_fits_eighty_columns(cli):
    folder = "/a/very/long/path/to/the/images/of/the/experiment/number"
    for number in range(7):
        record(f"network-of-mine-{number}", {"data/data_path": f"{folder}/{number}/images"})

    lines = cli("compare --experiment tested --best 7").out.splitlines()[:-1]

    assert max(map(len, lines)) <= 80
    cells = [cell for line in lines if "data/data_path" in line for cell in line.split()[1:]]
    assert len(set(cells)) == 7


def test_experiment_lists_its_best_finished_runs(cli):
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


def test_typed_parameters_without_others_are_compared(cli):
    first, second = record(params={"seed": "0"}), record(params={"seed": "1"})

    data = json.loads(cli(f"compare --json {first} {second}").out)
    assert data["differing_parameters"] == {"seed": ["0", "1"]}


def test_running_run_is_a_note(cli):
    done = cli(f"compare {record()} {record(status='RUNNING')}")

    assert mentions(done.out, "Note: run 2 is RUNNING", "No parameter differs (0 are equal)")


def test_compare_in_mlflow_run_leaves_its_run_running(cli, monkeypatch):
    running = record("given", status="RUNNING")
    monkeypatch.setenv("MLFLOW_RUN_ID", running)

    assert cli(f"compare {record()} {record()}").code == 0
    assert mlflow.get_run(running).info.status == "RUNNING"


@pytest.mark.parametrize(
    "help_of", ["--help", "compare --help"], ids=["the program", "the command itself"]
)
def test_help_names_the_command(help_of, cli):
    done = cli(help_of)

    assert done.code == 0
    assert "compare" in done.out


def test_significant_difference_names_the_better_run(cli):
    first, second = record(answers="y" * 30 + "n" * 10), record(answers="n" * 10 + "y" * 30)
    third = record(answers="n" * 40)

    assert mentions(join_output(cli(f"compare {first} {second}")), "p = 1)", "Neither run is")
    assert mentions(
        join_output(cli(f"compare {first} {third}")), "(McNemar's", "Run 1 is significantly better"
    )
    assert "Run 2 is significantly better" in join_output(cli(f"compare {third} {first}"))


def join_output(done):
    return " ".join(done.out.split())


@pytest.mark.parametrize(
    ("one", "other", "how"),
    [
        ({"answers": "yny"}, {"answers": "ynyn"}, "4 images, not 3"),
        (
            {"answers": "yny", "digest": "a"},
            {"answers": "yny", "digest": "b"},
            "different content, by",
        ),
    ],
)
def test_other_test_images_are_a_note_and_not_tested(one, other, how, cli):
    data = json.loads(cli(f"compare --json {record(**one)} {record(**other)}").out)

    assert data["paired_test"] is None
    (note,) = data["notes"]
    # the form of this message
    assert note.startswith(f"the test images of run 2 differ from those of run 1 ({how}")


@pytest.mark.parametrize(
    ("indices", "labels", "how"),
    [([0, 1, 3], [0, 1, 2], "different indices"), ([0, 1, 2], [0, 1, 1], "different labels")],
)
def test_other_indices_or_labels_are_a_note(indices, labels, how, cli):
    first, second = record(answers="yny"), record()
    log_predictions(second, indices, labels, labels)

    assert f"run 1 ({how})" in join_output(cli(f"compare {first} {second}"))


def test_predictions_in_another_order_are_paired_by_index(cli):
    first, second = record(answers="yny"), record()
    log_predictions(second, [2, 0, 1], [2, 0, 1], [2, 0, 1])

    data = json.loads(cli(f"compare --json {first} {second}").out)
    assert (
        data["paired_test"]["only_first_correct"],
        data["paired_test"]["only_second_correct"],
    ) == (0, 1)


def test_missing_or_broken_predictions_are_notes(cli):
    lacking, broken, twice = record(), record(), record(answers="yn")
    mlflow.MlflowClient().log_text(broken, "[]", "predictions.json")
    log_predictions(twice, [0], [0], [0])  # which appends

    notes = json.loads(cli(f"compare --json {lacking} {broken} {twice}").out)["notes"]

    assert len(notes) == 3
    assert mentions(notes[0], "predictions.json", "run 2", "index, label and predicted")
    assert mentions(notes[1], "predictions.json", "run 3", "image 0 more than once")
    assert mentions(notes[2], "run 1", "no predictions.json")


def record_parent(values, name="net-5seeds", **more):
    mean, (low, high) = sum(values) / len(values), mean_interval(values)
    deviation = (sum((each - mean) ** 2 for each in values) / (len(values) - 1)) ** 0.5
    found = {"mean": mean, "std": deviation, "low": low, "high": high}
    metrics = {f"test_accuracy_{key}": value for key, value in found.items()}
    run_id = record(name, metrics={**metrics, "seeds_finished": len(values)}, **more)
    mlflow.MlflowClient().set_tag(run_id, "pyclassify.seeds", f"0 to {len(values) - 1}")
    return run_id


def record_child(parent, **more):
    run_id = record(**more)
    mlflow.MlflowClient().set_tag(run_id, "mlflow.parentRunId", parent)
    return run_id


def test_two_parents_are_compared_by_welchs_test(cli):
    runs = record_parent(GOOD), record_parent(BETTER)

    test = json.loads(cli(f"compare --json {' '.join(runs)}").out)["seeds_test"]

    expected = ttest_ind(BETTER, GOOD, equal_var=False)
    assert (test["metric"], test["num_seeds"]) == ("test_accuracy", [5, 5])
    assert test["means"] == pytest.approx([0.804, 0.85])
    assert test["p_value"] == pytest.approx(expected.pvalue)
    assert test["interval_95"] == pytest.approx([*expected.confidence_interval()])


def test_page_of_two_parents_explains_the_test(cli):
    done = cli(f"compare {record_parent(GOOD)} {record_parent(BETTER)}")

    output = " ".join(done.out.split())
    # the form of this message
    assert (
        "Test over seeds: the mean test_accuracy of run 1 is 0.8040 (5 seeds), and that of run 2 "
        "is 0.8500 (5 seeds). Run 2 is significantly better (Welch's t-test, p = 0.001)."
    ) in output
    assert mentions(output, "between +0.0255 and +0.0665 (95% confidence interval)")
    assert mentions(output, "Note: run 1 is the parent of 5 finished seeds", "means, standard")
    assert "predictions.json" not in output


def test_insignificant_difference_names_neither_recipe(cli):
    output = " ".join(cli(f"compare {record_parent(GOOD)} {record_parent(GOOD[1:])}").out.split())

    assert mentions(output, "(Welch's t-test, p = ", "Neither run is")


def test_parents_with_other_test_images_are_not_tested(cli):
    runs = record_parent(GOOD, digest="aaaa"), record_parent(BETTER, digest="bbbb")

    data = json.loads(cli(f"compare --json {' '.join(runs)}").out)
    assert data["seeds_test"] is None
    assert mentions(data["notes"][-1], "test images of run 2", "run 1")


def test_parent_with_one_finished_seed_is_not_tested(cli):
    single = record("net-5seeds", metrics={"test_accuracy_mean": 0.8, "seeds_finished": 1})
    mlflow.MlflowClient().set_tag(single, "pyclassify.seeds", "0 to 4")

    data = json.loads(cli(f"compare --json {single} {record_parent(GOOD)}").out)
    assert data["seeds_test"] is None
    assert data["notes"][0].startswith("run 1 is the parent of 1 finished seed; ")
    assert "two finished seeds" in data["notes"][-1]


def test_parent_and_its_child_are_notes_and_not_tested(cli):
    parent = record_parent(GOOD)
    child = record_child(parent, answers="yn")

    data = json.loads(cli(f"compare --json {parent} {child}").out)
    assert data["notes"] == [  # the form of these messages
        "run 1 is the parent of 5 finished seeds; its metrics are their means, standard deviations "
        "and confidence intervals",
        "run 2 is one of the seeds of run 1, and is part of its means",
    ]
    assert data["paired_test"] is data["seeds_test"] is None


def test_rerun_of_a_parent_names_its_seeds(cli):
    parent = record_parent(GOOD)
    ids = [record_child(parent, name=f"net-seed{seed}") for seed in (0, 1)]

    output = refusal(cli(f"rerun {parent}"))
    assert mentions(output, parent, "2 seeds", f"{ids[0]} (net-seed0), {ids[1]} (net-seed1)")


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        # the forms of these messages
        ("", ["compare needs two or more different runs; give their IDs, or --experiment NAME"]),
        ("--experiment tested --best 1", ["invalid --best: 1 (expected 2 or more)"]),
        # of the same kinds, or Python's own
        (NOWHERE, ["compare", "two or more", "--experiment NAME"]),
        (f"{NOWHERE} {NOWHERE}", ["compare", "two or more", "--experiment NAME"]),
        ("--experiment tested --best x", ["argument --best: invalid int", "'x'", HELP]),
        (f"--experiment tested {NOWHERE}", ["run IDs", "--experiment"]),
        (f"--best 3 {NOWHERE}", ["--best", "--experiment"]),
        ("--exp tested", ["unknown option '--exp'"]),
        (f"best {NOWHERE}", ["invalid run ID: 'best' (expected 32 hexadecimal digits, or the "]),
    ],
)
def test_invalid_command_line_exits_2(line, facts, cli):
    assert_refused(cli(f"compare {line}"), *facts, code=2)


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        (f"{NOWHERE} {NOWHERE[::-1]}", [f"no run {NOWHERE} at sqlite:///"]),
        ("01234567 76543210", ["no run", "01234567", "sqlite:///"]),
        ("--experiment testet", ["no experiment 'testet' at", "Did you mean 'tested'?"]),
        (
            "--experiment x",
            ["no experiment 'x' at sqlite:///", "existing experiments: Default, tested"],
        ),
        ("--experiment tested", ["experiment 'tested'", "no finished runs"]),
    ],
)
def test_missing_run_or_experiment_exits_1(line, facts, cli):
    assert_refused(cli(f"compare {line}"), *facts)


def assert_refused(done, *facts, code=1):
    assert done.out == ""
    assert mentions(refusal(done, code), *facts)


def test_unknown_metric_names_similar_ones(cli):
    record()

    done = cli("compare --experiment tested --metric test_acuracy")

    assert_refused(done, "'tested'", "metric 'test_acuracy'", "test_accuracy")


def test_experiment_with_one_finished_run_fails(cli):
    run_id = record()
    record(status="FAILED")

    done = cli("compare --experiment tested")
    assert_refused(done, "'tested'", "one finished run", "'test_accuracy'", run_id)


def test_same_run_by_two_ids_fails(cli):
    run_id = record()

    assert_refused(cli(f"compare {run_id} {run_id[:10]}"), run_id, "two")


def test_deleted_run_names_the_command_that_restores_it(cli):
    run_id = record("old")
    mlflow.MlflowClient().delete_run(run_id)

    facts = (f"run {run_id} (old) is deleted", f"`mlflow runs restore --run-id {run_id}`")
    assert_refused(cli(f"compare {run_id} {record()}"), *facts)
    assert_refused(cli(f"compare {run_id[:10]} {record()}"), *facts)


def test_deleted_experiment_names_the_command_that_restores_it(cli):
    client = mlflow.MlflowClient()
    client.delete_experiment(client.create_experiment("old"))

    done = cli("compare --experiment old")
    assert_refused(done, "experiment 'old' is deleted", "`mlflow experiments restore")


def test_run_without_metrics_fails(cli):
    run_id = record("early", metrics={}, status="FAILED")

    assert_refused(cli(f"compare {record()} {run_id}"), f"{run_id} (early, FAILED)", "no metrics")


def test_ambiguous_first_digits_fail(cli, tmp_path):
    ids = ["abcdef01" * 4, "abcdef0123456789" * 2]
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        for run_id in ids:
            change = "UPDATE runs SET run_uuid = ? WHERE run_uuid = ?"
            database.execute(change, [run_id, record(metrics={})])
            database.commit()
    database.close()

    assert_refused(cli("compare abcdef01 12345678"), "abcdef01", "more than one", "more digits")


def test_missing_database_fails_and_is_not_created(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")

    assert main(["compare", NOWHERE, NOWHERE[::-1]]) == 1
    assert capsys.readouterr().err == (  # the form of this message
        f"pyclassify: error: there is no database at sqlite:///{tmp_path}/none.db; run the "
        "command in the folder of the runs, or set MLFLOW_TRACKING_URI\n"
    )
    assert not (tmp_path / "none.db").exists()


def test_unreachable_server_is_named_without_its_password(capsys, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    assert main(["compare", NOWHERE, NOWHERE[::-1]]) == 1
    output = capsys.readouterr().err
    assert output.startswith("pyclassify: error: ")
    assert mentions(output, "http://***@127.0.0.1:9", "connection refused")
    assert output.count("\n") == 1
    assert "secret" not in output


def test_option_before_the_command_fails(cli):
    done = cli("--seed 3 compare")

    assert_refused(done, "options", "pyclassify compare ...", code=2)
