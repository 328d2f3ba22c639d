"""Git repositories of the tests' own."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def git(folder, *words):
    return subprocess.check_output(["git", *words], cwd=folder, text=True).strip()


def start(folder, files):
    """Make a repository with one commit of some files, {path: text}."""
    folder.mkdir(exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "config", "user.name", "Somebody")
    git(folder, "config", "user.email", "somebody@example.org")
    write(folder, files)
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "Start")
    return folder


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
