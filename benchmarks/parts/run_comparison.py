"""Compare two runs of one training: each metric value, and the weights bit by bit."""

import hashlib
from collections import Counter
from pathlib import Path

import torch

from pyclassify.registry.source import find_weights
from pyclassify.serving.export import read_state_dict

# Durations: the same number of points, with different values.
DURATIONS = ("epoch_seconds", "images_per_second", "wall_seconds")
SYSTEM_PREFIX = "system/"


def read_points(client, run_id):
    """Read all points of a run: {(metric, step): its values in order}."""
    points = {}
    for key in sorted(client.get_run(run_id).data.metrics):
        for each in client.get_metric_history(run_id, key):
            points.setdefault((key, each.step), []).append(each.value)
    return points


def compare(client, run_id, twin_id):
    """Compare the points of a run with those of its twin.

    Returns:
        The number of `points` of the twin, and lists of (metric, step) by kind of difference:
        `lost`, `duplicate`, `unexpected` and `different`.
    """
    found, expected = (read_points(client, each) for each in (run_id, twin_id))
    ours = {key for key in found if not key[0].startswith(SYSTEM_PREFIX)}
    theirs = {key for key in expected if not key[0].startswith(SYSTEM_PREFIX)}
    return {
        "points": len(theirs),
        "lost": sorted(theirs - ours),
        "duplicate": sorted(key for key, values in found.items() if len(values) > 1),
        "unexpected": sorted(ours - theirs),
        "different": sorted(
            key
            for key in ours & theirs
            if key[0] not in DURATIONS and set(found[key]) != set(expected[key])
        ),
    }


def hash_weights(folder: Path):
    """Hash the weights and the optimizer in the newest checkpoint of a run's folder."""
    newest = max(folder.rglob("resume/step=*.ckpt"))
    checkpoint = torch.load(newest, map_location="cpu", weights_only=True)
    return newest.name, hash_tensors([checkpoint["state_dict"], checkpoint["optimizer_states"]])


def hash_best(run_id, folder: Path):
    """Hash the best weights, which are in the run's model, or an artifact of a run without one."""
    weights = find_weights(run_id, str(folder))
    if weights.is_program:
        return hash_tensors(read_state_dict(weights.path))
    checkpoint = torch.load(weights.path, map_location="cpu", weights_only=True)
    return hash_tensors(checkpoint["state_dict"])


def hash_tensors(value):
    digest = hashlib.sha256()
    for path, leaf in sorted(_flatten(value)):
        digest.update(f"{path}\n".encode())
        digest.update(leaf.numpy().tobytes() if torch.is_tensor(leaf) else repr(leaf).encode())
    return digest.hexdigest()[:16]


def _flatten(value, path=""):
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _flatten(inner, f"{path}/{key}")
    else:
        yield path, value


def format_counts(comparison):
    """Format in one line the number of points and of each kind of difference."""
    counts = [f"{comparison['points']} points"]
    for kind in ("lost", "duplicate", "unexpected", "different"):
        keys = comparison[kind]
        names = Counter(key for key, _ in keys)
        examples = ", ".join(f"{count} of {key}" for key, count in names.most_common(4))
        counts.append(f"{len(keys)} {kind} ({examples})" if examples else f"0 {kind}")
    return ", ".join(counts)
