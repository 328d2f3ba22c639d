"""Measure what each ingredient of a recipe contributes, by short trainings without it (ablation).

Each training is `pyclassify fit` with the recipe on the first images of each class. The result is
its last validation accuracy on other images of the folder; the test images are not read. Options
after `--` are passed to all trainings, such as --batch_size 128, since few images make few steps.
A short training shows what makes learning faster; regularization can only lower its accuracy.
"""

import json
import sys
import tempfile
from pathlib import Path

import yaml

from benchmarks.accuracy import ROOT, link_images, run
from benchmarks.parts import report
from benchmarks.parts.command import BenchmarkParser

RECIPES = ("alexnet-bn-cifar10.yaml", "alexnet-cifar10-best.yaml")

COMMON = {
    "the recipe": [],
    "no label smoothing": ["--model.label_smoothing=0"],
    "no random crop": ["--data.random_crop_padding=0"],
    "no horizontal flip": ["--data.horizontal_flip=false"],
    "no weight decay": ["--optimizer.weight_decay=0"],
    "constant learning rate": ["--lr_scheduler=ConstantLR", "--lr_scheduler.factor=1"],
}


def remove_callback(recipe, name):
    """Make the option with all callbacks of a recipe except one."""
    config = yaml.safe_load((ROOT / "configs" / recipe).read_text())
    callbacks = config["trainer"]["callbacks"]
    others = [each for each in callbacks if not each["class_path"].endswith(f".{name}")]
    return f"--trainer.callbacks={json.dumps(others)}"


def list_ablations(recipe):
    """List the rows of a recipe's table, with the options that remove one ingredient."""
    ablations = COMMON | {"no EMA of the weights": [remove_callback(recipe, "EMAWeights")]}
    if recipe == "alexnet-bn-cifar10.yaml":
        trainable = [remove_callback(recipe, "WhitenStem"), "--model.freeze=null"]
        return ablations | {"trainable stem": trainable}
    return ablations | {
        "63 pixels": ["--data.resize=63", "--data.crop=63", "--data.random_crop_padding=8"]
    }


def main(args=None):
    examples = (f"{RECIPES[0]} FOLDER", f"{RECIPES[0]} FOLDER --epochs 2 -- --batch_size 128")
    parser = BenchmarkParser("ablation", __doc__, examples)
    parser.add_argument("recipe", choices=RECIPES, help="Train with this recipe of configs/.")
    parser.add_argument("folder", type=Path, help="Read images from train/<class>/ in this folder.")
    parser.add_argument("--images", type=int, default=5_000, help="Train on this number of images.")
    parser.add_argument(
        "--validation-ratio",
        type=float,
        default=0.4,
        help="Validate on this number of images, as a fraction of --images.",
    )
    parser.add_argument("--epochs", type=int, default=4, help="Train for this number of epochs.")
    parser.add_argument("--seeds", type=int, default=1, help="Repeat with this number of seeds.")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="Train only these table rows.")
    parser.add_json_option()
    args, options = parser.parse_known_args(args)
    options = [option for option in options if option != "--"]
    ablations = list_ablations(args.recipe)
    if unknown := set(args.only or ()) - set(ablations):
        parser.error(
            f"invalid --only: {', '.join(sorted(unknown))} (expected some of "
            f"{', '.join(map(repr, ablations))})"
        )
    ablations = {name: ablations[name] for name in ablations if name in (args.only or ablations)}
    accuracies = {name: [] for name in ablations}
    with tempfile.TemporaryDirectory() as folder:
        link_images(args.folder, Path(folder), args.images, args.validation_ratio)
        common = [f"--max_epochs={args.epochs}", *options]
        for seed in range(args.seeds):
            for name, changes in ablations.items():
                metrics = run("fit", args.recipe, folder, *common, *changes, f"--seed={seed}")
                accuracies[name].append(metrics["val_accuracy"])
                sys.stderr.write(json.dumps(accuracies) + "\n")
    rows = [{"recipe": name, "val_accuracy": values} for name, values in accuracies.items()]
    report.print_table(rows, {"val_accuracy": accuracies}, args.json)


if __name__ == "__main__":
    main()
