"""Several processes that are the first to open an empty PostgreSQL database."""

import os

import pytest

from tests.support.first_use import run_at_once
from tests.support.service import database, need, started_database

pytestmark = pytest.mark.service
IMPORTS = """
import mlflow.store.tracking.sqlalchemy_store
from pyclassify.spool.experiments import open_experiment
from pyclassify.tracking.search import open_store
"""
OPEN = 'print("experiment", open_experiment(open_store(), "new"))'


def test_open_store_by_several_first_processes_makes_one_database(tmp_path):
    need("psql")
    with started_database() as service:
        env = {**os.environ, "MLFLOW_TRACKING_URI": database(service)}

        written = run_at_once(IMPORTS, OPEN, tmp_path, env)

        assert {text.splitlines()[-1] for text in written} == {"experiment 1"}
        assert service.sql("SELECT count(*) FROM experiments WHERE name = 'new'") == ["1"]
