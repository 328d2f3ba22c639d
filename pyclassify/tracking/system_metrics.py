"""System metrics of this job's processes and GPUs, sampled by MLflow's monitor.

By itself MLflow samples the whole machine: all GPUs, the network, and the work of others.
"""

import logging
import os
from collections.abc import Sequence
from typing import Any

import psutil
import torch
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from pyclassify.tracking.run import warn_on_error

# The monitor would log its start and its end to the terminal.
logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)

_STOP_SECONDS = 0.2


class ProcessMonitor(BaseMetricsMonitor):
    """Sample the CPU time and memory of this process and its children.

    100% of CPU time is all cores that this process may use. Memory is resident memory; pages that
    several processes share count for each of them.

    Example:
        >>> monitor = ProcessMonitor()
        >>> monitor.collect_metrics()
        >>> monitor.aggregate_metrics()
        {'cpu_utilization_percentage': 12.5, 'memory_usage_megabytes': 812.4}
    """

    def __init__(self) -> None:
        super().__init__()
        self._root = psutil.Process()
        self._root.cpu_percent()  # starts the count
        self._processes: dict[int, psutil.Process] = {}
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

    def collect_metrics(self) -> None:
        percent = resident = 0.0
        for found in (self._root, *self._root.children(recursive=True)):
            # The same object must sample a process again: it knows the time of the last sample.
            process = self._processes.setdefault(found.pid, found)
            try:
                with process.oneshot():
                    percent += process.cpu_percent()
                    resident += process.memory_info().rss
            except psutil.Error:  # the process has ended
                self._processes.pop(found.pid)
        cores = self._cores or psutil.cpu_count() or 1
        self._metrics["cpu_utilization_percentage"].append(percent / cores)
        self._metrics["memory_usage_megabytes"].append(resident / 1e6)

    def aggregate_metrics(self) -> dict[str, float]:
        return {
            name: round(sum(samples) / len(samples), 1) for name, samples in self._metrics.items()
        }


class JobMonitor(SystemMetricsMonitor):
    """Log this job's system metrics to a run, with MLflow's monitor.

    Args:
        run_id: The run.
        tracking_uri: The run's store.
        gpus: The indices of this job's GPUs in torch.

    Example:
        >>> monitor = JobMonitor(run_id, mlflow.get_tracking_uri(), gpus=[0])
        >>> monitor.start()
        >>> monitor.stop()
    """

    def __init__(self, run_id: str, tracking_uri: str, gpus: Sequence[int] = ()) -> None:
        super().__init__(run_id, resume_logging=True, tracking_uri=tracking_uri)
        gpu_monitors = [
            monitor
            for monitor in self.monitors
            if warn_on_error("sample the GPUs", _select_gpus, monitor, gpus)
        ]
        self.monitors = [ProcessMonitor(), *gpu_monitors]

    def publish_metrics(self, metrics: Any) -> None:
        super().publish_metrics(metrics)
        self.mlflow_logger.flush()  # or there would be metrics left to write when the run ends

    def stop(self) -> None:
        """End the sampling.

        A write in progress gets only a moment: the run's status is more urgent, since a process
        that got a signal may be killed at any time.
        """
        self._shutdown_event.set()
        if self._process is not None:
            self._process.join(_STOP_SECONDS)


def _select_gpus(monitor: Any, gpus: Sequence[int]) -> bool:
    """Restrict one of MLflow's GPU monitors to GPUs by their indices in torch.

    Returns:
        Whether it samples any GPU then; not for AMD's, whose monitor has no handles.
    """
    if not gpus or not hasattr(monitor, "gpu_handles"):
        return False
    import pynvml

    # By UUID, since CUDA_VISIBLE_DEVICES makes torch's indices other than the driver's.
    uuids = [f"GPU-{torch.cuda.get_device_properties(gpu).uuid}" for gpu in gpus]
    monitor.gpu_handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    monitor.num_gpus = len(uuids)
    return True
