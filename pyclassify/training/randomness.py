"""What one process of a training holds beside weights: random states, and metrics half counted.

All of it as tensors, lists and plain values, which `torch.load` takes with `weights_only`.
"""

import random
from typing import Any

import numpy as np
import torch
from torchmetrics import Metric


def collect(device: torch.device) -> dict[str, Any]:
    """The random states of Python, NumPy, torch and, on a GPU, of the device."""
    state: Any = np.random.get_state()
    kind, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.as_tensor(keys.astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Set the random states that `collect` found."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def collect_metrics(module: torch.nn.Module) -> dict[str, Any]:
    """What each of torchmetrics' metrics in a module has counted in this process so far."""
    return {
        name: {
            "count": metric._update_count,
            "states": {key: _copy(getattr(metric, key)) for key in metric._defaults},
        }
        for name, metric in module.named_modules()
        if isinstance(metric, Metric)
    }


def restore_metrics(module: torch.nn.Module, saved: dict[str, Any]) -> None:
    """Have the metrics of a module go on counting from what `collect_metrics` found."""
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and name in saved:
            metric.reset()
            metric._update_count = saved[name]["count"]
            for key, value in saved[name]["states"].items():
                setattr(metric, key, _copy(value, metric.device))


def _copy(value: Any, device: torch.device | None = None) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone().to(device or "cpu")
    return [_copy(each, device) for each in value]


def collect_means(results: dict[str, Any]) -> dict[str, Any]:
    """What Lightning itself has summed up of values logged with `on_epoch`, by their key."""
    return {
        key: {state: _copy(getattr(item, state)) for state in item._defaults}
        for key, item in results.items()
        if item.is_tensor and item.meta.on_epoch and not item.has_reset
    }


def add_means(results: dict[str, Any], saved: dict[str, Any]) -> None:
    """Add what was summed up before a stop to what was logged since; `saved` loses what is added.

    Call it after the first batch that logs, when Lightning has made its sums.
    """
    for key in [key for key in saved if key in results and not results[key].has_reset]:
        item, before = results[key], saved.pop(key)
        before = {state: _copy(value, item.value.device) for state, value in before.items()}
        if item.meta.is_max_reduction or item.meta.is_min_reduction:
            item.value = item.meta.reduce_fx(before["value"], item.value)
            continue
        for state, value in before.items():
            setattr(item, state, value + getattr(item, state))
        item._computed = None
