"""`pyclassify follow`: each new version reaches a folder and its server; a broken one does not."""

import os
import shutil
import threading
from collections import Counter

import mlflow
import pytest
import requests

from benchmarks.parts.server import running
from pyclassify.cli.main import main
from pyclassify.data.transforms import Preprocess
from pyclassify.registry.follow import Follower, VersionRefusedError
from pyclassify.serving.artifact import _make_example, save_model
from tests.support import networks
from tests.support.phrases import mentions
from tests.support.waiting import wait_until

NAME = "followed"
ALIAS = "champion"
URI = f"models:/{NAME}@{ALIAS}"
FAIL_IN_SERVER = (
    'import os\nif os.environ.get("TESTED_SERVER"):\n    raise RuntimeError("broken")\n'
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two models, whose classes have the names "old ..." and "new ..."."""
    folder = tmp_path_factory.mktemp("saved")
    for word in ("old", "new"):
        names = [f"{word} {label}" for label in range(3)]
        save_model(folder / word, networks.network(3), Preprocess(8, 8), names)
    return folder


@pytest.fixture
def register(store, saved, tmp_path):
    """Register a copy of a saved model, with changed files, and give it the alias."""
    store.create_registered_model(NAME)

    def register(word, **changes):
        copy = tmp_path / f"{word}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(saved / word, copy)
        for name, content in changes.items():
            (copy / name.replace("_txt", ".txt").replace("_py", ".py")).write_text(content)
        version = store.create_model_version(NAME, str(copy)).version
        store.set_registered_model_alias(NAME, ALIAS, version)
        return str(version)

    return register


@pytest.fixture
def follower(store, tmp_path):
    return Follower(store, NAME, ALIAS, tmp_path / "served")


@pytest.fixture
def follow(tmp_path, monkeypatch, capsys):
    """Run `pyclassify follow --once`; returns the exit code, the output and the error."""
    monkeypatch.chdir(tmp_path)

    def follow(*words):
        code = main(["follow", *(words or (URI, "served")), "--once"])
        return code, *capsys.readouterr()

    return follow


def classify(folder):
    """The name of the class that the model in a folder predicts."""
    table = {"image": [_make_example()]}
    (answer,) = mlflow.pyfunc.load_model(str(folder)).predict(table)
    return answer["classes"][0]


def test_first_version_is_delivered_with_the_command_that_serves_it(follow, register, tmp_path):
    register("old")

    code, output, error = follow()

    assert (code, error) == (0, "")
    current = tmp_path / "served" / "current"
    assert mentions(output, current, f"mlflow models serve -m {current}", "--workers 2")
    assert os.readlink(current) == "1"
    assert classify(current).startswith("old")


def test_new_version_replaces_the_link_and_the_one_before_stays(follower, register, store):
    for word in ("old", "new", "old"):
        version = register(word)
        assert follower.update()
        assert os.readlink(follower.current) == version
        assert not follower.update()
    versions = {each.name for each in follower.current.parent.iterdir() if each.name.isdecimal()}
    assert versions == {"2", "3"}

    store.set_registered_model_alias(NAME, ALIAS, "2")  # a rollback
    shutil.rmtree(store.get_model_version(NAME, "2").source)  # which needs no download
    assert follower.update()
    assert classify(follower.current).startswith("new")


def test_version_whose_link_moved_before_a_kill_is_delivered_again(follower, register):
    register("old")
    follower.update()
    register("new")
    follower.update()
    (follower.current.parent / ".loaded").write_text("1")  # as before the servers had loaded it

    assert follower.update()
    assert not follower.update()
    assert os.readlink(follower.current) == "2"


def test_folder_with_other_files_exits_1_and_keeps_them(follow, register, tmp_path):
    register("old")
    (tmp_path / "served" / "7").mkdir(parents=True)

    code, _, error = follow()

    assert code == 1
    assert mentions(error, tmp_path / "served", "not empty")
    assert [each.name for each in (tmp_path / "served").glob("[!.]*")] == ["7"]


def test_folder_of_another_model_exits_1(follow, register, store):
    register("old")
    follow()
    store.create_registered_model("another")
    store.create_model_version("another", store.get_model_version(NAME, "1").source)
    store.set_registered_model_alias("another", ALIAS, "1")

    code, _, error = follow(f"models:/another@{ALIAS}", "served")

    assert code == 1
    assert mentions(error, NAME, "another folder")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"requirements_txt": "numpy==1.0.0"}, ["version 2", "numpy==1.0.0", "version 1", "stop"]),
        (
            {"endpoint_py": "raise RuntimeError('broken')"},
            ["version 2", "broken", "models:/followed/2"],
        ),
    ],
    ids=["requirements", "broken"],
)
def test_version_that_can_not_be_served_exits_1_and_the_current_one_stays(
    changes, facts, follow, register, tmp_path
):
    register("old")
    follow()
    register("new", **changes)

    code, _, error = follow()

    assert code == 1
    assert mentions(error, *facts)
    assert os.readlink(tmp_path / "served" / "current") == "1"
    assert not (tmp_path / "served" / "2").exists()


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["models:/followed", "served"], ["models:/followed", "models:/NAME@ALIAS"]),
        (["runs:/1/model", "served"], ["runs:/1/model", "models:/NAME@ALIAS"]),
        ([URI, "served", "--every", "0"], ["--every", 0]),
    ],
)
def test_invalid_command_line_exits_2(words, facts, follow):
    code, _, error = follow(*words)

    assert code == 2
    assert mentions(error, *facts)


def test_alias_that_nothing_has_exits_1(follow, register, store):
    register("old")
    store.delete_registered_model_alias(NAME, ALIAS)

    code, _, error = follow()

    assert code == 1
    assert mentions(error, ALIAS)


class Clients:
    """Send requests from four threads within this context, and keep the answers."""

    def __init__(self, port):
        self.url, self.answers, self._is_over = f"http://127.0.0.1:{port}/invocations", [], False
        self._counted = 0

    def __enter__(self):
        self._threads = [threading.Thread(target=self._send) for _ in range(4)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._is_over = True
        for thread in self._threads:
            thread.join()

    def _send(self):
        body = {"inputs": [_make_example()], "params": {"top_k": 1}}
        while not self._is_over:
            try:
                answer = requests.post(self.url, json=body, timeout=60)
                word = answer.json()["predictions"][0]["classes"][0].split()[0]
                self.answers.append((answer.status_code, word))
            except (requests.RequestException, ValueError, KeyError) as error:
                self.answers.append(("failed", repr(error)))

    def count(self):
        """Count the answers since the last call, after at least twenty more."""
        start = self._counted + 20
        wait_until(lambda: len(self.answers) > start, "twenty answers")
        counts = Counter(self.answers[self._counted :])
        self._counted += counts.total()
        return counts


@pytest.mark.slow
def test_server_loads_a_new_version_under_load_without_a_failed_request(
    follower, register, monkeypatch
):
    monkeypatch.setenv("UVICORN_TIMEOUT_WORKER_HEALTHCHECK", "60")
    monkeypatch.setenv("TESTED_SERVER", "1")
    register("old")
    follower.update()
    options = ("--env-manager", "local", "--workers", "2")
    with running(follower.current, *options) as (port, _), Clients(port) as clients:
        assert clients.count().keys() == {(200, "old")}

        register("new")
        follower.update()

        assert clients.count().keys() <= {(200, "old"), (200, "new")}
        assert clients.count().keys() == {(200, "new")}

        code = (follower.current / "endpoint.py").read_text()
        monkeypatch.delenv("TESTED_SERVER")  # which the server still has, and the trial does not
        register("old", endpoint_py=FAIL_IN_SERVER + code)
        with pytest.raises(VersionRefusedError) as raised:
            follower.update()

        assert mentions(str(raised.value), "workers", "mlflow models serve")
        assert os.readlink(follower.current) == "2"
        assert clients.count().keys() == {(200, "new")}


def test_server_of_one_worker_is_left_alone(follower, register):
    register("old")
    follower.update()
    with running(follower.current, "--env-manager", "local") as (port, _), Clients(port) as clients:
        register("new")
        with pytest.raises(VersionRefusedError) as raised:
            follower.update()

        assert mentions(str(raised.value), "no workers", "--workers 2")
        assert os.readlink(follower.current) == "1"
        assert clients.count().keys() == {(200, "old")}
