"""Links to the pages of `mlflow ui`, at a run's end."""

import re
import shlex

import pytest

from pyclassify.tracking.ui import (
    BEST_VIEW,
    RECIPE_VIEW,
    format_fast_ui_command,
    link_run,
    link_runs,
)
from tests.support.trainings import SHAPES

LOCAL = "http://127.0.0.1:5000/#/experiments"
TRAINING = "workflowType=machine_learning"


def test_run_ends_with_links_to_itself_and_to_the_views_of_all_runs(cli):
    done = cli(f"train {SHAPES}")
    run = done.runs[0].info

    links = re.findall(r"^http.*$", done.out, re.MULTILINE)
    assert links == [
        f"{LOCAL}/{run.experiment_id}/runs/{run.run_id}?{TRAINING}",
        f"{LOCAL}/{run.experiment_id}/runs?viewStateShareKey={BEST_VIEW.key}&{TRAINING}",
        f"{LOCAL}/{run.experiment_id}/runs?viewStateShareKey={RECIPE_VIEW.key}&{TRAINING}",
    ]


def test_links_lead_to_the_server_without_its_password():
    server = "https://me:secret@runs.example.org/team/"

    assert link_run(server, "3", "a") == (
        f"https://runs.example.org/team/#/experiments/3/runs/a?{TRAINING}"
    )
    assert link_runs(server, "3", "best-1").startswith("https://runs.example.org/team/#/exp")


@pytest.mark.parametrize(
    ("uri", "command"),
    [
        ("sqlite:///mlflow.db", ["mlflow", "ui"]),
        ("sqlite:////a b/x.db", ["mlflow", "ui", "--backend-store-uri", "sqlite:////a b/x.db"]),
    ],
)
def test_quick_start_is_a_command_to_paste(uri, command):
    words = shlex.split(format_fast_ui_command(uri))

    assert words == ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false", *command, "--workers", "1"]


def test_password_of_a_database_is_not_in_the_command():
    for uri in ("postgresql://me:hunter2@db/runs", "postgresql://db/runs?user=me&password=hunter2"):
        assert 'store-uri "$MLFLOW_TRACKING_URI" --workers' in format_fast_ui_command(uri)


def test_server_needs_no_start():
    assert format_fast_ui_command("https://runs.example.org") == "open https://runs.example.org"
