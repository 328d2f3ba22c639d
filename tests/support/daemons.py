"""Start, wait for and stop the daemons of a test run."""

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support import sweep
from tests.support.waiting import wait_until


class Daemons:
    """Daemons, each in its own session, which Ctrl-C does not stop, with its output in NAME.out.

    Their descendants are stopped too.
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
        """Run a program with additional environment variables; return its output."""
        env = {**self.env, **more}
        ended = subprocess.run(command, env=env, input=input, capture_output=True, text=True)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)}: {ended.stdout}{ended.stderr}")
        return ended.stdout.strip()

    def output(self, name):
        return self.folder / f"{name}.out"

    def wait(self, name, ready, seconds=30):
        """Wait until `ready()` is true."""
        poll = self.processes[name].poll
        try:
            wait_until(lambda: ready() or poll() is not None, f"{name} is ready", seconds)
        except TimeoutError as late:
            raise RuntimeError(self._add_output(name, str(late))) from None
        if (code := poll()) is not None:
            raise RuntimeError(self._add_output(name, f"{name} exited with code {code}"))

    def _add_output(self, name, message):
        lines = self.output(name).read_text().splitlines()[-5:]
        return "\n".join([f"{message}; its last output:", *lines])

    def stop(self):
        self.sweeper.stdin.close()
        if code := self.sweeper.wait():
            raise RuntimeError(
                f"not all in {self.folder} could be ended: sweep.py ended with {code}"
            )
