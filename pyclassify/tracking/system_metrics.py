"""System metrics of this job's processes and GPUs, sampled by MLflow's monitor.

MLflow's default is to sample the whole machine: all GPUs, the network, and other users' processes.
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

# The monitor logs its start and its end to the terminal otherwise.
logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)

_STOP_SECONDS = 0.2


class ProcessMonitor(BaseMetricsMonitor):
    """Sample the CPU utilization and memory of this process and its children.

    A CPU utilization of 100% means all cores that this process may use. Memory is resident memory
    in megabytes; pages that processes share count once for each process.

    Example:
        >>> monitor = ProcessMonitor()
        >>> monitor.collect_metrics()
        >>> monitor.aggregate_metrics()
        {'cpu_utilization_percentage': 12.5, 'memory_usage_megabytes': 812.4}
    """

    def __init__(self) -> None:
        super().__init__()
        self._root = psutil.Process()
        self._root.cpu_percent()  # the first call only starts the measurement
        self._processes: dict[int, psutil.Process] = {}
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

    def collect_metrics(self) -> None:
        percent = resident = 0.0
        for found in (self._root, *self._root.children(recursive=True)):
            # psutil measures since the last call on the same object.
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
    """Log this job's system metrics to a run every 10 seconds, with MLflow's monitor.

    MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL changes the interval.

    Args:
        run_id: The run.
        tracking_uri: The run's store.
        gpus: The indices of this job's GPUs in torch; by default GPUs are not sampled.

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
        self.mlflow_logger.flush()  # otherwise metrics are still queued when the run ends

    def stop(self) -> None:
        """End the sampling.

        Wait only briefly for a write in progress: the run's status must be set first, since a
        process may be killed at any time after a signal.
        """
        self._shutdown_event.set()
        if self._process is not None:
            self._process.join(_STOP_SECONDS)


def _select_gpus(monitor: Any, gpus: Sequence[int]) -> bool:
    """Restrict one of MLflow's GPU monitors to the GPUs with these indices in torch.

    Returns:
        Whether the monitor samples any GPU; always False for AMD's monitor, which has no handles.
    """
    if not gpus or not hasattr(monitor, "gpu_handles"):
        return False
    import pynvml

    # By UUID, since torch's indices differ from the driver's under CUDA_VISIBLE_DEVICES.
    uuids = [f"GPU-{torch.cuda.get_device_properties(gpu).uuid}" for gpu in gpus]
    monitor.gpu_handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    monitor.num_gpus = len(uuids)
    return True
