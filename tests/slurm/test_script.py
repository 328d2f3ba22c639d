"""The batch script: its text for the shipped configurations, and the quoting of values."""

import json
import subprocess
from pathlib import Path

import pytest

from pyclassify.slurm import script
from pyclassify.slurm.config import Config, describe_values
from pyclassify.utils import launcher
from tests.support import required
from tests.support.slurm_jobs import check, render

GOLDEN = Path(__file__).parent / "golden"
PARAMETERS = {
    "ulysses": {"devices": 2},
    "leonardo": {"devices": 4, "num_nodes": 2},
    "perlmutter": {"devices": 4},
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_script_of_shipped_configuration_matches_the_reviewed_one(name):
    given = json.loads(Path("slurm", f"{name}.json").read_text())
    assert render(given, PARAMETERS[name]) == (GOLDEN / f"{name}.sh").read_text()


ODD = {
    "job_name": 'it\'s "a" $(touch pwned) `touch pwned` #1 \\',
    "partition": "p;touch pwned",
    "modules": ["cuda; touch pwned", "it's"],
    "exports": {"A": "$(touch pwned) 'x' \"y\"\nz", "NUMBER": 4},
    "environment": "a b; touch pwned",
    "srun_args": ["--label", "--prolog=a b'c"],
    "sbatch_args": ["--comment=a \"b\" 'c' $d", "--spread-job"],
}
ALL_KEYS = {
    **{"account": "a", "qos": "q", "reservation": "r", "constraint": "a&b", "nodelist": "n[1-2]"},
    **{"exclude": "n3", "cpus_per_task": 2, "mem": 8000, "time": 5, "exclusive": True},
    **{"dependency": "afterok:1", "signal": "B:USR1@90", "mail_type": ["END"]},
    **{"mail_user": "me@here", "setup": ["ulimit -n 4096"], "container": "an image.sif"},
}
REQUEUE = {"requeue": True, "requeue_seconds": 300, "tracking": "spool", "time": "1-12"}


def test_script_of_requeued_job_matches_the_reviewed_one():
    spool = "spool:///scratch/me/pyclassify-slurm/RUN_ID/spool"
    text = render(REQUEUE, {"devices": 2}, tracking_uri=spool)
    assert text == (GOLDEN / "requeue.sh").read_text()


TYPED = {"gpu_type": "nvidia_h100_80gb_hbm3_1g.10gb", "gpu_option": "gres"}
CONFIGS = {
    "typed": TYPED,
    "none": {},
    "odd": ODD,
    "all": ALL_KEYS,
    "cpu": {"gpus": 0},
    "requeue": REQUEUE,
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("nodes", [1, 2])
def test_script_passes_bash_and_shellcheck(config, nodes):
    text = render(config, {"devices": 2, "num_nodes": nodes})

    assert check(text, "bash", "-n").stderr == ""
    required.program("shellcheck")
    assert check(text, "shellcheck").stdout == ""


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sh")), ids=lambda path: path.stem)
def test_reviewed_script_passes_bash_and_shellcheck(path):
    assert check(path.read_text(), "bash", "-n").stderr == ""
    required.program("shellcheck")
    assert check(path.read_text(), "shellcheck").stdout == ""


def test_template_is_read_by_shellcheck_as_bash():
    required.program("shellcheck")
    text = Path(script.__file__).with_name("job.sh.j2").read_text()
    # What is filled in: ${{ name }} is an odd expansion, and what it becomes is quoted.
    filled_in = "SC1083,SC2086,SC2170,SC2242,SC2254,SC2288,SC2296"
    # Code after the task's `exit`, which is quoted in the script.
    checker = ("shellcheck", "--shell=bash", f"--exclude={filled_in},SC2317")
    assert check(text, *checker).stdout == ""


@pytest.mark.parametrize(
    "name", [launcher.SPOOL_ENV, launcher.PROGRESS_ENV, launcher.STATUS_BY_SLURM_ENV]
)
def test_script_sets_each_variable_that_the_training_reads(name):
    assert f"\nexport {name}=" in render({}, {"devices": 1})


def test_script_requeues_after_the_exit_code_of_the_training():
    assert f"[ $? -ne {launcher.REQUEUE_EXIT_CODE} ] || requeue" in render(REQUEUE, {"devices": 1})


# Each program of the script records how it was called, and only the script's own shell runs.
STAND_IN = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" "A=$A" "$MLFLOW_TRACKING_URI" >>"$CALLS"
[ "${0##*/}" != scontrol ] || echo localhost
"""
JOB = {"JOB_ID": "7", "JOB_NAME": "a", "JOB_PARTITION": "p", "JOB_NODELIST": "n", "NTASKS": "4"}
EVIL = "it's a b; touch pwned $(touch pwned) `touch pwned` \" & touch pwned #"
IN_CONDA = {"environment": EVIL}
IN_AN_IMAGE = {"container": EVIL}


@pytest.mark.parametrize("inside", [IN_CONDA, IN_AN_IMAGE], ids=["conda", "image"])
def test_values_in_script_are_not_executed(tmp_path, inside):
    given = {
        **{key: EVIL for key in Config.model_fields if describe_values(key) == "one line of text"},
        **{"job_name": EVIL, "output": EVIL, "modules": [EVIL], "exports": {"A": EVIL}},
        **{"environment": None, "container": None, **inside},
        **{"srun_args": [f"--prolog={EVIL}"], "sbatch_args": [f"--comment={EVIL}"]},
    }
    folder = tmp_path / f"run {EVIL}"
    for name in ("project", "reporter"):
        (folder / name).mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    for name in ["module", "conda", "apptainer", "srun", "scontrol", "squeue", "sacct", "python"]:
        (tmp_path / "bin" / name).write_text(STAND_IN)
        (tmp_path / "bin" / name).chmod(0o755)
    text = render(given, {"devices": 2, "num_nodes": 2}, folder=str(folder), tracking_uri=EVIL)

    variables = {f"SLURM_{name}": value for name, value in (JOB | {"JOB_NUM_NODES": "2"}).items()}
    variables |= {"SLURM_SUBMIT_HOST": "h", "CALLS": str(tmp_path / "calls")}
    variables["PATH"] = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    done = subprocess.run(["bash", "-c", text], cwd=tmp_path, env=variables, capture_output=True)

    assert (done.returncode, done.stderr) == (0, b"")
    assert list(tmp_path.rglob("*pwned")) == []
    called = (tmp_path / "calls").read_text().split("\0")
    assert {"module", "srun", "python" if inside is IN_CONDA else "apptainer"} <= {*called}
    assert {EVIL, f"--prolog={EVIL}", f"A={EVIL}"} <= {*called}
    after = {"conda": "activate", "module": "load"} if inside is IN_CONDA else {"module": "load"}
    for program, subcommand in after.items():
        assert [program, subcommand, EVIL] in [called[n : n + 3] for n in range(len(called))]


def test_script_has_each_option_of_the_course():
    given = json.loads(Path("slurm/ulysses.json").read_text())
    lines = render(given, {"devices": 2}).splitlines()

    options = {
        line.removeprefix("#SBATCH ").partition("=")[0] for line in lines if "#SBATCH" in line
    }
    asked = "partition job-name nodes gpus ntasks-per-node mem time output error gpus-per-node"
    assert options >= {f"--{name}" for name in asked.split()}
    assert "export SLURM_NTASKS_PER_NODE=2" in lines


# A value of each key that is an option of sbatch, as sbatch takes it.
OPTION_VALUES = {
    **{"job_name": "name", "partition": "gpu", "account": "me", "qos": "high", "reservation": "r"},
    **{"constraint": "a100", "nodelist": "n1", "exclude": "n2", "cpus_per_task": 6, "mem": "9G"},
    **{"time": "5", "output": "a.out", "error": "a.err", "exclusive": "user"},
    **{"dependency": "afterok:1", "signal": "USR1@90", "requeue": True, "mail_type": "END"},
    **{"mail_user": "me@here"},
}
# A value of each other key, and what is in the script by it.
OTHER_VALUES = {
    "nodes": (3, "#SBATCH --nodes=3\n"),
    "ntasks_per_node": (3, "#SBATCH --ntasks-per-node=3\n"),
    "gpus": (3, "#SBATCH --gpus=3\n"),
    "gpus_per_task": (3, "#SBATCH --gpus-per-node=3\n"),
    "gpu_type": ("a100", "#SBATCH --gpus-per-node=a100:2\n"),
    "gpu_option": ("gres", "#SBATCH --gres=gpu:2\n"),
    "requeue_seconds": (300, "#SBATCH --signal=B:USR1@300\n"),
    "requeue_attempts": (7, ' "${logs[@]}" 7 || '),
    "sbatch_args": (["--spread-job"], "#SBATCH --spread-job\n"),
    "modules": (["cuda"], "\nmodule load cuda "),
    "setup": (["ulimit -n 4096"], "\nulimit -n 4096\n"),
    "environment": ("mine", "\nconda activate mine"),
    "container": ("image.sif", " image.sif python -m pyclassify.slurm.reporter "),
    "exports": ({"A": 1}, "\nexport A=1\n"),
    "srun_args": (["--label"], " --label \\\n"),
}
# By these the plan decides what the script is rendered with, and the backend whether it waits.
NOT_FOR_THE_SCRIPT = {"work_dir", "tracking", "wait"}

SBATCH_KEYS = {
    key for key, field in Config.model_fields.items() if "sbatch" in field.json_schema_extra
}


@pytest.mark.parametrize("key", sorted(SBATCH_KEYS))
def test_script_has_the_option_of_each_key_of_sbatch(key):
    value = OPTION_VALUES[key]
    option = f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")

    assert f"\n#SBATCH {option}\n" in render({key: value}, {})
    assert f"\n#SBATCH {option}\n" not in render({}, {})


@pytest.mark.parametrize("key", sorted({*Config.model_fields} - SBATCH_KEYS - NOT_FOR_THE_SCRIPT))
def test_script_has_the_value_of_each_other_key(key):
    value, text = OTHER_VALUES[key]
    given = {"requeue": True} if key.startswith("requeue_") else {}
    given |= {"gpus": 2} if key.startswith("gpu_") else {}

    assert text in render({**given, key: value}, {}, parameter_defaults={})
    assert text not in render(given, {}, parameter_defaults={})


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({}, ["--gpus=4", "--gpus-per-node=2"]),
        ({"gpu_type": "a100"}, ["--gpus=a100:4", "--gpus-per-node=a100:2"]),
        ({"gpu_option": "gres"}, ["--gres=gpu:2"]),
        ({"gpu_option": "gres", "gpu_type": "a100"}, ["--gres=gpu:a100:2"]),
        (
            {"gpu_option": "gres", "sbatch_args": ["--gres=tmpfs:1g"]},
            ["--gres=gpu:2,tmpfs:1g"],
        ),
        (
            {"sbatch_args": ["--gres=tmpfs:1g"]},
            ["--gpus=4", "--gpus-per-node=2", "--gres=tmpfs:1g"],
        ),
    ],
)
def test_script_asks_for_gpus_by_one_option(config, options):
    lines = render(config, {"devices": 2, "num_nodes": 2}).splitlines()
    assert [line[8:] for line in lines if line.startswith("#SBATCH --g")] == options


def test_script_without_gpus_asks_for_no_type():
    config = {"gpu_type": "a100", "gpu_option": "gres", "sbatch_args": ["--gres=tmpfs:1g"]}
    lines = render(config, {"devices": 2, "accelerator": "cpu"}).splitlines()
    assert [line[8:] for line in lines if line.startswith("#SBATCH --g")] == ["--gres=tmpfs:1g"]


def test_job_name_with_newline_stays_one_line(tmp_path):
    text = render({}, {}, name='a"\ntouch pwned\n#')
    assert '#SBATCH --job-name="a\\" touch pwned #"\n' in text


def test_signal_to_the_batch_script_is_forwarded_to_the_training():
    text = render({"signal": "B:USR1@90"}, {"devices": 2})
    assert "trap 'kill -USR1" in text
