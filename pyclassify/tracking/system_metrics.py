"""System metrics of this job's own processes and GPUs, sampled by MLflow's monitor.

MLflow's own choice is the whole machine: each of its GPUs, its network and the work of others.
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

# It tells at the start and at the end that it starts and ends.
logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)

_STOP_SECONDS = 0.2


class ProcessMonitor(BaseMetricsMonitor):
    """What this process and its children take.

    Their CPU time, where 100% is all cores that this process may use, and their resident memory
    (pages that several of them share count for each).
    """

    def __init__(self) -> None:
        super().__init__()
        self._root = psutil.Process()
        self._root.cpu_percent()  # counts from here on
        self._known: dict[int, psutil.Process] = {}
        self._cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

    def collect_metrics(self) -> None:
        percent = resident = 0.0
        for each in (self._root, *self._root.children(recursive=True)):
            # A process is asked again by the same object, which knows when it was last asked.
            process = self._known.setdefault(each.pid, each)
            try:
                with process.oneshot():
                    percent += process.cpu_percent()
                    resident += process.memory_info().rss
            except psutil.Error:  # it ended meanwhile
                self._known.pop(each.pid)
        cores = self._cores or psutil.cpu_count() or 1
        self._metrics["cpu_utilization_percentage"].append(percent / cores)
        self._metrics["memory_usage_megabytes"].append(resident / 1e6)

    def aggregate_metrics(self) -> dict[str, float]:
        return {name: round(sum(all_) / len(all_), 1) for name, all_ in self._metrics.items()}


class JobMonitor(SystemMetricsMonitor):
    """MLflow's monitor of a run, restricted to this job.

    Args:
        run_id: The run.
        tracking_uri: Where it is kept.
        gpus: This job's own, as torch counts them.
    """

    def __init__(self, run_id: str, tracking_uri: str, gpus: Sequence[int] = ()) -> None:
        super().__init__(run_id, resume_logging=True, tracking_uri=tracking_uri)
        of_gpus = [
            each for each in self.monitors if warn_on_error("GPU metrics", _select_gpus, each, gpus)
        ]
        self.monitors = [ProcessMonitor(), *of_gpus]

    def publish_metrics(self, metrics: Any) -> None:
        super().publish_metrics(metrics)
        self.mlflow_logger.flush()  # nothing is left to write when the run ends

    def stop(self) -> None:
        """End the sampling.

        What is being written now is waited for a moment only: the run's status is more urgent,
        since a process that was sent a signal may be killed any time.
        """
        self._shutdown_event.set()
        if self._process is not None:
            self._process.join(_STOP_SECONDS)


def _select_gpus(monitor: Any, gpus: Sequence[int]) -> bool:
    """Leave a GPU monitor of MLflow's only the GPUs given, as torch counts them.

    Returns:
        Whether that can be done, and leaves it any: not for AMD's, which are sampled by number.
    """
    if not gpus or not hasattr(monitor, "gpu_handles"):
        return False
    import pynvml

    # By identity: CUDA_VISIBLE_DEVICES makes torch's numbers other than the driver's.
    uuids = [f"GPU-{torch.cuda.get_device_properties(each).uuid}" for each in gpus]
    monitor.gpu_handles = [pynvml.nvmlDeviceGetHandleByUUID(uuid) for uuid in uuids]
    monitor.num_gpus = len(uuids)
    return True
