"""Faults that are injected at named places of a training."""

import contextlib
import errno
import functools
import os
import signal
from pkgutil import resolve_name
from unittest import mock

# Where a training is disturbed, from before its run exists to after its last log.
PLACES = (
    "pyclassify.cli.main:expand_options",
    "pyclassify.cli.lightning_cli:tempfile.TemporaryDirectory",
    "pyclassify.cli.lightning_cli:TrainingCli.parse_arguments",
    "pyclassify.cli.lightning_cli:TrainingCli.after_instantiate_classes",
    "pyclassify.module:Classifier.__init__",
    "pyclassify.datamodule:SyntheticDataModule.__init__",
    "pyclassify.training.trainer:Trainer.__init__",
    "pyclassify.datamodule:SyntheticDataModule.setup",
    "pyclassify.training.trainer:LaunchCheck.setup",
    "pyclassify.tracking.run:check_writable",
    "pyclassify.tracking.monitor:start",
    "pyclassify.spool.spooled_run:open_run",
    "mlflow:start_run",
    "pyclassify.spool.records:create_from_server",
    "pyclassify.spool.records:save_json",
    "pyclassify.spool.lock:acquire",
    "pyclassify.spool.upload_thread:UploadThread.start",
    "pyclassify.tracking.metrics:RunMetrics.setup",
    "pyclassify.tracking.parameters:log_parameters",
    "mlflow:MlflowClient.log_text",
    "pyclassify.tracking.record:RunRecorder.save_config",
    "pyclassify.tracking.record:describe_data",
    "pyclassify.tracking.capsule:write_capsule",
    "pyclassify.tracking.description:describe_start",
    "pyclassify.tracking.ui:log_views",
    "pyclassify.training.exact_resume:Resume.setup",
    "pyclassify.module:Classifier.configure_optimizers",
    "pyclassify.module:Classifier.validation_step",
    "pyclassify.module:Classifier.training_step",
    "pyclassify.tracking.logger:RunLogger.log_metrics",
    "pyclassify.training.exact_resume:Resume.between_steps",
    "pyclassify.training.checkpoints:BestCheckpoint._save_checkpoint",
    "pyclassify.training.checkpoints:write_checkpoint",
    "pyclassify.tracking.metrics:RunMetrics.on_train_epoch_end",
    "pyclassify.tracking.logger:RunLogger.finalize",
    "torch:load",
    "pyclassify.module:Classifier.test_step",
    "pyclassify.tracking.predictions:PredictionLogger.on_test_epoch_end",
    "pyclassify.tracking.predictions:log_predictions",
    "pyclassify.tracking.figures:save_figure",
    "pyclassify.tracking.record:DescriptionUpdater.on_test_end",
    "pyclassify.serving.artifact:save_model",
    "pyclassify.registry.register:RegisterModel.teardown",
    "pyclassify.cli.lightning_cli:write_summary",
    "pyclassify.spool.spooled_run:SpooledRun.close",
    "pyclassify.spool.upload_thread:UploadThread.finish",
)


def fail_of(kind):
    """Fail as on a full disk, by an exit, a bug, an abort of C++ code or a kill."""
    match kind:
        case "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        case "exit":
            raise SystemExit(0)
        case "bug":
            raise RuntimeError("injected")
        case "abort":
            os.abort()
        case "_exit":
            os._exit(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill group":
            os.killpg(0, signal.SIGKILL)
        case "hang up":
            os.kill(os.getpid(), signal.SIGHUP)
        case "stop":
            os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def injected(place, kind):
    """Within this context a function fails each time that it is called."""
    module, _, name = place.partition(":")
    *outer, last = name.split(".")
    owner = resolve_name(f"{module}:{'.'.join(outer)}" if outer else module)
    calls = []
    original = getattr(owner, last)

    @functools.wraps(original)  # the command line reads signatures
    def fail(*args, **kwargs):
        calls.append(args)
        fail_of(kind)
        return original(*args, **kwargs)

    with mock.patch.object(owner, last, fail):
        yield calls


# A program that trains by its command line and is disturbed at a place: where it ends in `:1` only
# in the process of that rank, in `:nohup` with SIGHUP ignored; `atexit` is after the training.
CODE = """
import atexit, os, signal, sys, tempfile
from tests.support import faults
from pyclassify.cli.main import main
place, kind = {place!r}, {kind!r}
tempfile.tempdir = None  # that of this environment
if place == "atexit":
    atexit.register(faults.fail_of, kind)
is_ignored = place.endswith(":nohup")  # the tests themselves may run under nohup
signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
rank = int(os.environ.get("LOCAL_RANK", 0))
if place in ("", "atexit") or (rank > 0) != place.endswith(":1"):
    sys.exit(main())
place = place.removesuffix(":1").removesuffix(":nohup")
with faults.injected(place, kind):
    sys.exit(main())
"""
