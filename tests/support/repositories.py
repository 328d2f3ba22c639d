"""Git repositories of the tests' own, and copies of this package in them."""

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


def add_submodule(folder, source, name):
    """Add a repository as a submodule, in which commits can be made."""
    allow = ("-c", "protocol.file.allow=always")
    git(folder, *allow, "submodule", "--quiet", "add", str(source), name)
    git(folder / name, "config", "user.name", "Somebody")
    git(folder / name, "config", "user.email", "somebody@example.org")


PACKAGE = ROOT / "pyclassify"
FRESH = """
from torch import nn

def network(num_classes: int) -> nn.Module:
    layers = nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Dropout(), nn.Linear(192, num_classes)
    return nn.Sequential(*layers)
"""
LOSS = "F.cross_entropy(logits, labels"


def losses(store, run_id):
    return [(each.step, each.value) for each in store.get_metric_history(run_id, "train_loss")]
