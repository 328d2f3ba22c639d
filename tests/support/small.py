"""A network, a set and a trainer that are as small as they get."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import TensorDataset


def network(num_classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(3 * 8 * 8, num_classes))


def byte_images(count, seed=0):
    """Images of four classes as bytes, as a data module of someone else may have them."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return TensorDataset(images, torch.randint(4, (count,), generator=generator))


def trainer(**options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    keeps_nothing = {"logger": False, "enable_checkpointing": False}
    one_process = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}
    return pl.Trainer(**{**quiet, **keeps_nothing, **one_process, **options})


class Recorder(pl.Callback):
    """Keeps the batches and the gradients of each step."""

    def __init__(self):
        self.training, self.validation, self.gradients = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.training.append(batch)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self.validation.append(batch)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append([each.grad.clone() for each in pl_module.parameters()])
