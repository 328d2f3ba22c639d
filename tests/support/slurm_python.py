"""An environment of jobs whose reports to MLflow are forked, which saves most of a job's time.

A job's script starts Python twice to tell MLflow of its run, and each time imports MLflow for three
seconds of a processor. Here these two fork from the tests' server (see `forking_python`). What a
task runs is started as ever: its memory, GPUs and signals are SLURM's business.
"""

import functools
import sys

from tests.support import forking_python, processes

PYTHON = """\
#!/bin/bash
if [ "$1 $2" = "-m pyclassify.slurm.reporter" ]; then exec {forking} "$@"; fi
exec {python} "$@"
"""
EVERY_PYTHON = """\
#!/bin/bash
exec {forking} "$@"
"""


@functools.cache
def environment(forks_tasks=False):
    """The folder of an environment for a job, as `environment` of the backend's configuration.

    Args:
        forks_tasks: Whether what the tasks run is forked too: `python -m` and `python -c` alone.
    """
    folder = processes.make_folder("slurm-python-")
    (folder / "bin").mkdir()
    (folder / "bin" / "activate").write_text(f'export PATH="{folder}/bin:$PATH"\n')
    python = folder / "bin" / "python"
    text = EVERY_PYTHON if forks_tasks else PYTHON
    python.write_text(text.format(forking=forking_python.program(), python=sys.executable))
    python.chmod(0o755)
    return str(folder)
