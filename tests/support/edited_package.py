"""A copy of this package to edit, and a network that git has not seen."""

from tests.support.repositories import ROOT

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
