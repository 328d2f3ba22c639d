"""What a process gets that starts `sys.executable` and is given one that forks."""

import json
from pathlib import Path

from tests.support import forking_python
from tests.support.waiting import wait_until

SLEEP = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
CODE = f"""
import json, os, subprocess, sys

def start(code, *more):
    command = [sys.executable, "-c", code, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

ends = start("import os, sys; print(sys.argv[1:], os.getcwd()); sys.exit(7)", "a b")
said = ends.communicate()[0]
fails, leaves = start("1 // 0"), start("import sys; sys.exit('a reason')")
asked, killed = start({SLEEP!r}), start({SLEEP!r})
asked.stdout.readline()
pid = int(killed.stdout.readline())
asked.terminate()
killed.kill()
codes = [each.wait() for each in (ends, fails, leaves, asked, killed)]
json.dump([said, codes, pid], sys.stdout)
"""


def test_it_ends_as_what_it_had_forked_and_that_ends_with_it(tmp_path):
    done = forking_python.run("-c", CODE, cwd=tmp_path, check=True)

    said, codes, pid = json.loads(done.stdout)
    assert said == f"['a b'] {tmp_path}\n"
    assert codes == [7, 1, 1, -15, -9]
    assert "ZeroDivisionError" in done.stderr
    assert "a reason\n" in done.stderr
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the fork of who was killed has ended")
