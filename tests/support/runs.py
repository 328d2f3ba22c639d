"""Runs and registered models as trainings leave them, made without training."""

import json

import mlflow
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import (
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
)

ALEXNET = {
    "config": "configs/alexnet-cifar10.yaml",
    "seed": "0",
    "model.model": "pyclassify.model.AlexNet",
    "seed_everything": "0",
    "model/class": "pyclassify.module.Classifier",
    "model/model": "pyclassify.model.AlexNet",
    "model/model/dropout": "0.5",
    "model/learning_rate": "0.0001",
    "data/mean": "[0.5, 0.5, 0.5]",
    "trainer/max_epochs": "10",
}
RESNET = {
    "config": "configs/mine.yaml",
    "seed": "7",
    "seed_everything": "7",
    "model/class": "pyclassify.module.Classifier",
    "model/model": "torchvision.models.resnet18",
    "model/learning_rate": "0.001",
    "data/mean": "[0.4914, 0.4822, 0.4465]",
    "trainer/max_epochs": "10",
}

METRICS = {"test_accuracy": 0.5, "test_loss": 1.25}


def record(name="net", params=(), metrics=METRICS, status="FINISHED", answers=None, digest=None):
    """Make a run.

    Args:
        answers: A letter an image: `y` where the run has it right.
        digest: That of the test images.
    """
    client = mlflow.MlflowClient()
    experiment = mlflow.get_experiment_by_name("tested").experiment_id
    run_id = client.create_run(experiment, run_name=name).info.run_id
    client.log_batch(
        run_id,
        params=[Param(*item) for item in dict(params).items()],
        metrics=[Metric(key, value, 0, 0) for key, value in metrics.items()],
    )
    if answers:
        labels = [index % 3 for index in range(len(answers))]
        guesses = [label if a == "y" else 9 for label, a in zip(labels, answers, strict=True)]
        log_predictions(run_id, range(len(answers)), labels, guesses)
    if digest:
        source = HTTPDatasetSource("http://localhost/images")
        dataset = MetaDataset(source, name="images", digest=digest)._to_mlflow_entity()
        tag = InputTag("mlflow.data.context", "test")
        client.log_inputs(run_id, [DatasetInput(dataset, [tag])])
    client.set_terminated(run_id, status)
    return run_id


def log_predictions(run_id, indices, labels, guesses):
    table = {"index": indices, "label": labels, "predicted": guesses, "probability": 0.9}
    mlflow.MlflowClient().log_table(run_id, table, "predictions.json")


def two_runs():
    """Two recipes, the first as `mlflow run` makes it, ten test images and what each got right."""
    shared = {"system/cpu_utilization_percentage": 3.0, "wall_seconds": 312.4}
    return [
        record(
            "AlexNet-CIFAR10-seed0",
            ALEXNET,
            {
                "test_accuracy": 0.4,
                "test_loss": 1.5,
                "best_val_accuracy": 0.45,
                "learning_rate": 1e-5,
                "parameters": 57044810,
                **shared,
            },
            answers="nnnnnynyyy",
        ),
        record(
            "resnet18-CIFAR10-seed7",
            RESNET,
            {
                "test_accuracy": 0.8,
                "test_loss": float("nan"),
                "learning_rate": 1e-3,
                "parameters": 11181642,
                **shared,
            },
            answers="yyyyynnyyy",
        ),
    ]


NAME = "alexnet"


def register(answers=None, name=NAME, run_id=None, tags=None, **more):
    """Make a version, of a run with these answers (a letter an image: `y` where it is right)."""
    client = mlflow.MlflowClient()
    run_id = run_id or record(answers=answers, **more)
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"runs:/{run_id}/model"
    return str(client.create_model_version(name, source, run_id, tags=tags or {}).version)


def answers(right, wrong=40):
    """Of `right + wrong` images the first are right."""
    return "y" * right + "n" * wrong


def champion(name=NAME):
    return _aliased("champion", name)


def challenger(name=NAME):
    return _aliased("challenger", name)


def _aliased(alias, name):
    version = mlflow.MlflowClient().get_registered_model(name).aliases.get(alias)
    return version and str(version)


def tags(version, name=NAME):
    return mlflow.MlflowClient().get_model_version(name, version).tags


def read_decision(version, name=NAME):
    """What decision.json of a version says."""
    run_id = mlflow.MlflowClient().get_model_version(name, version).run_id
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/registry/{name}-{version}/decision.json")
    return json.loads(text)


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
    "subcommand": "train",
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
        "splits": {
            "train": {"images": 45000, "digest": "0123456789abcdef"},
            "test": {"images": 263, "digest": "fedcba9876543210"},
        },
    },
    "git": {"commit": "c" * 40, "remote": "https://example.org/x.git", "changed": True},
}
TAGS = {"pyclassify.source_run": "b" * 32, "pyclassify.overrides": "--max_epochs 10"}
PAGE = f"#/experiments/1/runs/{'a' * 32}"


def log_model(run_id, status="READY", step=1, tags=(), name="model"):
    """Log a model of a run, without files: its ID."""
    client = mlflow.MlflowClient()
    experiment = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment, name, run_id, tags=dict(tags))
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    if status != "PENDING":
        client.finalize_logged_model(model.model_id, LoggedModelStatus(status))
    return model.model_id
