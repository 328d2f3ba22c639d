"""What daemons take of memory and processors while something is measured."""

import threading
import time
from contextlib import suppress

import psutil


class Watch(threading.Thread):
    """The most memory, and the CPU time, of daemons and all that they started.

    Memory is what they share counted once (PSS), in MB.
    """

    def __init__(self, daemons):
        super().__init__(daemon=True)
        self.daemons, self.over = daemons, threading.Event()
        self.memory, self.cpu = {}, {}

    def __enter__(self):
        self.look()
        self.began = time.monotonic()
        self.start()
        return self

    def __exit__(self, *_):
        self.look()
        self.seconds = time.monotonic() - self.began
        self.over.set()

    def run(self):
        while not self.over.wait(2):
            self.look()

    def look(self):
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

    def tell(self):
        return {
            "memory_peak_mb": {name: round(most) for name, most in self.memory.items()},
            "cpu_seconds": {name: round(all_[-1] - all_[0]) for name, all_ in self.cpu.items()},
        }
