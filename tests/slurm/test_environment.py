"""The tracking store of a job, and its environment."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.utils.conda import _get_conda_env_name

from pyclassify.slurm import config, environment


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db"),
        ("sqlite:////abs/mlflow.db?timeout=60", "sqlite:////abs/mlflow.db?timeout=60"),
        ("mlruns", "file://{here}/mlruns"),
        ("file:///abs/mlruns", "file:///abs/mlruns"),
        ("https://tracking.example.org", "https://tracking.example.org"),
        ("databricks", "databricks"),
    ],
)
def test_relative_tracking_uri_becomes_absolute(uri, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolved = environment.resolve_tracking_uri(uri)
    assert (resolved.uri, resolved.has_password) == (expected.format(here=tmp_path), False)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "0.0.0.0"])
def test_server_on_loopback_is_refused_with_the_reachable_uri(host):
    name = os.uname().nodename
    uri = f"MLFLOW_TRACKING_URI=http://{name}:5000/mlflow"
    message = f"compute nodes can't reach .*local to this host.*--host 0.0.0.0, and set {uri}$"
    with pytest.raises(ValueError, match=message):
        environment.resolve_tracking_uri(f"http://{host}:5000/mlflow")


def test_database_on_loopback_is_refused_without_its_password():
    message = r"can't reach .*//\*\*\*@localhost/db\b.*; set MLFLOW_TRACKING_URI to a database"
    with pytest.raises(ValueError, match=message) as info:
        environment.resolve_tracking_uri("postgresql://me:pass@localhost/db")
    assert "--host" not in str(info.value)


def test_tracking_uri_with_password_is_recognized():
    assert environment.resolve_tracking_uri(
        "postgresql://me:pass@db.example.org/mlflow"
    ).has_password


def test_database_in_memory_is_refused():
    with pytest.raises(ValueError, match="in the memory of this process; give a file"):
        environment.resolve_tracking_uri("sqlite:///:memory:")


def test_database_on_a_network_file_system_is_warned_of(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nhome:/export {tmp_path}/ho\\040me nfs4 rw 0 0\n")
    (tmp_path / "ho me").mkdir()
    kind = environment._detect_file_system(tmp_path / "ho me/me/mlflow.db", mounts)
    assert (kind, environment._detect_file_system(tmp_path / "else", mounts)) == ("nfs4", "ext4")

    monkeypatch.setattr(environment, "_detect_file_system", lambda path: kind)
    assert (
        "on a network file system (nfs4)"
        in environment.resolve_tracking_uri("sqlite:///a.db").warning
    )


CONDA = SimpleNamespace(env_type="conda_env", env_config_path="conda.yaml")


def activation(given, manager=None, project=CONDA):
    return "\n".join(
        environment.choose_environment(
            config.parse_config(given), project, Path(), manager
        ).activation
    ).replace("# shellcheck source=/dev/null\n", "")


def test_conda_environment_is_activated_by_its_hook():
    lines = activation({"environment": "mine"}).splitlines()
    assert lines[0] == 'eval "$("${CONDA_EXE:-conda}" shell.bash hook)"'
    assert lines[1].startswith("conda activate mine || fail ")


@pytest.mark.parametrize(
    ("marker", "command"),
    [
        ("conda-meta/history", "conda activate {folder} ||"),
        ("bin/activate", "source {folder}/bin/"),
    ],
)
def test_environment_in_a_folder_is_activated_by_its_kind(marker, command, tmp_path, monkeypatch):
    (tmp_path / marker).parent.mkdir()
    (tmp_path / marker).touch()
    monkeypatch.setenv("ENVIRONMENTS", str(tmp_path.parent))
    given = {"environment": f"$ENVIRONMENTS/{tmp_path.name}"}
    assert command.format(folder=tmp_path) in activation(given)


def test_folder_without_an_environment_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"contains neither bin/activate nor conda-meta; give"):
        activation({"environment": str(tmp_path)})


def test_environment_wins_over_the_manager():
    assert "activate mine" in activation({"environment": "mine"}, manager="local")
    assert activation({"environment": "none"}, manager="conda") == ""


def test_without_environment_the_manager_builds_before_the_submission(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    built = []
    monkeypatch.setattr("mlflow.utils.conda.get_or_create_conda_env", built.append)

    chosen = environment.choose_environment(config.Config(), CONDA, Path(), manager=None)
    chosen.build()

    assert built == ["conda.yaml"]
    assert f"conda activate {_get_conda_env_name('conda.yaml')} ||" in chosen.activation[1]


def test_local_manager_activates_the_environment_of_the_submission():
    assert "/bin/activate" in activation({}, manager="local")


def test_virtualenv_of_a_project_for_conda_follows_its_packages(tmp_path):
    def activate(*packages):
        pip = "".join(f"\n    - {package}" for package in packages)
        text = f"dependencies:\n- python=3.11\n- pip\n- pip:{pip}\n"
        (tmp_path / "conda.yaml").write_text(text)
        project = SimpleNamespace(env_type="conda_env", env_config_path=tmp_path / "conda.yaml")
        return activation({}, "virtualenv", project)

    assert "/bin/activate" in activate("numpy")
    assert activate("numpy") == activate("numpy") != activate("numpy", "scipy")
