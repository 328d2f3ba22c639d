"""A script read before it is submitted."""

import shutil
import subprocess

from pyclassify.utils.masking import holds_credentials


def check_script(text: str) -> None:
    """Look for credentials in a script, and have bash read it without running it.

    Raises:
        ValueError: There are some, or it is no script, which can only be for the lines of "setup".
    """
    for number, line in enumerate(text.splitlines(), 1):
        if holds_credentials("job.sh", line.encode()):
            raise ValueError(
                f"line {number} of the script would have a credential in it, and the script is "
                "kept with the run (`pyclassify slurm render` shows it); have the job read it from "
                'a variable, which "exports" takes with null'
            )
    bash = shutil.which("bash") or "/bin/bash"
    said = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True)
    if said.returncode:
        first = said.stderr.strip().splitlines()[0].partition(": ")[2]
        raise ValueError(f"setup in the backend config is no bash ({first}); try it by `bash -n`")
