"""Ablation of a recipe: short trainings, each without one part of the recipe.

    python -m benchmarks.ablation alexnet-bn-cifar10.yaml FOLDER [--images 5000] [--epochs 4]
        [--seeds 1] [--json FILE] [-- OPTION ...]

FOLDER holds train/<class>/<image>. Each training is `pyclassify fit` with the recipe on the first
images of each class, by its last validation accuracy on as many others as --validated says; the
test images are not read. Options after `--` apply to all trainings, such as --batch_size 128: few
images make few steps. Such a short training shows what speeds up learning; regularization can only
cost accuracy in it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.accuracy import ROOT, choose, run
from benchmarks.parts import report

RECIPES = ("alexnet-bn-cifar10.yaml", "alexnet-cifar10-best.yaml")

COMMON = {
    "the recipe": [],
    "no label smoothing": ["--model.label_smoothing=0"],
    "no random crop": ["--data.random_crop_padding=0"],
    "no horizontal flip": ["--data.horizontal_flip=false"],
    "no weight decay": ["--optimizer.weight_decay=0"],
    "a constant rate": ["--lr_scheduler=ConstantLR", "--lr_scheduler.factor=1"],
}


def leave_out(recipe, callback):
    """Make the option for all callbacks of a recipe except one."""
    callbacks = yaml.safe_load((ROOT / "configs" / recipe).read_text())["trainer"]["callbacks"]
    remaining = [c for c in callbacks if not c["class_path"].endswith(f".{callback}")]
    return f"--trainer.callbacks={json.dumps(remaining)}"


def without(recipe):
    """List the options that leave out one part of a recipe, for each line of its table."""
    lines = COMMON | {"no EMA of the weights": [leave_out(recipe, "EMAWeights")]}
    if recipe == "alexnet-bn-cifar10.yaml":
        learnt = [leave_out(recipe, "WhitenStem"), "--model.freeze=null"]
        return lines | {"trainable stem": learnt}
    return lines | {
        "63 pixels": ["--data.resize=63", "--data.crop=63", "--data.random_crop_padding=8"]
    }


def main(args=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=5_000, help="to train on")
    parser.add_argument("--validated", type=float, default=0.4, help="images, in parts of those")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="these lines of the table")
    parser.add_argument("--json", help="a file for all figures")
    given, options = parser.parse_known_args(args)
    options = [each for each in options if each != "--"]
    lines = without(given.recipe)
    if unknown := set(given.only or ()) - set(lines):
        parser.error(f"--only has {sorted(unknown)}; its lines are {', '.join(map(repr, lines))}")
    lines = {name: own for name, own in lines.items() if name in (given.only or lines)}
    found = {name: [] for name in lines}
    with tempfile.TemporaryDirectory() as own:
        choose(given.folder, Path(own), given.images, given.validated)
        always = [f"--max_epochs={given.epochs}", *options]
        for seed in range(given.seeds):
            for name, changed in lines.items():
                told = run("fit", given.recipe, own, *always, *changed, f"--seed={seed}")
                found[name].append(told["val_accuracy"])
                sys.stderr.write(json.dumps(found) + "\n")
    rows = [{"recipe": name, "val_accuracy": values} for name, values in found.items()]
    report.tell(rows, {"found": found}, given.json)


if __name__ == "__main__":
    main()
