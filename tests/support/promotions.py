"""Promotions that two processes make at the same moments."""

import mlflow

from pyclassify.registry.champion import promote_if_better


def promote_together(uri, barrier, cases):
    """Promote the version of each case when the other process is as far.

    Args:
        uri: The tracking URI of the registry.
        barrier: A barrier of both processes.
        cases: Pairs of a registered model and a version.
    """
    client = mlflow.MlflowClient(uri)
    for name, version in cases:
        barrier.wait(120)
        promote_if_better(client, name, version)
