"""Credentials stay out of the configuration, the script and the parameters of a job."""

import pytest

from pyclassify.slurm import config, plan, script
from tests.support.slurm_jobs import write_project


@pytest.mark.parametrize(
    ("key", "line", "name"),
    [
        ("setup", "export WANDB_API_KEY=0123456789", "WANDB_API_KEY"),
        ("setup", "export HF_TOKEN='0123456789'", "HF_TOKEN"),
        ("setup", "cd x;A=b PASSWORD=0123456789 login", "PASSWORD"),
        ("setup", "wandb login --api-key 0123456789", "--api-key"),
        ("srun_args", "--export=ALL,HF_TOKEN=0123456789", "HF_TOKEN"),
        ("sbatch_args", "--token=0123456789", "--token"),
    ],
)
def test_credential_in_a_line_is_refused_and_not_repeated(key, line, name):
    message = rf'{key} .*{name}.*credential.*"exports": ..\w+": null'
    with pytest.raises(ValueError, match=message) as info:
        config.parse_config({key: [line]})
    assert "0123456789" not in str(info.value)


def test_password_of_an_image_is_refused():
    with pytest.raises(ValueError, match=r"^container .*credential"):
        config.parse_config({"container": "docker://me:pass@registry.example.org/image"})


@pytest.mark.parametrize(
    "line",
    [
        "export HF_TOKEN=$(cat ~/.token)",
        'export HF_TOKEN="$MINE"',
        "pip install -q git+ssh://git@h/x",
    ],
)
def test_credential_that_is_read_in_the_job_is_accepted(line):
    assert config.parse_config({"setup": [line]}).setup == (line,)


def make(project, given, **configured):
    return plan.make_plan(str(project), "main", given, None, {"environment": "none", **configured})


def test_credential_among_the_parameters_is_refused(tmp_path):
    project = write_project(tmp_path, "")
    with pytest.raises(
        ValueError, match=r"^-P api_token looks like .*give .exports.: ..API_TOKEN"
    ) as info:
        make(project, {"api_token": "0123456789"})
    assert "0123456789" not in str(info.value)


def test_password_of_the_tracking_uri_is_not_in_the_script(tmp_path, monkeypatch):
    uri = "postgresql://me:pass@db.example.org/x"
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: uri)

    planned = make(write_project(tmp_path, ""), {})
    text = planned.render_script("RUN_ID", "1")

    assert planned.tracking_store.uri == uri  # which comes with the job's environment
    assert "MLFLOW_TRACKING_URI=" not in text
    assert "me:pass" not in text


def test_credential_in_a_script_is_named_by_its_line_and_not_repeated():
    text = "#!/bin/bash\ncurl https://me:0123456789@example.org/x\n"
    with pytest.raises(
        ValueError, match=r"line 2\b.*`pyclassify slurm render`.*\"exports\""
    ) as info:
        script.check_script(text)
    assert "0123456789" not in str(info.value)


def test_exported_credential_is_not_in_the_script(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "0123456789")

    planned = make(write_project(tmp_path, ""), {}, exports={"HF_TOKEN": None, "MODE": "fast"})
    text = planned.render_script("RUN_ID", "1")

    assert "export MODE=fast\n" in text
    assert "HF_TOKEN" not in text
    assert "0123456789" not in text
