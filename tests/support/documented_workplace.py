"""A folder in which the commands of the documentation run as they stand.

It has what the pages suppose: this project, folders of images, two finished runs, and a registered
model. Commands run in bash, whose `pyclassify`, `python` and `mlflow` fork from the tests' server.
"""

import base64
import contextlib
import io
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import mlflow
import requests
import torchvision
from PIL import Image

from pyclassify.cli.main import main
from pyclassify.spool import records, store
from pyclassify.spool.writer import close_writer
from tests.support import fork_server, forking_python, repositories, servers, tuned
from tests.support.documented import ROOT
from tests.support.documented_table import COMMANDS, INTERRUPTED
from tests.support.images import grow
from tests.support.ports import free_port
from tests.support.service import is_up, write_forking_programs
from tests.support.stores import list_runs
from tests.support.trainings import SHAPES
from tests.support.waiting import scale, wait_until

_LINKED = ("MLproject", "benchmarks", "conda.yaml", "configs", "pyclassify", "slurm", "tests")
# A network that fails in its third step, once.
_FAILING = """
from pathlib import Path
from tests.support.networks import Linear

class Failing(Linear):
    steps = 0

    def forward(self, images):
        self.steps += self.training
        if self.steps == 3 and Path("fails").exists():
            raise ArithmeticError("interrupted")
        return super().forward(images)
"""
_TIMM = """
from tests.support.networks import Linear

def create_model(model_name: str, pretrained: bool = False, num_classes: int = 1000, **kwargs):
    assert model_name == "convnext_atto"
    return Linear(num_classes)
"""
_MODULES = {
    "my/module.py": "from tests.support.networks import Module as LightningModule\n",
    "my/data.py": "from tests.support.networks import Data as LightningDataModule\n",
    "failing.py": _FAILING,
    "timm.py": _TIMM,
}
# Without a shell's redirection, and without another process whose output counts.
_IN_THIS_PROCESS = re.compile(r"pyclassify (?!resume|.*(>|\||--devices))")
_IGNORED = "/*\n!/MLproject\n!/pyclassify\n!/tests\n!/*.py\n!/my\n__pycache__\n"
_MODULE_NAMES = {re.match(r"\w+", name)[0] for name in _MODULES}
_CLASSES = ("cat", "dog")
_DATASETS = ("CIFAR10", "CIFAR100", "MNIST")
_RESNET_DOWNLOAD = "torch/hub/checkpoints/resnet18-f37072fd.pth"


