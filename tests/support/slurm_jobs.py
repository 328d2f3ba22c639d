"""Projects that are submitted to the tests' cluster, and programs in SLURM's place."""

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import mlflow

from pyclassify.slurm import cli, config, script, topology
from pyclassify.slurm.environment import choose_environment
from tests.support import slurm_python
from tests.support.waiting import wait_until

# Code of a project that says what it does.
TELLS = """
    import os, mlflow
    mlflow.log_param("said", "hello")
    print("I run in", os.getcwd())
"""

FINAL = ("FINISHED", "FAILED", "KILLED")


def enter_submission_folder(patch, cluster, empty_store, folder):
    """Go to an empty folder to submit from, with a tracking store beside it."""
    shutil.copy(empty_store, folder)
    (folder / "submitted").mkdir()
    patch.chdir(folder / "submitted")
    for name, value in cluster.env.items():
        patch.setenv(name, value)
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    patch.setenv("MLFLOW_EXPERIMENT_NAME", "tested")
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.delenv("MLFLOW_RUN_ID", raising=False)


def write_project(folder, code, parameters=""):
    """Write a project whose `main` runs some code of Python; returns its folder."""
    folder.mkdir(exist_ok=True)
    declared = f"\n    parameters: {{{parameters}}}" if parameters else ""
    given = "".join(f" {{{each.split(':')[0].strip()}}}" for each in parameters.split(",") if each)
    (folder / "MLproject").write_text(
        f'name: foreign\nentry_points:\n  main:{declared}\n    command: "python train.py{given}"\n'
    )
    (folder / "train.py").write_text(textwrap.dedent(code))
    return folder


def submit_project(project, config=None, forks=True, **options):
    """Submit a project in this environment; returns the submitted run.

    Args:
        project: The project.
        config: The backend's configuration.
        forks: Whether the job's reports to MLflow are forked (see `slurm_python`).
        options: Of `mlflow.projects.run`.
    """
    given = {"synchronous": False, "env_manager": "local", **options}
    if forks:
        config = {"environment": slurm_python.environment(), **(config or {})}
    return mlflow.projects.run(
        str(project), backend="slurm", backend_config=dict(config or {}), **given
    )


def get_run(submitted):
    return mlflow.MlflowClient().get_run(getattr(submitted, "run_id", submitted))


def get_newest_run():
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    return mlflow.MlflowClient().search_runs([experiment], max_results=1)[0]


def get_description(run):
    return run.data.tags.get("mlflow.note.content", "")


def list_artifacts(run, folder="slurm"):
    return {each.path for each in mlflow.MlflowClient().list_artifacts(run.info.run_id, folder)}


def read_log(submitted, ending="out"):
    """Read what the job of a run wrote."""
    folder = get_run(submitted).data.tags["slurm_folder"]
    with contextlib.ExitStack() as stack:
        names = [each.path for each in os.scandir(folder) if each.name.endswith(f".{ending}")]
        return "".join(stack.enter_context(open(name)).read() for name in names)


def wait_for_status(submitted, statuses=FINAL, seconds=120):
    """Wait until the job itself has set the status: nobody asks SLURM here."""

    def has_come():
        return get_run(submitted).info.status in statuses

    try:
        wait_until(has_come, f"the run is {' or '.join(statuses)}", seconds, pause=0.1)
    except TimeoutError as late:
        late.add_note(f"{get_run(submitted).info.status}: {read_log(submitted, 'err')}")
        raise
    return get_run(submitted)


MLPROJECT = """\
name: foreign
entry_points:
  main:
    command: "echo it is done"
  fail:
    command: "echo no such file >&2; exit 1"
  eat:
    command: "python -c 'bytearray(2_000_000_000)'"
  wait:
    parameters:
      file: string
      code: {type: int, default: 0}
    # it does not end by SIGTERM, which is not for the shell that it runs in
    command: "touch {file}.waits; until [ -e {file} ]; do sleep 0.1; done; exit {code}"
  obey:
    parameters:
      file: string
    command: "sh -c 'touch {file}.waits; until [ -e {file} ]; do sleep 0.1; done'"
"""


def write_foreign_project(folder):
    folder.mkdir()
    (folder / "MLproject").write_text(MLPROJECT)
    return folder


ENDED = ("COMPLETED", "FAILED", "OUT_OF_MEMORY", "TIMEOUT", "CANCELLED", "NODE_FAIL")
# Of the script too, which starts MLflow to report.
MEMORY = "1000M"


