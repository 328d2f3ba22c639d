"""What deploy/Dockerfile runs, without a docker daemon, and deploy/nginx-model.conf before it."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import requests

from benchmarks.fuzz_requests import save_tiny_model
from tests.support import documented
from tests.support.ports import free_ports
from tests.support.required import ROOT, program
from tests.support.waiting import scale

pytestmark = pytest.mark.environment

NOBODY = 65534
# A namespace in which the server is process 1, and another user that reads all and writes nothing.
AS_CONTAINER = ["unshare", "--pid", "--fork", "setpriv", "--clear-groups"]
AS_CONTAINER += [f"--reuid={NOBODY}", f"--regid={NOBODY}"]
AS_CONTAINER += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


def read_instructions():
    """Read the Dockerfile: the instruction's name to the text behind it, for each instruction."""
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    assert len(lines) <= 15
    return [tuple(line.split(" ", 1)) for line in lines if line[:1] not in ("", "#")]


def find_instruction(name):
    """Return the text of the only instruction of this name."""
    (text,) = [text for found, text in read_instructions() if found == name]
    return text


class Container:
    """An environment and a model where the image has them, and a server by the image's command."""

    def __init__(self, folder):
        self.folder, self.model = folder, folder / "model"
        self.port, self.proxied_port = free_ports("model", "nginx").values()
        self.process = None

    def build(self):
        """Run what `docker build` runs, in an environment without a package."""
        save_tiny_model(self.model)
        subprocess.run([sys.executable, "-m", "venv", self.folder / "venv"], check=True)
        # The network is the machine's: certificates, proxies and the package index.
        env = {**os.environ, "PATH": f"{self.folder}/venv/bin:/usr/bin:/bin"}
        env.pop("PYTHONPATH", None)
        subprocess.run(["sh", "-c", find_instruction("RUN")], cwd=self.model, env=env, check=True)

    @property
    def env(self):
        """What the image sets; nothing of this machine, neither git nor a home."""
        pairs = dict(pair.split("=") for pair in find_instruction("ENV").split())
        assert pairs["__pyfunc_model_path__"] == "/model"
        pairs["__pyfunc_model_path__"] = str(self.model)
        return {"PATH": f"{self.folder}/venv/bin", "HOME": "/nonexistent", **pairs}

    def command(self, text):
        """A command in exec form, with this machine's port."""
        return [part.replace("5000", str(self.port)) for part in json.loads(text)]

    @contextlib.contextmanager
    def serving(self):
        """Serve within this context; yield the log's path and the server's process."""
        is_root = os.geteuid() == 0
        command = [*(AS_CONTAINER if is_root else ()), *self.command(find_instruction("CMD"))]
        if is_root:
            command[0], command[3] = program("unshare"), program("setpriv")
        log = self.folder / "log"
        with log.open("w") as output:
            started = subprocess.Popen(
                command, cwd="/", env=self.env, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            end = time.monotonic() + scale(60)
            while not self.is_healthy():
                ended = started.poll() is not None or time.monotonic() > end
                assert not ended, log.read_text()
            server = psutil.Process(started.pid)
            yield log, server.children()[0] if is_root else server
        finally:
            # The end of process 1 ends all processes of its namespace; the end of unshare does not.
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in [*psutil.Process(started.pid).children(recursive=True), started]:
                    process.kill()
            started.wait()

    def is_healthy(self):
        """Run the image's HEALTHCHECK."""
        command = self.command(find_instruction("HEALTHCHECK").partition("CMD ")[2])
        return subprocess.run(command, env=self.env, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def container(tmp_path_factory):
    made = Container(tmp_path_factory.mktemp("container"))
    made.build()
    yield made
    shutil.rmtree(made.folder)  # 0.4 GB


def read_example(container):
    return json.loads((container.model / "serving_input_example.json").read_text())


def test_dockerfile_command_serves_as_another_user_and_ends_at_sigterm(container):
    with container.serving() as (log, server):
        uid = server.uids().effective
        answer = requests.post(
            f"http://127.0.0.1:{container.port}/invocations", json=read_example(container)
        )
        server.send_signal(signal.SIGTERM)
        server.wait(scale(10))

    assert answer.status_code == 200
    assert set(answer.json()["predictions"][0]) == {"classes", "probabilities"}
    assert uid != 0
    assert find_instruction("USER") == f"{NOBODY}:{NOBODY}"
    assert "Application shutdown complete" in log.read_text()
    assert "telemetry" not in log.read_text()
    assert not container.is_healthy()


def test_dockerfile_environment_has_no_torch(container):
    packages = {each.name for each in (container.folder / "venv").glob("lib/*/site-packages/*")}

    assert "onnxruntime" in packages
    assert not {"pyclassify", "lightning", "torch", "torchvision"} & packages


def test_documented_build_takes_python_of_the_model(container):
    (command,) = [
        each.text for each in documented.list_commands() if each.text.startswith("docker build")
    ]
    (container.folder / "alexnet").symlink_to(container.model)

    shown = subprocess.run(
        ["sh", "-c", command.replace("docker", "echo", 1)],
        cwd=container.folder,
        capture_output=True,
        text=True,
        check=True,
    )

    version = ".".join(map(str, sys.version_info[:3]))
    assert f"--build-arg PYTHON={version} -f deploy/Dockerfile alexnet" in shown.stdout
    assert version.startswith(find_instruction("ARG").removeprefix("PYTHON="))


@contextlib.contextmanager
def proxied(container):
    """Run nginx with the site before the server; yield the site's address."""
    folder = container.folder / "nginx"
    folder.mkdir()
    site = (ROOT / "deploy" / "nginx-model.conf").read_text()
    replaced = {"listen 80;": f"listen 127.0.0.1:{container.proxied_port};"}
    replaced["127.0.0.1:5001"] = f"127.0.0.1:{container.port}"
    for old, new in replaced.items():
        assert old in site
        site = site.replace(old, new)
    paths = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr; events {{}}\n"
        f"http {{ access_log off; {paths}\n{site}}}\n"
    )
    nginx = program("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    process = subprocess.Popen([nginx, "-e", "stderr", "-c", folder / "nginx.conf"])
    url = f"http://127.0.0.1:{container.proxied_port}"
    try:
        end = time.monotonic() + scale(20)
        while time.monotonic() < end:
            with contextlib.suppress(requests.ConnectionError):
                requests.get(f"{url}/ping")
                break
        yield url
    finally:
        process.terminate()
        process.wait(20)


def test_nginx_before_the_model_shows_no_error_of_mlflow(container):
    with container.serving(), proxied(container) as url:
        ping, other = requests.get(f"{url}/ping"), requests.get(f"{url}/version")
        image = requests.post(f"{url}/invocations", json=read_example(container))
        csv, nested, large = (
            requests.post(f"{url}/invocations", body, headers={"Content-Type": content_type})
            for body, content_type in (
                ("a", "text/csv"),
                ("[" * 9999, "application/json"),
                (b" " * (65 << 20), "application/json"),
            )
        )

    statuses = [each.status_code for each in (ping, other, image, csv, nested, large)]
    assert statuses == [200, 404, 200, 415, 400, 413]
    assert nested.json()["error_code"] == "BAD_REQUEST"
