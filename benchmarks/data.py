"""Images a second of each data module without a network, over PIL in one process.

    python -m benchmarks.data [--folder FOLDER] [--repeats 5] [--seconds 5] [--short] [--json FILE]

Ours: the data module's loader and what it prepares on the device, driven by Lightning's Trainer,
with a step that does nothing. PIL in one process: each image a PIL image, made ready by
torchvision's Resize, RandomCrop, RandomHorizontalFlip, ToTensor and Normalize in a DataLoader
without workers. Both give batches of 64 and take turns; the images are the same. CIFAR-10's are
drawn, as nothing is downloaded; JPEGs of 32 and 256 pixels are made on the spot, or those of
FOLDER/train/<class> are taken: read in each epoch, and kept by `cache` (after the first reading).
"""

import argparse
import itertools
import logging
import os
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
from benchmarks.parts.reference import PILImages, prepare_as
from pyclassify.data import synthetic
from pyclassify.data.datasets import ImageTensors
from pyclassify.datamodule import (
    CIFAR10DataModule,
    ImageFolderDataModule,
    SyntheticDataModule,
)

BATCH = 64
PROCESSOR = "_by_processor"  # a second of a processor: what else the machine does counts little
WAYS = ("ours", f"ours{PROCESSOR}", "plain", f"plain{PROCESSOR}")
WARM_UP = 5  # batches, in which workers start


class Nothing(pl.LightningModule):
    """Takes batches for some seconds, and keeps how many images a second there were."""

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
    """Counts images a second, and a second of a processor, from the end of the first batches on."""

    def __init__(self, seconds):
        self.seconds, self.batches, self.images, self.rates = seconds, 0, 0, None

    def stops_after(self, images):
        if images.is_cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.batches += 1
        if self.batches <= WARM_UP:
            self.started, self.worked = now, processor_seconds()
            return False
        self.images += len(images)
        if now - self.started < self.seconds:
            return False
        worked = processor_seconds() - self.worked
        self.rates = self.images / (now - self.started), self.images / worked
        return True


def processor_seconds():
    """What this process and its workers have had of all processors."""
    me = psutil.Process()
    times = [each.cpu_times() for each in (me, *me.children())]
    return sum(each.user + each.system for each in times)


def ours(data, seconds):
    network = Nothing(seconds)
    trainer = pl.Trainer(
        devices=1,
        max_epochs=-1,
        min_epochs=0,  # else it ends no earlier than the images
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(network, datamodule=data)
    return network.meter.rates


def plain(dataset, seconds):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    meter = Meter(seconds)
    loader = DataLoader(dataset, BATCH, shuffle=True)
    for images, _ in itertools.chain.from_iterable(itertools.repeat(loader)):
        if meter.stops_after(images.to(device)):
            return meter.rates


def drawn_cifar10(count=45_000):
    """CIFAR10DataModule, with as many drawn images in the place of the download's."""
    data = CIFAR10DataModule(batch_size=BATCH)
    data.train = ImageTensors(*synthetic.generate_images(count, seed=0))
    data.prepare_data = lambda: None
    data.setup = lambda stage: None
    return data


def in_memory(data):
    data.setup("fit")
    return data, PILImages(data.train.images, data.train.labels, prepare_as(data.preprocess))


def in_folder(folder, **options):
    data = ImageFolderDataModule(str(folder), batch_size=BATCH, **options)
    return data, ImageFolder(folder / "train", prepare_as(data.preprocess))


def sets(given, own):
    """The pairs to compare, by name: our data module, and torchvision's set of its images."""
    pairs = {
        "CIFAR10DataModule": in_memory(drawn_cifar10(1000 if given.short else 45_000)),
        "SyntheticDataModule": in_memory(SyntheticDataModule(batch_size=BATCH)),
    }
    folders = {given.folder.name: given.folder} if given.folder else {}
    for side in () if given.folder else (32, 256):
        folders[f"JPEGs of {side} pixels"] = own / str(side)
        few = {"count": 100, "canvas_side": 512} if given.short else {"count": 4000}
        jpegs.make(own / str(side), side=side, **few)
    for name, folder in folders.items():
        pairs[f"ImageFolderDataModule, {name}"] = in_folder(folder)
        pairs[f"ImageFolderDataModule, {name}, cache"] = in_folder(folder, cache=True)
    return pairs


def measure(given):
    """Images a second by set and way, their ratios, and the machine."""
    # What `cache` keeps goes with the JPEGs.
    with tempfile.TemporaryDirectory() as own, patch.dict(os.environ, XDG_CACHE_HOME=own):
        pairs = sets(given, Path(own))
        figures = {name: {way: [] for way in WAYS} for name in pairs}
        for _ in range(given.repeats):
            for name, (data, dataset) in pairs.items():
                both = (*ours(data, given.seconds), *plain(dataset, given.seconds))
                for way, rate in zip(WAYS, both, strict=True):
                    figures[name][way].append(rate)
    for rates in figures.values():
        for per in ("", PROCESSOR):
            pairs_of = zip(rates[f"ours{per}"], rates[f"plain{per}"], strict=True)
            rates[f"ratio{per}"] = [a / b for a, b in pairs_of]
    workers = {name: data.train_dataloader().num_workers for name, (data, _) in pairs.items()}
    return {"sets": figures, "num_workers": workers}


def lines_of(result):
    """The table's lines, one a set; the second ratio is that of images a second of a processor."""
    return [
        {
            "images/s": name,
            "ours": rates["ours"],
            "PIL": rates["plain"],
            "ratio": rates["ratio"],
            "by processor": rates[f"ratio{PROCESSOR}"],
            "workers": result["num_workers"][name],
        }
        for name, rates in result["sets"].items()
    ]


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="holds train/<class>/<image>")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--short", action="store_true", help="a try of a few seconds")
    parser.add_argument("--json", help="a file for all figures")
    given = parser.parse_args(args)
    if given.short:
        given.repeats, given.seconds = 1, 0.1
    result = measure(given)
    report.tell(lines_of(result), result, given.json)


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")  # that a network that does nothing does not train
    main()
