"""Programs in SLURM's place, for what the real ones say only on a bad day or in other versions."""

import os
import sys
from pathlib import Path

VERSIONS = Path(__file__).parents[1] / "slurm_versions"


def put(folder, name, code):
    """Put a program of Python code on PATH, before others; returns the folder."""
    program = folder / name
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    return program


def first_on_path(monkeypatch, folder):
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def replay(version):
    """The code of an sacct that gives what was recorded of a version: the columns of -o."""
    return f"""
import sys
lines = open({str(VERSIONS / version) + ".txt"!r}).read().splitlines()
header, *rows = [line.lower().split("|") if n == 0 else line.split("|")
                 for n, line in enumerate(line for line in lines if not line.startswith("#"))]
job = sys.argv[sys.argv.index("-j") + 1]
columns = [name.lower() for name in sys.argv[sys.argv.index("-o") + 1].split(",")]
for row in rows:
    known = dict(zip(header, row))
    if known["jobid"] == job or ("-X" not in sys.argv and known["jobid"].startswith(job + ".")):
        print("|".join(known.get(name, "") for name in columns))
"""


def say(stdout="", stderr="", code=0):
    """The code of a program that says something."""
    return (
        f"import sys\nsys.stdout.write({stdout!r})\nsys.stderr.write({stderr!r})\nsys.exit({code})"
    )


def say_in_turn(counter, *answers):
    """The code of a program that says something else each time, the last answer for ever."""
    codes = [say(*answer) for answer in answers]
    return f"""
from pathlib import Path
counter = Path({str(counter)!r})
turn = int(counter.read_text()) if counter.exists() else 0
counter.write_text(str(turn + 1))
exec({codes!r}[min(turn, {len(codes) - 1})])
"""
