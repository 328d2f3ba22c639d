"""The batch script: what it says for each shipped configuration, and that nothing in it harms."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from pyclassify.slurm import config, script, topology
from pyclassify.slurm.environment import choose

GOLDEN = Path(__file__).parent / "golden"
PARAMETERS = {
    "ulysses": {"devices": 2},
    "leonardo": {"devices": 4, "num_nodes": 2},
    "perlmutter": {"devices": 4},
}


def render(given, parameters, **facts):
    read = config.read(given)
    decided = topology.decide(read, parameters, {"devices": 1, "num_nodes": 1})
    known = {
        "run_id": "RUN_ID",
        "experiment_id": "1",
        "tracking_uri": "sqlite:////home/me/pyclassify/mlflow.db",
        "name": read.job_name or "pyclassify",
        "folder": "/scratch/me/pyclassify-slurm/RUN_ID",
        "command": f"python -m pyclassify train --devices={decided.tasks}",
        "activation": choose(read, None, Path(), "local").activation if read.environment else (),
        "version": "0.1.0",
    }
    return script.render(read, script.Facts(topology=decided, **{**known, **facts}))


def check(text, *checker):
    return subprocess.run([*checker, "-"], input=text, text=True, capture_output=True)


@pytest.mark.parametrize("name", PARAMETERS)
def test_shipped_configurations_make_the_scripts_that_were_reviewed(name):
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
EVERY = {
    **{"account": "a", "qos": "q", "reservation": "r", "constraint": "a&b", "nodelist": "n[1-2]"},
    **{"exclude": "n3", "cpus_per_task": 2, "mem": 8000, "time": 5, "exclusive": True},
    **{"dependency": "afterok:1", "signal": "B:USR1@90", "requeue": True, "mail_type": ["END"]},
    **{"mail_user": "me@here", "setup": ["ulimit -n 4096"], "container": "an image.sif"},
}


@pytest.mark.parametrize("given", [{}, ODD, EVERY, {"gpus": 0}], ids=["none", "odd", "all", "cpu"])
@pytest.mark.parametrize("nodes", [1, 2])
def test_scripts_are_good_bash(given, nodes):
    text = render(given, {"devices": 2, "num_nodes": nodes})

    assert check(text, "bash", "-n").stderr == ""
    if shutil.which("shellcheck"):
        assert check(text, "shellcheck").stdout == ""


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sh")), ids=lambda path: path.stem)
def test_reviewed_scripts_are_good_bash(path):
    assert check(path.read_text(), "bash", "-n").stderr == ""
    if shutil.which("shellcheck"):
        assert check(path.read_text(), "shellcheck").stdout == ""


def test_nothing_that_is_quoted_runs(tmp_path):
    text = render(ODD, {"devices": 2}, folder=str(tmp_path / "$(touch pwned)"))
    without_slurm = text.partition("trap finish EXIT")[0]

    environment = {"PATH": "/usr/bin:/bin"}
    subprocess.run(["bash", "-c", f'{without_slurm}\necho "$A"'], cwd=tmp_path, env=environment)

    assert list(tmp_path.iterdir()) == []


def test_every_option_of_the_course_has_its_line():
    given = json.loads(Path("slurm/ulysses.json").read_text())
    lines = render(given, {"devices": 2}).splitlines()

    options = {
        line.removeprefix("#SBATCH ").partition("=")[0] for line in lines if "#SBATCH" in line
    }
    asked = "partition job-name nodes gpus ntasks-per-node mem time output error gpus-per-node"
    assert options >= {f"--{name}" for name in asked.split()}
    assert "export SLURM_NTASKS_PER_NODE=2" in lines


def test_name_of_a_project_is_one_line_of_it(tmp_path):
    text = render({}, {}, name='a"\ntouch pwned\n#')
    assert '#SBATCH --job-name="a\\" touch pwned #"\n' in text


def test_signal_for_the_script_alone_reaches_the_training():
    text = render({"signal": "B:USR1@90"}, {"devices": 2})
    assert "trap 'kill -USR1" in text