class Workplace:
    """The folder, and what its commands came to.

    Args:
        client: The client of its tracking store, which the environment names.
        folder: Its path; nothing is in it.
        patch: What changes this process for it.
    """

    def __init__(self, client, folder, patch):
        self.client, self.folder = client, folder
        self.done = {}
        self._port = None
        self._ended = contextlib.ExitStack()
        for name in _LINKED:
            (folder / name).symlink_to(ROOT / name)
        self._write_images()
        self._write_modules()
        repositories.start(folder, {".gitignore": _IGNORED})  # `rerun` checks out its commit
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        forking_python.replace_python(patch)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("PYTHONPATH", str(folder))
        patch.setenv("PATH", write_forking_programs(folder / "bin"))
        self._offer_downloads(patch)
        self.run_ids = [
            self._train(f"{SHAPES} --register=alexnet {more}") for more in ("", "--seed=1")
        ]
        self._register()

    def close(self):
        self._ended.close()
        for name in [name for name in sys.modules if name.split(".")[0] in _MODULE_NAMES]:
            del sys.modules[name]

    def _write_images(self):
        classes = [
            f"{split}/{name}" for split in ("train", "val", "test") for name in ("cat", "dog")
        ]
        grow(self.folder / "photos", *classes)
        for name, kind in (("photo.jpg", "JPEG"), ("cat.jpg", "JPEG"), ("dog.png", "PNG")):
            Image.new("RGB", (40, 30), "orange").save(self.folder / name, kind)

    def _write_modules(self):
        for name, text in _MODULES.items():
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(text)
        models = torchvision.models
        (self.folder / "cache" / _RESNET_DOWNLOAD).parent.mkdir(parents=True)
        resnet = tuned.spread(models.resnet18)
        for name in ("resnet18.pth", f"cache/{_RESNET_DOWNLOAD}"):
            tuned.write(self.folder / name, resnet)
        tuned.write(self.folder / "alexnet-owt-7be5be79.pth", tuned.spread(models.alexnet))

    def _offer_downloads(self, patch):
        server = self._ended.enter_context(servers.serve())
        attributes = {name: servers.put_small_set(server, name)[1] for name in _DATASETS}
        for name, values in attributes.items():
            for attribute, value in values.items():
                patch.setattr(getattr(torchvision.datasets, name), attribute, value)
        file = self.folder / "downloads.json"
        file.write_text(json.dumps(attributes))
        patch.setenv("PYCLASSIFY_TESTS_DOWNLOADS", str(file))
        patch.setenv(fork_server.IMPORTED_FIRST, "tests.support.small_downloads")

    def _train(self, options):
        """Train in this process; the ID of the run."""
        line = f"train {options} --trainer.logger.system_metrics=false"
        assert main(line.split()) == 0
        return self._find_newest_run()

    def _find_newest_run(self):
        return list_runs(self.client)[0].info.run_id

    def _register(self):
        """Make four versions of alexnet, the last two of them of the first run."""
        source = self.client.get_model_version("alexnet", "1")
        for _ in range(2):
            self.client.create_model_version("alexnet", source.source, source.run_id)

    def interrupt_run(self):
        """Train until an error in the second epoch; what a command's RUN_ID is."""
        fails = self.folder / "fails"
        fails.touch()
        with contextlib.suppress(ArithmeticError):
            self._train(INTERRUPTED)
        fails.unlink()
        return {"RUN_ID": self._find_newest_run()}

    def spool_run(self):
        """Log a run to its spool in runs/spool, as where the server is away."""
        store.register_scheme()
        experiment = self.client.get_experiment_by_name("tested").experiment_id
        run_id = self.client.create_run(experiment).info.run_id
        root = self.folder / "runs" / "spool"
        folder = records.create_from_server(root, self.client, run_id)
        spooled = mlflow.MlflowClient(f"spool://{root}")
        spooled.log_metric(run_id, "loss", 0.5)
        spooled.log_text(run_id, "text", "a.txt")
        spooled.set_terminated(run_id, "FINISHED")
        close_writer(folder)
        return {"RUN_ID": run_id}

    def serve(self):
        """Start a server of the registered model; what a command's PORT is."""
        if self._port is None:
            line = "mlflow models serve -m models:/alexnet@champion --env-manager local"
            self._port = self._ended.enter_context(self.serving(line, "/ping"))
        return {"PORT": str(self._port)}

    def run(self, command):
        """Run a command of the table, once; its exit code and output."""
        if command not in self.done:
            self.done[command] = self._run(command, COMMANDS[command])
        return self.done[command]

    def _run(self, command, how):
        for before in filter(None, (how.after, how.run)):
            assert self.run(before).code == COMMANDS[before].code, self.run(before).output
        prepared = getattr(self, how.prepared)() if how.prepared else {}
        ids = [find_run(self.run(how.run).output)] if how.run else self.run_ids
        line = add_options(fill(command, how.replaced, prepared, ids), how.added)
        if _IN_THIS_PROCESS.match(line) and not how.interrupted:
            return run_in_this_process(line)
        with self._start(line) as process:
            if how.interrupted:
                wait_until(lambda: re.search(how.printed, process.read()), f"{line} prints")
                process.send_signal(signal.SIGINT)
            code = process.wait(scale(300))
            return SimpleNamespace(code=code, output=process.read(), line=line)

    @contextlib.contextmanager
    def _start(self, line, **variables):
        """Run a line in bash; its process group ends with the context."""
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                ["bash", "-c", line],
                cwd=self.folder,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            process.read = Path(f"/proc/self/fd/{output.fileno()}").read_text
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait(scale(60))

    @contextlib.contextmanager
    def serving(self, command, path, **variables):
        """Run a server on a free port until it answers, and stop it at the end."""
        port = free_port()
        with self._start(command, MLFLOW_PORT=str(port), **variables) as process:

            def is_there():
                assert process.poll() is None, process.read()
                return is_up(f"http://127.0.0.1:{port}{path}")

            wait_until(is_there, f"an answer of {command}", seconds=120)
            yield port

    def start_server(self, command):
        """Run a server of the table, and ask it for its page and for a prediction."""
        how = COMMANDS[command]
        with self.serving(fill(command, how.replaced, {}, self.run_ids), how.path) as port:
            if how.path == "/ping":
                return predict(port)
            return requests.get(f"http://127.0.0.1:{port}{how.path}").text


def fill(command, replaced, prepared, run_ids):
    """Replace the placeholders of a command."""
    for word, value in (replaced or {}).items():
        assert word in command, f"{word} is not in {command}"
        command = command.replace(word, value)
    for word, value in prepared.items():
        command = command.replace(word, value)
    ids = itertools.cycle(run_ids)
    return re.sub(r"\bRUN_ID\b", lambda _: next(ids), command)


def run_in_this_process(line):
    """Run a command of pyclassify, which takes half of the time of a process of its own."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            code = main(shlex.split(line)[1:])
        except SystemExit as ended:
            code = ended.code
    return SimpleNamespace(code=code or 0, output=output.getvalue(), line=line)


def add_options(line, options):
    """Add options to a line; `mlflow run` takes each once, as `-P NAME=VALUE`."""
    if not line.startswith("mlflow run "):
        return f"{line} {options}".rstrip()
    for option in options.split():
        name, _, value = option.removeprefix("--").partition("=")
        line = re.sub(rf" -P {re.escape(name)}=\S+", "", line) + f" -P {name}={value}"
    return line


def find_run(output):
    """Find the ID of the run in the last lines of a training."""
    return re.search(r"(?m)^run +([0-9a-f]{32})$", output)[1]


def predict(port):
    """Ask a served model for a prediction of photo.jpg, in the current folder."""
    image = base64.b64encode(Path("photo.jpg").read_bytes()).decode()
    response = requests.post(f"http://127.0.0.1:{port}/invocations", json={"inputs": [image]})
    response.raise_for_status()
    return response.text
