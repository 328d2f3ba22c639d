"""The container image of a job, and the folders that are bound into it."""

import shlex

import pytest

from pyclassify.slurm import environment, plan
from tests.support.slurm_jobs import write_project


def test_relative_image_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "a.sif").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ("a.sif", "$SCRATCH/a.sif", "~/a.sif")
    assert {environment.resolve_image(name) for name in names} == {f"{tmp_path}/a.sif"}


def test_image_of_a_registry_stays_as_given():
    assert environment.resolve_image("docker://ubuntu:24.04") == "docker://ubuntu:24.04"


def test_image_that_is_missing_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^container is .*a.sif.* but .*a.sif does not exist; give"
    ):
        environment.resolve_image(str(tmp_path / "a.sif"))


def test_container_binds_the_folders_of_store_and_data(tmp_path, monkeypatch):
    project = write_project(tmp_path / "project", "", "data_path: string")
    for name in ("store", "images"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("mlflow.get_tracking_uri", lambda: f"sqlite:///{tmp_path}/store/mlflow.db")
    given = {"data_path": f"{tmp_path}/images"}
    chosen = {"container": "docker://ubuntu", "work_dir": str(tmp_path / "runs")}

    argv = shlex.split(
        plan.make_plan(str(project), "main", given, None, chosen).render_script("RUN_ID", "1"),
        comments=True,
    )

    bound = {argv[n + 1] for n, word in enumerate(argv) if word == "--bind"}
    folders = ("runs/RUN_ID", "store", "images")
    assert bound == {",".join(f"{tmp_path}/{name}" for name in folders)}


def test_project_for_docker_is_refused_with_the_key_to_give(tmp_path):
    text = (write_project(tmp_path, "") / "MLproject").read_text()
    (tmp_path / "MLproject").write_text(f"{text}docker_env: {{image: mine}}\n")

    with pytest.raises(ValueError, match=r'foreign .*Docker.*"container"'):
        plan.make_plan(str(tmp_path), "main", {}, None, {"environment": "none"})
