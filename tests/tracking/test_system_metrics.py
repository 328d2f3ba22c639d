"""System metrics are this job's own, and end before its run does."""

import threading
import time

import psutil
import pytest

from pyclassify.tracking import run
from pyclassify.tracking.logger import RunLogger
from pyclassify.tracking.system_metrics import ProcessMonitor
from tests.support import processes
from tests.support.trainings import SHAPES
from tests.support.waiting import scale, wait_until

NAMES = {"system/cpu_utilization_percentage", "system/memory_usage_megabytes"}


@pytest.fixture
def logger(cli, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    yield RunLogger()
    run.end_run("FINISHED")


def monitors():
    return [each for each in threading.enumerate() if each.name == "SystemMetricsMonitor"]


def train(cli, *options):
    (run,) = cli(f"fit {SHAPES} --accelerator=cpu", *options).runs
    return {name: value for name, value in run.data.metrics.items() if name.startswith("system/")}


def test_training_logs_cpu_time_and_memory_of_its_processes(cli, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")

    metrics = train(cli)

    assert metrics.keys() == NAMES
    # With what other tests' servers and their workers take, which are processes below this one.
    mine = [psutil.Process(), *psutil.Process().children(recursive=True)]
    resident = sum(each.memory_info().rss for each in mine) / 1e6
    assert metrics["system/memory_usage_megabytes"] == pytest.approx(resident, rel=0.3)


def test_training_without_system_metrics_logs_none(cli, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")

    assert train(cli, "--trainer.logger.system_metrics=false") == {}


@pytest.mark.parametrize("status", ["FINISHED", "KILLED"])
def test_sampling_ends_with_the_run_in_any_thread(logger, status):
    logger.start_system_metrics(gpus=[])
    logger.start_system_metrics(gpus=[])
    (monitor,) = monitors()

    ending = threading.Thread(target=run.set_final_status, args=(status,))
    ending.start()
    ending.join()

    monitor.join(timeout=scale(10))
    assert not monitor.is_alive()
    assert logger.experiment.get_run(logger.run_id).info.status == status


def test_process_monitor_counts_running_children():
    monitor = ProcessMonitor()
    code = "x = b'x' * 200_000_000; input()"
    child = processes.start("-c", code, fresh=True, stdin=processes.PIPE)
    of_child = psutil.Process(child.pid)
    wait_until(lambda: of_child.memory_info().rss >= 200e6, "a child of 200 MB")

    monitor.collect_metrics()
    child.communicate("\n")
    monitor.collect_metrics()

    with_child, without = monitor.metrics["memory_usage_megabytes"]
    assert with_child - without > 190


def test_process_monitor_cpu_time_is_a_share_of_usable_cores():
    monitor = ProcessMonitor()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass

    monitor.collect_metrics()
    assert 0 < monitor.aggregate_metrics()["cpu_utilization_percentage"] <= 110
