"""A project that goes on where it stopped, and for that knows a variable, a signal and a code."""

from pathlib import Path

from tests.support import slurm_jobs

CODE = """
    import os, signal, sys, time
    from pathlib import Path

    told = []
    signal.signal(signal.SIGUSR1, lambda *_: told.append("to leave"))
    gate, gain = Path(sys.argv[1]), int(sys.argv[2])
    progress = Path(os.environ["PYCLASSIFY_PROGRESS"])
    step = int(progress.read_text()) if progress.exists() else 0
    print("begins at", step, flush=True)
    gate.with_suffix(f".{step}").touch()
    while not gate.exists():
        time.sleep(0.05)
        if told:
            progress.write_text(str(step + gain))
            sys.exit(75)
    print("ends at", step)
"""


def write(folder: Path) -> Path:
    """Write it; its parameters are the file that ends it, and the steps gained before it leaves."""
    return slurm_jobs.write_project(folder, CODE, "gate: string, gain: int")
