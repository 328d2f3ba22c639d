"""Versions of a registered model in the store of `cli`, whose runs kept what they answered."""

import json

import mlflow

from tests.support.recorded import record

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


def decided(version, name=NAME):
    """What decision.json of a version says."""
    run_id = mlflow.MlflowClient().get_model_version(name, version).run_id
    text = mlflow.artifacts.load_text(f"runs:/{run_id}/registry/{name}-{version}/decision.json")
    return json.loads(text)
