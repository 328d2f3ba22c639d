"""What `--seeds` takes, which seeds it means, and what it refuses in one line."""

import os
import subprocess
import sys

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment

from pyclassify.runs.seeds import drop_options, list_seeds, read_seed_count
from pyclassify.utils.launcher import choose_rendezvous
from tests.support.phrases import mentions
from tests.support.processes import ROOT


@pytest.mark.parametrize("asked", [["--seeds", "5"], ["--seeds=5"], ["--seeds=2", "--seeds", "5"]])
def test_seeds_are_taken_out_of_the_command_line(asked):
    assert read_seed_count(["train", *asked, "--seed", "3"]) == (5, ["train", "--seed", "3"])
    assert read_seed_count([*asked, "train"]) == (5, ["train"])


@pytest.mark.parametrize("asked", [[], ["--seeds", "1"]])
def test_one_seed_is_an_ordinary_run(asked):
    assert read_seed_count(["validate" if not asked else "fit", *asked])[0] == 1


@pytest.mark.parametrize("option", ["--help", "--print_config", "--model.help"])
def test_showing_something_trains_nothing(option):
    assert read_seed_count(["train", "--seeds", "5", option]) == (1, ["train", option])


@pytest.mark.parametrize("value", ["0", "-1", "abc", "2.5", "5.0", "1e1", "00"])
def test_what_is_no_number_of_seeds_is_refused(value, cli):
    for line in (f"train --seeds {value}", f"fit --seeds={value}"):
        done = cli(line)
        assert done.code == 1
        assert mentions(done.err, "pyclassify: error: ", "seeds", f" {value}", "--seeds 5")
        assert done.err.count("\n") == 1
        assert done.runs == []


def test_missing_number_is_refused():
    with pytest.raises(ValueError, match=r"^seeds .*without a value.* --seeds 5"):
        read_seed_count(["train", "--seeds", "--seed", "3"])


@pytest.mark.parametrize("verb", ["validate", "test", "predict", "prepare"])
def test_verb_that_trains_nothing_is_refused(verb, cli):
    err = cli(f"{verb} --seeds 5").err

    assert mentions(err, "pyclassify: error: ", "seeds", "train", "fit", verb)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ([], 0),
        (["--seed", "7"], 7),
        (["--seed_everything=8"], 8),
        (["--seed", "7", "--seed_everything", "8"], 8),
        (["--config", "recipe.yaml"], 3),
        (["--seed=7", "--config", "recipe.yaml"], 7),
    ],
)
def test_seeds_go_up_from_the_one_that_was_given(words, first, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text("seed_everything: 3")
    monkeypatch.chdir(tmp_path)

    assert [*list_seeds(["train", *words], 3)] == [first, first + 1, first + 2]


@pytest.mark.parametrize("seed", ["true", "false", "null", "-1", "1.5", str(2**32 - 2)])
def test_first_seed_that_is_no_number_or_too_high_is_refused(seed, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"seed_everything: {seed}")

    for given in (["--seed", seed], ["--config", str(file)]):
        with pytest.raises(ValueError, match=rf"^seeds.* 3 .*\b0\b.*{2**32 - 3}.*--seed"):
            list_seeds(["train", *given], 3)


def test_logger_that_keeps_no_run_is_refused(cli):
    done = cli("train --seeds 2 --trainer.logger false")

    assert mentions(done.err, "pyclassify: error: ", "trainer.logger is false", "seeds is 2")
    assert done.err.count("\n") == 1
    assert done.runs == []


def test_options_are_left_out_with_their_values():
    given = ["train", "--seed", "3", "--devices=2", "--seed_everything=4", "--seedling", "5"]

    left = drop_options(given, "--seed", "--seed_everything")
    assert left == ["train", "--devices=2", "--seedling", "5"]


def test_help_names_the_option(cli):
    assert "--seeds N trains" in " ".join(cli("train --help").out.split())


def test_command_line_that_is_wrong_makes_no_run(cli):
    done = cli("trian --seeds 2")

    assert mentions(done.err, "'trian'", "train)")
    assert done.runs == []


def test_processes_of_each_seed_meet_at_a_port_of_their_own(monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29500")

    others = [int(choose_rendezvous(place)["MASTER_PORT"]) for place in range(1, 9)]
    assert choose_rendezvous(0) == {}
    assert len({29500, *others}) == 9
    assert all(10_000 <= port < 30_000 for port in others)


def test_port_in_a_slurm_job_is_counted_from_the_one_that_lightning_takes(monkeypatch):
    job = {"SLURM_JOB_ID": "1234567", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "")  # which restores it afterwards
    del os.environ["MASTER_PORT"]

    by_job = choose_rendezvous(1)
    SLURMEnvironment().main_port  # noqa: B018 - it leaves MASTER_PORT in the environment
    assert by_job == choose_rendezvous(1) != {}


def test_nothing_is_changed_where_no_launcher_names_a_port(monkeypatch):
    for name in ("MASTER_PORT", "SLURM_JOB_ID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)

    assert choose_rendezvous(1) == {}


def test_torch_is_not_loaded_to_hold_seeds_together():
    code = (
        "import sys, pyclassify.cli.main, pyclassify.runs.seeds; sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
