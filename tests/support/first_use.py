"""Processes that all do one thing at the same moment, such as to open a new database."""

from pathlib import Path

from tests.support import processes
from tests.support.processes import PIPE, STDOUT
from tests.support.waiting import wait_until

PROCESSES = 4
# Everything is loaded before the start, so that all act at the same moment.
_PROGRAM = """
import sys, time
from pathlib import Path
{imports}
Path("ready" + sys.argv[1]).touch()
while not Path("go").exists():
    time.sleep(0.001)
{code}
"""


def run_at_once(imports, code, folder, env=None):
    """Run code in several processes in a folder; what each wrote, after all exited with 0."""
    script = Path(folder, "at_once.py")
    script.write_text(_PROGRAM.format(imports=imports, code=code))
    started = [
        processes.start(script, number, cwd=folder, env=env, stdout=PIPE, stderr=STDOUT)
        for number in range(PROCESSES)
    ]
    wait_until(lambda: len(list(Path(folder).glob("ready*"))) == PROCESSES, "all are ready")
    Path(folder, "go").touch()
    written = [process.communicate()[0] for process in started]
    assert [process.returncode for process in started] == [0] * PROCESSES, "\n".join(written)
    return written
