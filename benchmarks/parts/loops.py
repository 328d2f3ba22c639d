"""Time each step of one training loop of AlexNet; `benchmarks.train` runs each in a process.

The loop is `fit`, the complete command line with tracking and progress; `upper_bound`, forward,
backward and fused optimizer step in a bare loop on a batch on the device, with the same settings as
`fit`; `bare`, the same without huge pages and gradient views; or `reference`: PIL and torchvision's
transforms per image, a DataLoader without workers, and Adam with its defaults. The images are
synthetic, of CIFAR-10's shape, or those of --folder. Except for `fit`, several processes must be
started by torchrun.
"""

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
from benchmarks.parts.command import BenchmarkParser
from benchmarks.parts.reference import PILImages, make_transform
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


def upper_bound(given, views=True):
    device = join_process_group()
    layout = torch.channels_last if given.channels_last else torch.contiguous_format
    network = AlexNet(CLASSES).to(device, memory_format=layout)
    images = torch.randn(given.batch, 3, 64, 64, device=device).to(memory_format=layout)
    labels = torch.randint(CLASSES, (given.batch,), device=device)
    if given.compile:
        network.compile()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)
    batches = ((images, labels) for _ in range(given.steps))
    loop(given, wrap_in_ddp(network, views), optimizer, batches)


def bare(given):
    upper_bound(given, views=False)


def reference(given):
    device = join_process_group()
    transform = make_transform(Preprocess())
    if given.folder:
        dataset = ImageFolder(Path(given.folder, "train"), transform)
    else:
        dataset = PILImages(*synthetic.generate_images(count_images(given), seed=0), transform)
    sampler = DistributedSampler(dataset) if given.processes > 1 else None
    loader = DataLoader(dataset, given.batch, shuffle=sampler is None, sampler=sampler)
    classes = getattr(dataset, "classes", synthetic.CLASSES)
    network = alexnet(num_classes=len(classes)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    batches = ([tensor.to(device) for tensor in batch] for batch in loader)
    loop(given, wrap_in_ddp(network), optimizer, batches)


LOOPS = {"fit": fit, "upper_bound": upper_bound, "bare": bare, "reference": reference}


def count_images(given):
    return given.batch * given.steps * given.processes


def join_process_group():
    """Initialize the process group of torchrun, if any; return this process's device."""
    on_gpu = torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if on_gpu else "gloo")
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if on_gpu else "cpu")


def wrap_in_ddp(network, views=False):
    """Wrap a network in DistributedDataParallel, if there is a process group."""
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
        clock.record_step()
    clock.record_last_step()


def main(args=None):
    examples = ("fit times.json", "upper_bound times.json --batch 256 --steps 14")
    parser = BenchmarkParser("parts.loops", __doc__, examples)
    parser.add_argument("loop", choices=LOOPS, help="Run this training loop.")
    parser.add_argument("file", type=Path, help="Write the times and the memory to this JSON file.")
    parser.add_argument("--batch", type=int, default=64, help="Set the batch size per process.")
    parser.add_argument("--steps", type=int, default=30, help="Train for this number of steps.")
    parser.add_argument("--processes", type=int, default=1, help="Train in this many processes.")
    parser.add_argument("--folder", help="Read images from train/<class>/ in this folder.")
    parser.add_argument(
        "--precision",
        default="32-true",
        choices=["32-true", "bf16-mixed"],
        help="Train with this precision.",
    )
    parser.add_argument("--compile", action="store_true", help="Compile the network.")
    parser.add_argument(
        "--channels-last", action="store_true", help="Use the memory format channels_last."
    )
    given, given.options = parser.parse_known_args(args)
    clock.step_ends.clear()
    LOOPS[given.loop](given)
    if int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0:
        on_device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        memory = {
            "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "device": on_device,
        }
        given.file.write_text(json.dumps({"step_ends": clock.step_ends, "memory": memory}))
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
