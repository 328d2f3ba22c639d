"""Measure the memory and CPU time of daemons while a benchmark runs."""

import threading
import time
from contextlib import suppress

import psutil


class ResourceMonitor(threading.Thread):
    """Measures the peak memory and the CPU time of daemons and their child processes.

    Memory is the proportional set size (PSS) in MB.
    """

    def __init__(self, daemons):
        super().__init__(daemon=True)
        self.daemons, self.over = daemons, threading.Event()
        self.memory, self.cpu = {}, {}

    def __enter__(self):
        self.sample()
        self.began = time.monotonic()
        self.start()
        return self

    def __exit__(self, *_):
        self.sample()
        self.seconds = time.monotonic() - self.began
        self.over.set()

    def run(self):
        while not self.over.wait(2):
            self.sample()

    def sample(self):
        """Measure memory and CPU time now."""
        for name, process in self.daemons.processes.items():
            memory = cpu = 0.0
            with suppress(psutil.NoSuchProcess):
                first = psutil.Process(process.pid)
                for each in [first, *first.children(recursive=True)]:
                    with suppress(psutil.NoSuchProcess):
                        memory += each.memory_full_info().pss / 1e6
                        cpu += sum(each.cpu_times()[:2])
            self.memory[name] = max(memory, self.memory.get(name, 0.0))
            self.cpu.setdefault(name, [cpu]).append(cpu)

    def summarize(self):
        """Return the peak memory and the CPU time of each daemon."""
        return {
            "memory_peak_mb": {name: round(peak) for name, peak in self.memory.items()},
            "cpu_seconds": {name: round(cpu[-1] - cpu[0]) for name, cpu in self.cpu.items()},
        }
