"""A run to describe: its configuration, and the facts of its capsule."""

CONFIG = {
    "seed_everything": 7,
    "model": {
        "class_path": "pyclassify.module.Classifier",
        "init_args": {"model": "pyclassify.model.AlexNet", "learning_rate": 1e-4},
    },
    "data": {"class_path": "x.Folder", "init_args": {"batch_size": 64}},
    "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
    "trainer": {"max_epochs": 10, "precision": "bf16-mixed"},
}
FACTS = {
    "verb": "train",
    "command": ["pyclassify", "train", "--config", "my recipe.yaml"],
    "hardware": {
        "processes": 2,
        "threads": 8,
        "accelerator": "cuda",
        "gpus": ["NVIDIA H100", "NVIDIA H100"],
        "cpu": "AMD EPYC 9554",
        "cores": 16,
        "memory_gb": 128.2,
    },
    "data": {
        "name": "my|birds",
        "classes": 2,
        "sets": {
            "train": {"images": 45000, "digest": "0123456789abcdef"},
            "test": {"images": 263, "digest": "fedcba9876543210"},
        },
    },
    "git": {"commit": "c" * 40, "remote": "https://example.org/x.git", "changed": True},
}
TAGS = {"pyclassify.source_run": "b" * 32, "pyclassify.overridden": "--max_epochs 10"}
PAGE = f"#/experiments/1/runs/{'a' * 32}"
