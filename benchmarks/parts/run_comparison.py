"""Two runs of one training compared, point by point and bit by bit."""

import hashlib
from collections import Counter
from pathlib import Path

import mlflow
import torch

# Of the clock: as many points, of other values.
CLOCK = ("epoch_seconds", "images_per_second", "wall_seconds")
SYSTEM = "system/"


def read_points(client, run_id):
    """Every point that the server has of a run: {(metric, step): its values in order}."""
    points = {}
    for key in sorted(client.get_run(run_id).data.metrics):
        for each in client.get_metric_history(run_id, key):
            points.setdefault((key, each.step), []).append(each.value)
    return points


def compare(client, run_id, twin_id):
    """Count what a run lacks of its twin's points, has twice, has besides, or has otherwise.

    Returns:
        Lists of (metric, step) by kind: `lost`, `doubled`, `besides`, `other values`.
    """
    found, expected = (read_points(client, each) for each in (run_id, twin_id))
    ours = {key for key in found if not key[0].startswith(SYSTEM)}
    theirs = {key for key in expected if not key[0].startswith(SYSTEM)}
    return {
        "points": len(theirs),
        "lost": sorted(theirs - ours),
        "doubled": sorted(key for key, values in found.items() if len(values) > 1),
        "besides": sorted(ours - theirs),
        "other values": sorted(
            key
            for key in ours & theirs
            if key[0] not in CLOCK and set(found[key]) != set(expected[key])
        ),
    }


def hash_weights(folder: Path):
    """The hash of weights and optimizer in the newest checkpoint of a run's folder."""
    newest = max(folder.rglob("resume/step=*.ckpt"))
    checkpoint = torch.load(newest, map_location="cpu", weights_only=True)
    return newest.name, hash_tensors([checkpoint["state_dict"], checkpoint["optimizer_states"]])


def hash_best(run_id, folder: Path):
    """The hash of the weights that the run keeps as its best."""
    path = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="weights/best.ckpt", dst_path=str(folder)
    )
    return hash_tensors(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])


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


def in_words(counted):
    """One line: how many points there are, and how many are wrong, by kind and first example."""
    words = [f"{counted['points']} points"]
    for kind in ("lost", "doubled", "besides", "other values"):
        keys = counted[kind]
        names = Counter(key for key, _ in keys)
        some = f" ({', '.join(f'{n} of {key}' for key, n in names.most_common(4))})" if keys else ""
        words.append(f"{len(keys)} {kind}{some}")
    return ", ".join(words)
