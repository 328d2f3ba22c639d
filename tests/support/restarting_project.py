"""A project that resumes where it stopped, by a variable, a signal and an exit code."""

from pathlib import Path

from tests.support import slurm_jobs

CODE = """
    import os, signal, sys, time
    from pathlib import Path

    stops = []
    signal.signal(signal.SIGUSR1, lambda *_: stops.append(True))
    gate, gain = Path(sys.argv[1]), int(sys.argv[2])
    progress = Path(os.environ["PYCLASSIFY_PROGRESS"])
    step = int(progress.read_text()) if progress.exists() else 0
    print("begins at", step, flush=True)
    gate.with_suffix(f".{step}").touch()
    while not gate.exists():
        time.sleep(0.05)
        if stops:
            progress.write_text(str(step + gain))
            sys.exit(75)
    print("ends at", step)
"""


def write(folder: Path) -> Path:
    """Write the project; its parameters are the file that ends it, and the steps of an attempt."""
    return slurm_jobs.write_project(folder, CODE, "gate: string, gain: int")
