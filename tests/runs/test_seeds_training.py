"""Trainings with `--seeds` that finish, fail or are stopped: parent run and child runs."""

import os
import re
from statistics import fmean, stdev

import pytest

from tests.support import processes, trainings
from tests.support.processes import ROOT
from tests.support.stores import list_runs


@pytest.fixture(scope="module")
def ended(module_store, tmp_path_factory):
    return trainings.run_all(module_store, tmp_path_factory.mktemp("seeds"))


def statuses(runs):
    return [run.info.status for run in runs]


def test_each_seed_is_a_child_run(ended):
    done = ended["all is well"]

    assert done.code == 0, done.out
    assert statuses([done.parent, *done.children]) == ["FINISHED"] * 3
    assert [run.data.params["seed_everything"] for run in done.children] == ["20", "21"]
    names = [run.info.run_name for run in (done.parent, *done.children)]
    assert names == [f"Moody-Synthetic-{end}" for end in ("2seeds", "seed20", "seed21")]


def test_parent_logs_seed_statistics(ended):
    done = ended["all is well"]
    values = [run.data.metrics["test_accuracy"] for run in done.children]
    metrics = done.parent.data.metrics

    assert metrics["seeds_finished"] == 2
    assert metrics["test_accuracy_mean"] == pytest.approx(fmean(values))
    assert metrics["test_accuracy_std"] == pytest.approx(stdev(values))
    # the quantile of one degree of freedom
    reach = 12.7062 * stdev(values) / 2**0.5
    assert metrics["test_accuracy_high"] == pytest.approx(fmean(values) + reach, abs=1e-4)
    assert {"test_loss_low", "test_ece_mean", "best_val_accuracy_std"} < metrics.keys()


def test_parent_and_children_share_no_metric(ended):
    done = ended["all is well"]

    assert not done.parent.data.metrics.keys() & done.children[0].data.metrics.keys()


def test_parent_logs_recipe_and_data_without_seed(ended):
    done = ended["all is well"]
    ours = {name: v for name, v in done.children[0].data.params.items() if "/" in name}

    assert done.parent.data.params == {**ours, "seeds": "2"}
    assert len(done.parent.inputs.dataset_inputs) == 3


def test_parent_description_links_to_each_run(ended):
    done = ended["all is well"]
    note = done.parent.data.tags["mlflow.note.content"]

    assert re.match(r"\*\*test accuracy: 0\.\d{4} ± 0\.\d{4} \(95% CI .*, 2 seeds\)\*\*\n", note)
    for run in done.children:
        page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        page += "?workflowType=machine_learning"
        value = run.data.metrics["test_accuracy"]
        assert f" [{run.info.run_name}]({page}) | FINISHED | {value:.4f} |" in note


def test_output_ends_with_the_seed_report(ended):
    done = ended["all is well"]
    first, second = (run.info.run_id[:8] for run in done.children)

    assert re.search(
        rf"\nseed 20 +{first}  FINISHED  0\.\d{{4}}\nseed 21 +{second}  FINISHED  0\.\d{{4}}\n"
        r"test_accuracy +0\.\d{4} ± 0\.\d{4} \(95% CI \S+ to \S+, 2 seeds\)\n"
        rf"run +{done.parent.info.run_id}\n\nlook +MLFLOW_SERVER_\w+=false mlflow ui ",
        done.out,
    )


def test_failed_seed_fails_the_parent_with_the_means_of_the_others(ended):
    done = ended["one process fails"]

    assert done.code == 1
    assert statuses([done.parent, *done.children]) == ["FAILED", "FINISHED", "FAILED"]
    accuracy = done.children[0].data.metrics["test_accuracy"]
    assert done.parent.data.metrics["test_accuracy_mean"] == accuracy
    assert re.search(r"^pyclassify: error: .*\bseed 1 of 2 failed\b", done.out, re.M)


def test_first_seed_that_fails_at_start_skips_the_others(ended):
    done = ended["an option is wrong"]

    assert done.code == 2  # of the seed: the command line is invalid
    assert statuses([done.parent, *done.children]) == ["FAILED", "FAILED"]
    assert re.search(
        r"^pyclassify: error: .*\bseed 30 failed before\b.*\bother 1 were\b", done.out, re.M
    )


def test_stop_signal_kills_the_current_seed_and_skips_the_others(ended):
    done = ended["stopped"]

    assert done.code == 1
    assert statuses([done.parent, *done.children]) == ["KILLED", "FINISHED", "KILLED"]
    assert "error: stopped by SIGTERM" in done.out


def test_stopped_parent_logs_statistics_of_finished_seeds(ended):
    parent, (first, _) = ended["stopped"].parent, ended["stopped"].children

    assert parent.data.metrics["seeds_finished"] == 1
    assert parent.data.metrics["test_accuracy_mean"] == first.data.metrics["test_accuracy"]
    assert parent.data.params["model/model"] == "tests.support.networks.Moody"
    assert "| 11 | [Moody-Synthetic-seed11]" in parent.data.tags["mlflow.note.content"]
    assert "| KILLED |  |\n| 12 |  |  |  |\n" in parent.data.tags["mlflow.note.content"]


@pytest.mark.slow
def test_seeds_are_trained_by_new_processes(store, tmp_path):
    command = ["-m", "pyclassify", *trainings.TRAIN.split(), "--seeds", "2", "--seed", "40"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = processes.run(*command, cwd=tmp_path, env=environ, fresh=True)

    assert done.returncode == 0, done.stderr
    assert statuses(list_runs(store)) == ["FINISHED"] * 3
