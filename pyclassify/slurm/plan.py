"""What is to be submitted, decided before anything is made: shared by run, render and check."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyclassify.slurm import config, script, topology
from pyclassify.slurm.config import Config, check_parameters
from pyclassify.slurm.environment import Destination, Environment, choose, find_image, resolve
from pyclassify.slurm.topology import Topology, find_files, place
from pyclassify.spool import records
from pyclassify.utils import repository

_UNFIT = re.compile(r"[/\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Plan:
    """A run before it is made.

    Args:
        config: The configuration.
        config_given: The same as the user gave it.
        folder: Where the project is.
        project: MLflow's project.
        entry_point: The entry point's name.
        given: The parameters of the command line.
        topology: Nodes, processes and GPUs.
        destination: Where the run is kept.
        environment: What it runs in.
        work_dir: Where the folders of runs are made.
    """

    config: Config
    config_given: dict[str, Any]
    folder: Path
    project: Any
    entry_point: str
    given: dict[str, Any]
    topology: Topology
    destination: Destination
    environment: Environment
    work_dir: Path

    @property
    def job_name(self) -> str:
        """The job's name; as logs are called by it, a project's has no slash and is one line."""
        return self.config.job_name or _UNFIT.sub("-", self.project.name or "mlflow")

    @property
    def spools(self) -> bool:
        """Whether the job tells MLflow nothing itself."""
        return self.config.tracking == "spool"

    @cached_property
    def files(self) -> tuple[list[str], dict[str, str]]:
        """The files of the snapshot, and those left out of it with the reason."""
        return repository.list_files(self.folder, without=self.work_dir)

    def write_script(self, run_id: str, experiment_id: str, downloads: str | None = None) -> str:
        """The script of a run.

        Args:
            run_id: The run's id.
            experiment_id: Its experiment's.
            downloads: A folder for what parameters of type `path` name by a URI; without it they
                are not downloaded.
        """
        entry_point = self.project.get_entry_point(self.entry_point)
        folder = self.work_dir / run_id
        names, _ = self.files
        kept = {str(each) for name in names for each in (Path(name), *Path(name).parents)}
        placed = place(
            self.given,
            entry_point,
            lambda value: str(Path(value)) in kept,
            folder / "project",
            Path.cwd(),
        )
        tracking_uri: str | None = self.destination.uri
        if self.spools:
            tracking_uri = records.uri_of(folder / "spool")
        elif self.destination.secret:
            tracking_uri = None
        store = "" if self.spools else self.destination.folder
        facts = script.Facts(
            run_id=run_id,
            experiment_id=experiment_id,
            tracking_uri=tracking_uri,
            name=self.job_name,
            folder=str(folder),
            topology=self.topology,
            command=entry_point.compute_command(placed, downloads),
            activation=self.environment.activation,
            version=version("pyclassify"),
            binds=tuple(filter(None, [store, *find_files(placed, entry_point)])),
        )
        return script.render(self.config, facts)


def make(
    uri: str,
    entry_point: str,
    given: Mapping[str, Any] | None,
    revision: str | None,
    backend_config: Mapping[str, Any],
) -> Plan:
    """Decide on everything that can be decided without making anything.

    Args:
        uri: The project's.
        entry_point: The entry point's name.
        given: The parameters of the command line.
        revision: The commit or branch of a project in git.
        backend_config: The configuration, with what MLflow adds.

    Raises:
        ValueError: What is given can't be run; what is allowed instead.
        mlflow.exceptions.MlflowException: There is no such project or entry point.
    """
    import mlflow
    from mlflow.projects.utils import fetch_and_validate_project, load_project

    checked = config.parse_config(backend_config)
    if checked.container is not None:
        checked = replace(checked, container=find_image(checked.container))
    given = dict(given or {})
    check_parameters(given)
    folder = Path(fetch_and_validate_project(uri, revision, entry_point, given))
    project = load_project(str(folder))
    if project.docker_env:
        raise ValueError(
            f"the project {project.name or uri} runs in Docker, which clusters don't have; give an "
            'Apptainer image of it as "container" in the backend config, and leave docker_env out'
        )
    declared = project.get_entry_point(entry_point).parameters
    defaults = {name: each.default for name, each in declared.items() if each.default is not None}
    return Plan(
        config=checked,
        config_given={
            name: value
            for name, value in backend_config.items()
            if name not in config.MLFLOW_KEYS and value is not None
        },
        folder=folder,
        project=project,
        entry_point=entry_point,
        given=given,
        topology=topology.decide(checked, given, defaults),
        destination=resolve(mlflow.get_tracking_uri(), from_nodes=checked.tracking == "direct"),
        environment=choose(checked, project, folder, backend_config.get("ENV_MANAGER")),
        work_dir=choose_work_dir(checked),
    )


def choose_work_dir(config: Config) -> Path:
    """The folder for the folders of runs: the configuration's, or beside that of the submission."""
    if config.work_dir is None:
        return Path.cwd().with_name(f"{Path.cwd().name}-slurm")
    path = os.path.expandvars(config.work_dir)
    if "$" in path:
        raise ValueError(
            f"work_dir is {config.work_dir!r} in the backend config, and not every variable in it "
            "is set here; export it, or give a folder that compute nodes see"
        )
    return Path(path).expanduser().absolute()
