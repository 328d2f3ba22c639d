"""Several processes that are the first to open an empty PostgreSQL database."""

import os

import pytest

from tests.support import processes
from tests.support.processes import PIPE, STDOUT
from tests.support.service import database, need, started_database
from tests.support.waiting import wait_until

pytestmark = pytest.mark.service
PROCESSES = 4
# Everything is loaded before the start, so that all open the database at the same moment.
OPEN = """
import sys, time
from pathlib import Path
import mlflow
import mlflow.store.tracking.sqlalchemy_store
from pyclassify.spool.experiments import open_experiment
from pyclassify.tracking.search import open_store

Path("ready" + sys.argv[1]).touch()
while not Path("go").exists():
    time.sleep(0.001)
print("experiment", open_experiment(open_store(), "new"))
"""


def test_open_store_by_several_first_processes_makes_one_database(tmp_path):
    need("psql")
    script = tmp_path / "open.py"
    script.write_text(OPEN)
    with started_database() as service:
        env = {**os.environ, "MLFLOW_TRACKING_URI": database(service)}
        started = [
            processes.start(script, number, cwd=tmp_path, env=env, stdout=PIPE, stderr=STDOUT)
            for number in range(PROCESSES)
        ]
        wait_until(lambda: len(list(tmp_path.glob("ready*"))) == PROCESSES, "all are ready")
        (tmp_path / "go").touch()

        written = [process.communicate()[0] for process in started]

        assert [process.returncode for process in started] == [0] * PROCESSES, "\n".join(written)
        assert {text.splitlines()[-1] for text in written} == {"experiment 1"}
        assert service.sql("SELECT count(*) FROM experiments WHERE name = 'new'") == ["1"]
