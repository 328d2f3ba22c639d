"""The private names of other packages that pyclassify relies on: each must exist and be listed.

`lightning<2.7`, `mlflow<3.18` and `jsonargparse<5` are pinned since a release may drop any of
these. A test that fails here names what is gone; the list also fails where the package comes to use
another.
"""

import ast
import inspect
from argparse import ArgumentParser
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from mlflow import MlflowClient
from mlflow.entities import Metric, RunData
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from torchmetrics import MeanMetric

PACKAGE = Path(__file__).parents[1] / "pyclassify"
OTHERS = ("jsonargparse", "lightning", "mlflow", "torch", "torchmetrics")
LOOP = "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop"

# What can be imported or is an attribute of a class.
NAMES = [
    "argparse:HelpFormatter._format_action_invocation",
    "argparse:RawDescriptionHelpFormatter._fill_text",
    "jsonargparse._util:resolved_import_paths.add",
    "lightning.pytorch.callbacks:ModelCheckpoint._save_checkpoint",
    "lightning.pytorch.callbacks:WeightAveraging._copy_average_to_current",
    "lightning.pytorch.cli:LightningCLI._add_configure_optimizers_method_to_model",
    "lightning.pytorch.cli:LightningCLI._parse_ckpt_path",
    "lightning.pytorch.cli:LightningCLI._prepare_subcommand_kwargs",
    "lightning.pytorch.loops.loop:_Loop.restarting.fset",
    f"{LOOP}._broadcast_sigterm_tensor",
    f"{LOOP}._should_accumulate",
    f"{LOOP}._should_check_val_fx",
    f"{LOOP}.advance",
    f"{LOOP}.on_advance_end",
    f"{LOOP}.on_run_start",
    f"{LOOP}.reset",
    "lightning.pytorch.strategies.launchers:_MultiProcessingLauncher",
    "lightning.pytorch.trainer.connectors.checkpoint_connector:"
    "_CheckpointConnector._restore_modules_and_callbacks",
    "lightning.pytorch.utilities._pytree",
    "lightning.pytorch.utilities.combined_loader:CombinedLoader._load_state_dicts",
    "mlflow.projects:_wait_for",
    "mlflow.projects._project_spec:EntryPoint",
    "mlflow.projects._project_spec:Project",
    "mlflow.store.artifact.artifact_repository_registry:_artifact_repository_registry",
    "mlflow.tracking._model_registry.utils:_get_sqlalchemy_store",
    "mlflow.tracking._tracking_service.utils:_artifact_repos_cache",
    "mlflow.tracking._tracking_service.utils:_get_sqlalchemy_store",
    "mlflow.tracking._tracking_service.utils:_tracking_store_registry",
    "mlflow.utils.conda:_get_conda_env_name",
    "mlflow.tracking.fluent:_active_run_stack",
    "mlflow.utils.environment:_PythonEnv",
    "mlflow.utils.virtualenv:_create_virtualenv",
    "mlflow.utils.virtualenv:_get_mlflow_virtualenv_root",
    "mlflow.utils.virtualenv:_get_virtualenv_name",
]


def make_trainer():
    return Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)


def make_result_metric():
    results = _ResultCollection(training=True)
    results.log("fit", "loss", MeanMetric().compute(), on_step=False, on_epoch=True)
    return results["fit.loss"]


def make_client():
    return MlflowClient("http://127.0.0.1:1")


def make_logger():
    return MLFlowLogger(tracking_uri="http://127.0.0.1:1")


def make_program():
    return torch.export.export(torch.nn.Identity(), (torch.zeros(1),))


def make_monitor():
    return SystemMetricsMonitor("0" * 32)


# Attributes that only an instance has.
ATTRIBUTES = {
    "ArgumentParser._actions": ArgumentParser,
    "ArgumentParser._option_string_actions": ArgumentParser,
    "BaseMetricsMonitor._metrics": CPUMonitor,
    "ExportedProgram._guards_code": make_program,
    "MlflowClient._registry_uri": make_client,
    "MLFlowLogger._experiment_id": make_logger,
    "MLFlowLogger._experiment_name": make_logger,
    "MLFlowLogger._initialized": make_logger,
    "MLFlowLogger._mlflow_client": make_logger,
    "MLFlowLogger._prefix": make_logger,
    "MLFlowLogger._run_id": make_logger,
    "MLFlowLogger._run_name": make_logger,
    "MLFlowLogger._tracking_uri": make_logger,
    "SystemMetricsMonitor._process": make_monitor,
    "SystemMetricsMonitor._shutdown_event": make_monitor,
    "Trainer._checkpoint_connector": make_trainer,
    "Trainer.fit_loop._combined_loader_states_to_load": make_trainer,
    "Trainer.fit_loop.epoch_loop._batches_that_stepped": make_trainer,
    "Trainer.fit_loop.epoch_loop._results": make_trainer,
    "Trainer.fit_loop.epoch_loop.batch_progress.current.ready": make_trainer,
    "WeightAveraging._average_model": WeightAveraging,
    "_ResultMetric._computed": make_result_metric,
    "_ResultMetric._defaults": make_result_metric,
    "torchmetrics.Metric._computed": MeanMetric,
    "torchmetrics.Metric._defaults": MeanMetric,
    "torchmetrics.Metric._update_count": MeanMetric,
}


@pytest.mark.parametrize("name", NAMES)
def test_private_name_exists(name):
    resolve_name(name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_private_attribute_exists(name):
    found = ATTRIBUTES[name]()
    for attribute in name.removeprefix("torchmetrics.").split(".")[1:]:
        found = getattr(found, attribute)


def test_subcommand_parsers_of_lightning_cli_are_kept_by_name():
    assert "self._subcommand_parsers[" in inspect.getsource(
        resolve_name("lightning.pytorch.cli:LightningCLI")
    )


def test_metrics_of_a_run_are_listed():
    metric = Metric("loss", 0.5, 1, 2)
    assert RunData(metrics=[metric])._metric_objs == [metric]


def test_private_names_that_the_package_uses_are_listed():
    listed = {part for name in (*NAMES, *ATTRIBUTES) for part in name.replace(":", ".").split(".")}
    listed |= {"_metric_objs", "_subcommand_parsers"}
    nodes = [
        node
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]

    used = set(private_names(nodes))

    assert used - listed == set()


def private_names(nodes):
    """Private names that are imported from other packages, or are nowhere defined in this one."""
    own = {"_exit", "_replace", "_asdict"}  # of the standard library, and documented
    for node in nodes:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                own.add(node.name)
            case ast.Name(ctx=ast.Store()):
                own.add(node.id)
            case ast.Attribute(value=ast.Name(id="self"), ctx=ast.Store()):
                own.add(node.attr)
    for node in nodes:
        match node:
            case ast.ImportFrom() if node.module and node.module.split(".")[0] in OTHERS:
                words = [*node.module.split("."), *(alias.name for alias in node.names)]
                yield from (word for word in words if is_private(word))
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"))):
                yield from [node.attr] if is_private(node.attr) else []
            case ast.Attribute() if is_private(node.attr) and node.attr not in own:
                yield node.attr


def is_private(name):
    return name.startswith("_") and not name.startswith("__")
