"""A user of the service, as docs/service.md has him set himself up."""

import mlflow

from tests.support.service_parts import commands


def settle(patch, proxy, account, home):
    """Make this process, and what it starts, one of a user whose password is in his home folder."""
    user, password = account
    home.mkdir()
    patch.setenv("HOME", str(home))
    patch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    patch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(proxy.certificate))
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        patch.delenv(name, raising=False)
    command = ["bash", "-euo", "pipefail", "-c", commands("credentials")]
    proxy.service.daemons.run(*command, input=f"{password}\n", HOME=str(home), USER=user)


def work_in(patch, experiment):
    """Make an experiment, and have runs go there; its id."""
    patch.setenv("MLFLOW_EXPERIMENT_NAME", experiment)
    return mlflow.MlflowClient().create_experiment(experiment)