class Submissions:
    """Jobs of a project on a cluster, each with a name."""

    def __init__(self, cluster, project):
        self.cluster, self.project = cluster, project
        self.client, self.runs = mlflow.MlflowClient(), {}

    def submit(self, name, entry_point="main", parameters=None, **config):
        """As `mlflow run --backend slurm` does, on the node n1."""
        config = {"nodelist": "n1", "mem": MEMORY, "job_name": name, **config}
        self.runs[name] = submit_project(
            self.project,
            config,
            entry_point=entry_point,
            parameters=parameters,
            experiment_name="tested",
        )

    def start(self, *names, code=0, **config):
        """Submit jobs whose task waits for `release`, and for no signal but SIGKILL."""
        for name in names:
            self.submit(name, "wait", {"file": self.file(name), "code": code}, **config)

    def wait_until_started(self, *names):
        for name in names:
            wait_until(Path(f"{self.file(name)}.waits").exists, f"{name} has started")

    def release(self, *names):
        for name in names:
            self.file(name).touch()

    def file(self, name):
        return self.project.parent / name.replace(" ", "-")

    def wait_until_ended(self, *names):
        for name in names:
            self.cluster.wait_for(self.job(name), *ENDED)

    def job(self, name):
        return self.runs[name].job_id

    def status(self, name):
        return self.client.get_run(self.runs[name].run_id).info.status

    def outcome(self, name):
        """The status that the run has by itself, and the one and the words that it then has."""
        at_once = self.status(name)
        assert cli.main(["status", self.runs[name].run_id]) == 0
        return self.described(self.runs[name].run_id, at_once)

    def described(self, run_id, at_once=None):
        run = self.client.get_run(run_id)
        words = run.data.tags.get("mlflow.note.content", "")
        return SimpleNamespace(
            at_once=at_once or run.info.status, status=run.info.status, words=words
        )


VERSIONS = Path(__file__).parents[1] / "slurm" / "versions"


def write_program(folder, name, code):
    """Write a program of Python code into a folder; returns its path."""
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    return program


def prepend_to_path(monkeypatch, folder):
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def make_sacct(version):
    """Make the code of an sacct that prints what was recorded of a version: the columns of -o."""
    return f"""
import sys
lines = open({str(VERSIONS / version) + ".txt"!r}).read().splitlines()
header, *rows = [line.lower().split("|") if n == 0 else line.split("|")
                 for n, line in enumerate(line for line in lines if not line.startswith("#"))]
job = sys.argv[sys.argv.index("-j") + 1]
columns = [name.lower() for name in sys.argv[sys.argv.index("-o") + 1].split(",")]
for row in rows:
    known = dict(zip(header, row))
    if known["jobid"] == job or ("-X" not in sys.argv and known["jobid"].startswith(job + ".")):
        print("|".join(known.get(name, "") for name in columns))
"""


def make_program(stdout="", stderr="", code=0):
    """Make the code of a program that writes to stdout and stderr, and exits."""
    return (
        f"import sys\nsys.stdout.write({stdout!r})\nsys.stderr.write({stderr!r})\nsys.exit({code})"
    )


def make_program_in_turn(counter, *answers):
    """Make the code of a program that prints each output in turn, and then the last one."""
    codes = [make_program(*answer) for answer in answers]
    return f"""
from pathlib import Path
counter = Path({str(counter)!r})
turn = int(counter.read_text()) if counter.exists() else 0
counter.write_text(str(turn + 1))
exec({codes!r}[min(turn, {len(codes) - 1})])
"""


PARAMETER_DEFAULTS = {"devices": 1, "num_nodes": 1}  # of this project's entry points


def render(given, parameters, parameter_defaults=PARAMETER_DEFAULTS, **job):
    """Render the script of a job for a configuration, parameters and fields of its `JobSpec`."""
    parsed = config.parse_config(given)
    decided = topology.decide_topology(parsed, parameters, parameter_defaults)
    defaults = {
        "run_id": "RUN_ID",
        "experiment_id": "1",
        "tracking_uri": "sqlite:////home/me/pyclassify/mlflow.db",
        "name": parsed.job_name or "pyclassify",
        "folder": "/scratch/me/pyclassify-slurm/RUN_ID",
        "command": f"python -m pyclassify train --devices={decided.tasks}",
        "activation": choose_environment(parsed, None, Path(), "local").activation
        if parsed.environment
        else (),
        "version": "0.1.0",
    }
    return script.render_job_script(parsed, script.JobSpec(topology=decided, **{**defaults, **job}))


def check(text, *checker):
    return subprocess.run([*checker, "-"], input=text, text=True, capture_output=True)
