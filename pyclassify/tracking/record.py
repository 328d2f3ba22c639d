"""What a run is, recorded when it starts: parameters, configuration, data, capsule, description."""

from collections.abc import Sequence
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from pyclassify.tracking import capsule, dataset, description, parameters, recipes, run, ui, weights
from pyclassify.tracking.attempt import attempt
from pyclassify.tracking.logger import RunLogger, find_run_logger
from pyclassify.utils.masking import mask


class RecordConfig(SaveConfigCallback):
    """Log the resolved configuration: as parameters, and whole as the artifact config.yaml.

    Beside it the run's capsule, and its data as dataset inputs.

    Args:
        command: The command line, as it was given.
    """

    def __init__(self, *args: Any, command: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.command = command

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        logger = find_run_logger(trainer)
        if logger is None:
            return
        config = mask(yaml.safe_load(self.parser.dump(self.config, skip_none=False)))
        if (given := getattr(pl_module, "num_classes", None)) is not None:
            # The data say how many, after the configuration was read, or it was an option.
            config["model"].setdefault("init_args", {})["num_classes"] = given
        client, run_id = logger.experiment, str(logger.run_id)
        if logger.written.attempts > 1:  # what the run is was recorded when it was started first
            return
        fits = trainer.state.fn == TrainerFn.FITTING
        start = attempt("the digest of the weights", weights.describe, config) if fits else None
        params = {**self._flatten(config), **parameters.of_weights(start)}
        attempt("the parameters", parameters.log, client, run_id, params)
        name = f"{recipes.name_parts(params)}-seed{params['seed_everything']}"
        attempt("the run's name", run.name, name)
        text = yaml.safe_dump(config, sort_keys=False)
        attempt(self.config_filename, client.log_text, run_id, text, self.config_filename)
        self._keep_capsule(trainer, logger, config, start)

    def _flatten(self, config: dict[str, Any]) -> dict[str, str]:
        usual = self.parser.get_defaults()  # without what must be given, so not valid
        usual = self.parser.dump(usual, skip_none=False, skip_validation=True)
        return parameters.flatten(config, yaml.safe_load(usual))

    def _keep_capsule(
        self,
        trainer: Trainer,
        logger: RunLogger,
        config: dict[str, Any],
        start: dict[str, str] | None,
    ) -> None:
        client, run_id = logger.experiment, str(logger.run_id)
        data = None
        try:
            data = dataset.describe(getattr(trainer, "datamodule", None))
            if data is not None:
                dataset.log(client, run_id, data)
        except Exception as error:  # of a data module that is not ours, or of the server
            capsule.warn(f"the run does not tell its data by their content ({error})")
        fitted = "train" if getattr(trainer, "tests_after_fit", False) else "fit"
        verb = str(trainer.state.fn and trainer.state.fn.value)
        facts = {
            "tracking_uri": logger.written.tracking_uri or logger.written.spool_uri,
            "verb": fitted if verb == "fit" else verb,
            "command": ["pyclassify", *self.command],
            "hardware": describe_torch(trainer),
            "data": data,
            "weights": start,
        }
        facts = capsule.keep(client, run_id, config, facts, [logger.save_dir])
        attempt("the description", description.begin, client, run_id, config, facts)
        attempt("the views of `mlflow ui`", ui.keep, logger, config, data, start)
        dataset.check(logger.written.server(), run_id, data)


def describe_torch(trainer: Trainer) -> dict[str, Any]:
    """Describe what the run computes with, as far as it decides how floats are rounded."""
    return {
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": type(trainer.accelerator).__name__.removesuffix("Accelerator").lower(),
        "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        "cuda": torch.version.cuda,
    }
