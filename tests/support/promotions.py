"""What two processes do to judge versions at the same moments."""

import mlflow

from pyclassify.registry.champion import promote_if_better


def promote_together(uri, barrier, cases):
    """Judge each case's version when the other process is as far.

    Args:
        uri: The store.
        barrier: Of all such processes.
        cases: Registered models and versions.
    """
    client = mlflow.MlflowClient(uri)
    for name, version in cases:
        barrier.wait(120)
        promote_if_better(client, name, version)
