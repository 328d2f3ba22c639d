"""Measure images per second of each data module without a network, and compare them with PIL.

`ours` is the data module's loader and its transforms on the device, driven by Lightning's Trainer,
with a step that does nothing. `PIL` is one process: torchvision's Resize, RandomCrop,
RandomHorizontalFlip, ToTensor and Normalize of each PIL image in a DataLoader without workers. Both
use batches of 64 of the same images, and alternate. Images of CIFAR-10's size are synthetic. JPEGs
of 32 and 256 pixels are generated, or those of --folder are used: read in each epoch, and cached
(after the first epoch).
"""

import itertools
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import lightning.pytorch as pl
import psutil
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.parts import jpegs, report
from benchmarks.parts.command import BenchmarkParser
from benchmarks.parts.reference import PILImages, make_transform
from pyclassify.data import synthetic
from pyclassify.data.datasets import ImageTensors
from pyclassify.datamodule import (
    CIFAR10DataModule,
    ImageFolderDataModule,
    SyntheticDataModule,
)

BATCH = 64
PER_CPU = "_per_cpu_second"  # depends little on other programs on the machine
RATES = ("ours", f"ours{PER_CPU}", "pil", f"pil{PER_CPU}")
WARM_UP_BATCHES = 5  # in which workers start


class EmptyModule(pl.LightningModule):
    """Counts images per second for some seconds, and trains nothing."""

    def __init__(self, seconds):
        super().__init__()
        self.automatic_optimization = False
        self.meter = Meter(seconds)

    def training_step(self, batch):
        if self.meter.stops_after(batch[0]):
            self.trainer.should_stop = True

    def configure_optimizers(self):
        return None


class Meter:
    """Counts images per second and per CPU second, after the warm-up batches."""

    def __init__(self, seconds):
        self.seconds, self.batches, self.images, self.rates = seconds, 0, 0, None

    def stops_after(self, images):
        if images.is_cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.batches += 1
        if self.batches <= WARM_UP_BATCHES:
            self.started, self.cpu_started = now, measure_cpu_seconds()
            return False
        self.images += len(images)
        if now - self.started < self.seconds:
            return False
        cpu_seconds = measure_cpu_seconds() - self.cpu_started
        self.rates = self.images / (now - self.started), self.images / cpu_seconds
        return True


def measure_cpu_seconds():
    """Measure the CPU time of this process and its workers."""
    process = psutil.Process()
    times = [each.cpu_times() for each in (process, *process.children())]
    return sum(each.user + each.system for each in times)


def measure_ours(data, seconds):
    """Measure the rates of a data module."""
    network = EmptyModule(seconds)
    trainer = pl.Trainer(
        devices=1,
        max_epochs=-1,
        min_epochs=0,  # otherwise it ends after one epoch
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network, datamodule=data)
    return network.meter.rates


def measure_pil(dataset, seconds):
    """Measure the rates of PIL and torchvision's transforms."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    meter = Meter(seconds)
    loader = DataLoader(dataset, BATCH, shuffle=True)
    for images, _ in itertools.chain.from_iterable(itertools.repeat(loader)):
        if meter.stops_after(images.to(device)):
            return meter.rates


def make_synthetic_cifar10(count=45_000):
    """Make a CIFAR10DataModule with synthetic images instead of the downloaded ones."""
    data = CIFAR10DataModule(batch_size=BATCH)
    data.train = ImageTensors(*synthetic.generate_images(count, seed=0))
    data.prepare_data = lambda: None
    data.setup = lambda stage: None
    return data


def pair_in_memory(data):
    """Pair a data module in memory with torchvision's data set of its images."""
    data.setup("fit")
    return data, PILImages(data.train.images, data.train.labels, make_transform(data.preprocess))


def pair_in_folder(folder, **options):
    """Pair a data module of an image folder with torchvision's data set of it."""
    data = ImageFolderDataModule(str(folder), batch_size=BATCH, **options)
    return data, ImageFolder(folder / "train", make_transform(data.preprocess))


def make_pairs(args, work_dir):
    """Make the pairs to compare: data modules, and torchvision's data sets of the same images."""
    pairs = {
        "CIFAR10DataModule": pair_in_memory(make_synthetic_cifar10(1000 if args.short else 45_000)),
        "SyntheticDataModule": pair_in_memory(SyntheticDataModule(batch_size=BATCH)),
    }
    folders = {args.folder.name: args.folder} if args.folder else {}
    for side in () if args.folder else (32, 256):
        folders[f"JPEGs of {side} pixels"] = work_dir / str(side)
        size = {"count": 100, "canvas_side": 512} if args.short else {"count": 4000}
        jpegs.make(work_dir / str(side), side=side, **size)
    for name, folder in folders.items():
        pairs[f"ImageFolderDataModule, {name}"] = pair_in_folder(folder)
        pairs[f"ImageFolderDataModule, {name}, cache"] = pair_in_folder(folder, cache=True)
    return pairs


def measure(args):
    """Measure images per second and their ratios, by data set."""
    # The cache is removed with the JPEGs.
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        pairs = make_pairs(args, Path(folder))
        figures = {name: {rate: [] for rate in RATES} for name in pairs}
        for _ in range(args.repeats):
            for name, (data, dataset) in pairs.items():
                rates = (*measure_ours(data, args.seconds), *measure_pil(dataset, args.seconds))
                for rate_name, rate in zip(RATES, rates, strict=True):
                    figures[name][rate_name].append(rate)
    for rates in figures.values():
        for per in ("", PER_CPU):
            repeats = zip(rates[f"ours{per}"], rates[f"pil{per}"], strict=True)
            rates[f"ratio{per}"] = [ours / pil for ours, pil in repeats]
    workers = {name: data.train_dataloader().num_workers for name, (data, _) in pairs.items()}
    return {"datasets": figures, "num_workers": workers}


def make_rows(result):
    """Make the table, a row per data set."""
    return [
        {
            "images/s": name,
            "ours": rates["ours"],
            "PIL": rates["pil"],
            "ratio": rates["ratio"],
            "ratio per CPU second": rates[f"ratio{PER_CPU}"],
            "workers": result["num_workers"][name],
        }
        for name, rates in result["datasets"].items()
    ]


def main(args=None):
    parser = BenchmarkParser("data", __doc__, ("--repeats 3", "--folder ~/photos --seconds 10"))
    parser.add_argument(
        "--folder", type=Path, help="Read JPEGs from train/<class>/ in this folder."
    )
    parser.add_argument("--repeats", type=int, default=5, help="Repeat each measurement.")
    parser.add_argument(
        "--seconds", type=float, default=5, help="Measure for this number of seconds."
    )
    parser.add_argument("--short", action="store_true", help="Run a test of a few seconds.")
    parser.add_json_option()
    args = parser.parse_args(sys.argv[1:] if args is None else args)
    if args.short:
        args.repeats, args.seconds = 1, 0.1
    result = measure(args)
    report.print_table(make_rows(result), result, args.json)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # Lightning warns that EmptyModule trains nothing
    main()
