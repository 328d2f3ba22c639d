"""What each ingredient of a recipe gives: short trainings without one after the other.

    python -m benchmarks.ablation alexnet-bn-cifar10.yaml FOLDER [--images 5000] [--epochs 4]
        [--seeds 1] [--json FILE] [-- OPTION ...]

FOLDER holds train/<class>/<image>. Each training is `pyclassify fit` with the recipe on the first
images of each class, by its last validation accuracy on as many others as --validated says; the
test images are not read. Options behind `--` are of all trainings, such as --batch_size 128, as few
images make few steps. So short a training tells what makes learning faster; what keeps a network
from learning its images by heart can only cost in it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.accuracy import choose, run

WHITEN = {"class_path": "pyclassify.whitening.WhitenStem"}
AVERAGE = {
    "class_path": "pyclassify.averaging.AverageWeights",
    "init_args": {"decay": 0.9, "every_steps": 5},
}


def callbacks(*them):
    return f"--trainer.callbacks={json.dumps(them)}"


COMMON = {
    "the recipe": [],
    "labels not smoothed": ["--model.label_smoothing=0"],
    "no shifts": ["--data.pad=0"],
    "no mirror images": ["--data.flip=false"],
    "no weight decay": ["--optimizer.weight_decay=0"],
    "a constant rate": ["--lr_scheduler=ConstantLR", "--lr_scheduler.factor=1"],
}
WITHOUT = {
    "alexnet-bn-cifar10.yaml": COMMON
    | {
        "a stem that learns": [callbacks(AVERAGE), "--model.freeze=null"],
        "weights not averaged": [callbacks(WHITEN)],
    },
    "alexnet-cifar10-best.yaml": COMMON
    | {
        "63 pixels": ["--data.resize=63", "--data.crop=63", "--data.pad=8"],
        "weights not averaged": [callbacks()],
    },
}


def main(args=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=WITHOUT)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=5_000, help="to train on")
    parser.add_argument("--validated", type=float, default=0.4, help="images, in parts of those")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="these lines of the table")
    parser.add_argument("--json", help="a file for all figures")
    given, options = parser.parse_known_args(args)
    options = [each for each in options if each != "--"]
    lines = {
        name: own
        for name, own in WITHOUT[given.recipe].items()
        if given.only is None or name in given.only
    }
    found = {name: [] for name in lines}
    with tempfile.TemporaryDirectory() as own:
        choose(given.folder, Path(own), given.images, given.validated)
        always = [f"--max_epochs={given.epochs}", *options]
        for seed in range(given.seeds):
            for name, without in lines.items():
                told = run("fit", given.recipe, own, *always, *without, f"--seed={seed}")
                found[name].append(told["val_accuracy"])
                sys.stderr.write(json.dumps(found) + "\n")
    rows = [{"recipe": name, "val_accuracy": values} for name, values in found.items()]
    report.tell(rows, {"found": found}, given.json)


if __name__ == "__main__":
    main()
