"""Plan a submission: check and decide everything before a run is created."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyclassify.slurm.config import Config, drop_mlflow_keys, parse_config
from pyclassify.slurm.credentials import check_parameters
from pyclassify.slurm.environment import (
    Environment,
    TrackingStore,
    choose_environment,
    resolve_image,
    resolve_tracking_uri,
)
from pyclassify.slurm.script import JobSpec, render_job_script
from pyclassify.slurm.topology import Topology, decide_topology, list_input_paths, resolve_paths
from pyclassify.spool import records
from pyclassify.utils import repository
from pyclassify.utils.options import UsageError
from pyclassify.utils.text import shorten

if TYPE_CHECKING:
    from mlflow.projects._project_spec import Project

_MAX_NAME = 60  # characters in an error
_NOT_IN_A_JOB_NAME = re.compile(r"[/\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Plan:
    """A run before it is created.

    Args:
        config: The configuration.
        raw_config: The configuration as the user gave it.
        project_dir: The project's folder.
        project: MLflow's project.
        entry_point: The entry point's name.
        parameters: The parameters of the command line.
        topology: Nodes, processes and GPUs.
        tracking_store: Where the run is logged.
        environment: The environment that the job runs in.
        work_dir: The folder for the folders of runs.

    Example:
        >>> plan = make_plan(".", "main", {"devices": 2}, None, {"partition": "gpu"})
        >>> text = plan.render_script("RUN_ID", "EXPERIMENT_ID")
    """

    config: Config
    raw_config: dict[str, Any]
    project_dir: Path
    project: "Project"
    entry_point: str
    parameters: dict[str, Any]
    topology: Topology
    tracking_store: TrackingStore
    environment: Environment
    work_dir: Path

    @property
    def job_name(self) -> str:
        """The name of the job: one line without slashes, as the logs are named after it."""
        return self.config.job_name or _NOT_IN_A_JOB_NAME.sub("-", self.project.name or "mlflow")

    @property
    def uses_spool(self) -> bool:
        """Whether the job logs only to the spool of its run."""
        return self.config.tracking == "spool"

    @cached_property
    def snapshot_files(self) -> tuple[list[str], dict[str, str]]:
        """The files of the snapshot, and the files that it leaves out with the reason."""
        return repository.list_project_files(self.project_dir, without=self.work_dir)

    def render_script(self, run_id: str, experiment_id: str, downloads: str | None = None) -> str:
        """Render the batch script of a run.

        Args:
            run_id: The run's ID.
            experiment_id: Its experiment's id.
            downloads: The folder to download URIs to that are parameters of type `path`; with None
                nothing is downloaded.
        """
        entry_point = self.project.get_entry_point(self.entry_point)
        folder = self.work_dir / run_id
        names, _ = self.snapshot_files
        in_snapshot = {str(path) for name in names for path in (Path(name), *Path(name).parents)}
        parameters = resolve_paths(
            self.parameters,
            entry_point,
            lambda value: str(Path(value)) in in_snapshot,
            folder / "project",
            Path.cwd(),
        )
        store_folder = "" if self.uses_spool else self.tracking_store.folder
        job = JobSpec(
            run_id=run_id,
            experiment_id=experiment_id,
            tracking_uri=self._job_tracking_uri(folder),
            name=self.job_name,
            folder=str(folder),
            topology=self.topology,
            command=entry_point.compute_command(parameters, downloads),
            activation=self.environment.activation,
            version=version("pyclassify"),
            binds=tuple(filter(None, [store_folder, *list_input_paths(parameters, entry_point)])),
        )
        return render_job_script(self.config, job)

    def _job_tracking_uri(self, folder: Path) -> str | None:
        """The tracking URI for the script; None where it contains a password."""
        if self.uses_spool:
            return records.format_spool_uri(folder / "spool")
        return None if self.tracking_store.has_password else self.tracking_store.uri


def make_plan(
    uri: str,
    entry_point: str,
    parameters: Mapping[str, Any] | None,
    revision: str | None,
    backend_config: Mapping[str, Any],
) -> Plan:
    """Plan a submission, without creating a run or a file.

    Args:
        uri: The project's folder, or its URI in git.
        entry_point: The entry point's name.
        parameters: The parameters of the command line.
        revision: The commit or branch of a project in git.
        backend_config: The configuration, with the keys that MLflow adds.

    Raises:
        UsageError: A parameter or the configuration is invalid; the message has the valid values.
        ValueError: The project, the environment or the tracking store can't be used.
        mlflow.exceptions.MlflowException: The project or the entry point does not exist.
    """
    import mlflow
    from mlflow.projects.utils import fetch_and_validate_project, load_project

    config = parse_config(backend_config)
    if config.container is not None:
        config = config.model_copy(update={"container": resolve_image(config.container)})
    parameters = dict(parameters or {})
    _check_names(parameters)
    check_parameters(parameters)
    project_dir = Path(fetch_and_validate_project(uri, revision, entry_point, parameters))
    project = load_project(str(project_dir))
    if project.docker_env:
        raise ValueError(
            f"the project {project.name or uri} runs in Docker, which clusters don't support; give "
            'an Apptainer image of it as "container" in the backend config, and remove docker_env'
        )
    declared = project.get_entry_point(entry_point).parameters
    defaults = {
        name: parameter.default
        for name, parameter in declared.items()
        if parameter.default is not None
    }
    tracking_uri = mlflow.get_tracking_uri()
    return Plan(
        config=config,
        raw_config=drop_mlflow_keys(backend_config),
        project_dir=project_dir,
        project=project,
        entry_point=entry_point,
        parameters=parameters,
        topology=decide_topology(config, parameters, defaults),
        tracking_store=resolve_tracking_uri(tracking_uri, from_nodes=config.tracking == "direct"),
        environment=choose_environment(
            config, project, project_dir, backend_config.get("ENV_MANAGER")
        ),
        work_dir=resolve_work_dir(config),
    )


def _check_names(parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that MLflow does not store, before MLflow does so after creating the run.

    Raises:
        UsageError: MLflow does not accept a name, or the number of parameters.
    """
    from mlflow.utils.validation import (
        MAX_ENTITY_KEY_LENGTH,
        MAX_PARAMS_TAGS_PER_BATCH,
        path_not_unique,
        validate_param_and_metric_name,
    )

    for name in parameters:
        is_valid = validate_param_and_metric_name(name) and not path_not_unique(name)
        if not is_valid or len(name) > MAX_ENTITY_KEY_LENGTH:
            raise UsageError(
                f"invalid name of -P: {shorten(name, _MAX_NAME)} (expected up to "
                f"{MAX_ENTITY_KEY_LENGTH} letters, digits and characters of `_-. :/`, as MLflow "
                "stores no other); set it in a recipe, the file of -P config"
            )
    if len(parameters) > MAX_PARAMS_TAGS_PER_BATCH:
        raise UsageError(
            f"too many -P: {len(parameters)} parameters (expected up to "
            f"{MAX_PARAMS_TAGS_PER_BATCH}, as MLflow stores no more at once); set some in a "
            "recipe, the file of -P config"
        )


def resolve_work_dir(config: Config) -> Path:
    """Resolve the folder for the folders of runs, by default NAME-slurm beside the folder NAME.

    Raises:
        ValueError: A variable in `work_dir` is not set.
    """
    if config.work_dir is None:
        return Path.cwd().with_name(f"{Path.cwd().name}-slurm")
    path = os.path.expandvars(config.work_dir)
    if "$" in path:
        raise ValueError(
            f"work_dir is {config.work_dir!r} in the backend config, but a variable in it is not "
            "set in this shell; export it, or give a folder that compute nodes see"
        )
    return Path(path).expanduser().absolute()
