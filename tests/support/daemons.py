"""Daemons of a test run in one folder: started, waited for, and ended for certain."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import sweep
from tests.support.waiting import wait_until


class Daemons:
    """Each has a session of its own, which no Ctrl-C reaches, and its output in FOLDER/NAME.out.

    What they started ends with them.
    """

    def __init__(self, env):
        # In /tmp, as the name of a socket is short, and open to a daemon of another user.
        self.folder = Path(tempfile.mkdtemp(prefix="daemons-", dir="/tmp"))
        self.folder.chmod(0o711)
        self.env = dict(env)
        self.processes = {}
        self.sweeper = subprocess.Popen(
            [sys.executable, sweep.__file__, self.folder],
            env=env,
            start_new_session=True,
            stdin=subprocess.PIPE,
        )

    def start(self, name, *command):
        with self.output(name).open("w") as log:
            self.processes[name] = subprocess.Popen(
                command,
                env=self.env,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, *command, input="", **more):
        """Run a program to its end, with more in its environment; returns its output."""
        env = {**self.env, **more}
        ended = subprocess.run(command, env=env, input=input, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ended.stdout}{ended.stderr}")
        return ended.stdout.strip()

    def output(self, name):
        return self.folder / f"{name}.out"

    def wait(self, name, ready, seconds=30):
        """Wait until a daemon is ready, which `ready()` tells."""
        poll = self.processes[name].poll
        try:
            wait_until(lambda: ready() or poll() is not None, f"{name} is ready", seconds)
        except TimeoutError as late:
            raise RuntimeError(self._with_last_words(name, str(late))) from None
        if (code := poll()) is not None:
            raise RuntimeError(self._with_last_words(name, f"{name} ended with {code}"))

    def _with_last_words(self, name, what):
        last = self.output(name).read_text().splitlines()[-5:]
        return "\n".join([f"{what}, and last said:", *last])

    def stop(self):
        self.sweeper.stdin.close()
        if code := self.sweeper.wait():
            raise RuntimeError(
                f"not all in {self.folder} could be ended: sweep.py ended with {code}"
            )
