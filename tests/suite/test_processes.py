"""The processes that tests start: as real as those of a shell."""

import shutil
import signal
import subprocess

import pytest

from tests.support import processes
from tests.support.waiting import wait_until


def test_forked_process_has_its_folder_environment_and_output(tmp_path):
    code = (
        "import os, sys; print(os.getcwd(), os.environ['A'], sys.argv); print('b', file=sys.stderr)"
    )

    done = processes.run("-c", code, "x", cwd=tmp_path, env={"A": "1"})

    assert (done.returncode, done.stderr) == (0, "b\n")
    assert done.stdout == f"{tmp_path} 1 ['-c', 'x']\n"


def test_forked_process_has_imported_torch_but_no_test(tmp_path):
    code = "import sys; print('torch' in sys.modules, 'tests' in sys.modules)"

    assert processes.run("-c", code, cwd=tmp_path).stdout == "True False\n"


def test_forked_process_knows_the_stores_that_this_package_brings_to_mlflow(tmp_path):
    code = "import mlflow; print(type(mlflow.MlflowClient('spool:///x')._tracking_client.store))"

    done = processes.run("-c", code, cwd=tmp_path)

    assert "SpoolStore" in done.stdout, done.stderr


def test_forked_process_runs_the_package_of_its_folder(tmp_path):
    package = shutil.copytree(processes.ROOT / "pyclassify", tmp_path / "pyclassify")
    (package / "__main__.py").write_text("import sys\nprint(__name__, sys.argv[1:])\nsys.exit(3)\n")

    done = processes.run("-m", "pyclassify", "train", "--a=1", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (3, "__main__ ['train', '--a=1']\n")


@pytest.mark.parametrize("way", [{}, {"finalizes": True}, {"fresh": True}])
def test_process_is_stopped_by_signals_and_ends_with_its_exit_handlers(way, tmp_path):
    code = "import atexit, time; atexit.register(open, 'left', 'w'); open('begun', 'w'); "
    with processes.start("-c", code + "time.sleep(600)", cwd=tmp_path, **way) as process:
        wait_until((tmp_path / "begun").exists, "it has begun")
        process.send_signal(signal.SIGINT)

        assert process.wait() == -signal.SIGINT
    assert (tmp_path / "left").exists()


def test_killed_process_says_which_signal():
    process = processes.start("-c", "import time; time.sleep(600)")

    process.kill()

    assert process.wait() == -signal.SIGKILL


def test_process_that_does_not_end_is_said_with_its_arguments(monkeypatch):
    monkeypatch.setattr("tests.support.waiting.HEADROOM", 1)
    process = processes.start("-c", "import time; time.sleep(600)")

    with pytest.raises(subprocess.TimeoutExpired, match="sleep"):
        process.wait(0.01)
    process.kill()
