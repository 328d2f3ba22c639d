"""One way to train AlexNet, timed step by step: what benchmarks.train starts, each in a process.

    python -m benchmarks.parts.loops WAY FILE [--batch 64] [--steps 30] [--processes 1] [--folder F]

WAY is `fit`, the whole command line with tracking and progress; `ceiling`, forward, backward and
fused step in a bare loop on a batch that is on the device, all else as `fit` sets it; `bare`, the
same without huge pages and views of gradients; or `reference`, the course's way: PIL and
torchvision's transforms an image, a DataLoader without workers, Adam as it comes. The images are
drawn ones of CIFAR-10's shape, or those of FOLDER/train. FILE gets the times. Several processes
are started by torchrun but for `fit`.
"""

import argparse
import contextlib
import json
import os
import resource
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from torchvision.datasets import ImageFolder
from torchvision.models import alexnet

from benchmarks.parts import clock
from benchmarks.parts.reference import PILImages, prepare_as
from pyclassify.cli.main import main as pyclassify
from pyclassify.data import synthetic
from pyclassify.data.transforms import Preprocess
from pyclassify.model import AlexNet

CLASSES = len(synthetic.CLASSES)


def fit(given):
    data = [
        "--data=SyntheticDataModule",
        f"--data.train_size={count_images(given)}",
        f"--data.val_size={given.batch}",
    ]
    if given.folder:
        data = ["--data=ImageFolderDataModule", f"--data_path={given.folder}"]
    with contextlib.redirect_stdout(sys.stderr):
        code = pyclassify(
            [
                "fit",
                *data,
                f"--batch_size={given.batch}",
                f"--devices={given.processes}",
                f"--precision={given.precision}",
                f"--model.compile={given.compile}",
                f"--model.channels_last={given.channels_last}",
                "--max_epochs=1",
                f"--trainer.limit_train_batches={given.steps}",
                "--trainer.limit_val_batches=1",
                "--trainer.num_sanity_val_steps=0",
                "--trainer.callbacks=benchmarks.parts.clock.StepClock",
                *given.options,
            ]
        )
    if code:
        sys.exit(code)


def ceiling(given, views=True):
    device = join()
    layout = torch.channels_last if given.channels_last else torch.contiguous_format
    network = AlexNet(CLASSES).to(device, memory_format=layout)
    images = torch.randn(given.batch, 3, 64, 64, device=device).to(memory_format=layout)
    labels = torch.randint(CLASSES, (given.batch,), device=device)
    if given.compile:
        network.compile()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    batches = ((images, labels) for _ in range(given.steps))
    loop(given, share(network, views), optimizer, batches)


def bare(given):
    ceiling(given, views=False)


def reference(given):
    device = join()
    prepare = prepare_as(Preprocess())
    if given.folder:
        dataset = ImageFolder(Path(given.folder, "train"), prepare)
    else:
        dataset = PILImages(*synthetic.generate_images(count_images(given), seed=0), prepare)
    sampler = DistributedSampler(dataset) if given.processes > 1 else None
    loader = DataLoader(dataset, given.batch, shuffle=sampler is None, sampler=sampler)
    classes = getattr(dataset, "classes", synthetic.CLASSES)
    network = alexnet(num_classes=len(classes)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    batches = ([part.to(device) for part in batch] for batch in loader)
    loop(given, share(network), optimizer, batches)


WAYS = {"fit": fit, "ceiling": ceiling, "bare": bare, "reference": reference}


def count_images(given):
    return given.batch * given.steps * given.processes


def join():
    """Meet the other processes of torchrun's, where there are several; this one's device."""
    on_gpu = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else "cpu")


def share(network, views=False):
    """Have all processes that have joined train the network."""
    if not dist.is_initialized():
        return network
    return DistributedDataParallel(network, gradient_as_bucket_view=views)


def loop(given, network, optimizer, batches):
    mixed = given.precision == "bf16-mixed"
    for step, (images, labels) in enumerate(batches):
        if step == given.steps:
            break
        with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
            loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clock.note()
    clock.finish()


def main(args=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("file", type=Path)
    parser.add_argument("--batch", type=int, default=64, help="in each process")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", help="holds train/<class>/<image>")
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--channels-last", action="store_true")
    given, given.options = parser.parse_known_args(args)
    clock.ended.clear()
    WAYS[given.way](given)
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
        on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        memory = {
            "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "device": on_device,
        }
        given.file.write_text(json.dumps({"ended": clock.ended, "memory": memory}))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
