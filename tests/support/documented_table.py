"""How each command of README.md and docs/ is tested.

A new command gets a line in `COMMANDS`, and a command that is gone loses its line:

- `Run` or `Serve`: it is run as it stands in the folder that `documented_workplace` prepares.
- `Elsewhere`: a test runs it, or the lines of its block.
- `NotHere`: it can't be run here, for the reason given.

The last two are still parsed by the real parsers, as far as they are commands of this project or of
MLflow.
"""

from typing import NamedTuple

from tests.support.trainings import SHAPES


class Run(NamedTuple):
    """A command that is run to its end.

    Args:
        added: Options of `pyclassify train` that keep the training small.
        replaced: Words of the command, and what is there instead on the tests' machine.
        after: A command that has to be run before, in the same folder.
        run: The command whose run RUN_ID is; by default it is a run that the folder starts with.
        prepared: What the folder gets first, a method of the workplace.
        printed: A regular expression that its output matches.
        code: The exit code.
        interrupted: Whether it ends only when it is interrupted, here once it has printed that.
        slow: Whether to run it with the slow tests.
    """

    added: str = ""
    replaced: dict | None = None
    after: str = ""
    run: str = ""
    prepared: str = ""
    printed: str = ""
    code: int = 0
    interrupted: bool = False
    slow: bool = False


class Serve(NamedTuple):
    """A server, which is started on a port of its own, asked for a page and stopped."""

    path: str
    replaced: dict | None = None
    slow: bool = False


class Elsewhere(NamedTuple):
    """A command that another test runs: FILE::TEST, or a script with the part that runs it."""

    test: str


class NotHere(NamedTuple):
    """A command that can't be run here, with the reason."""

    reason: str


# One epoch of a linear network in two steps, without what only takes time. CIFAR-10, CIFAR-100 and
# MNIST are downloaded from a server on the loopback address, which has 20 and 6 images of each.
_FEW = "--max_epochs=1 --batch_size=4 --trainer.limit_train_batches=2"
_FEW += " --trainer.enable_progress_bar=false --trainer.enable_model_summary=false"
_FEW += " --trainer.logger.system_metrics=false --resume.max_checkpoints=0 --accelerator=cpu"
_FEW += " --data.resize=32 --data.crop=32"
LINEAR = f"{_FEW} --model.model=tests.support.networks.Linear"
SYNTHETIC = f"{LINEAR} --data.train_size=40 --data.val_size=20 --data.test_size=20"
PHOTOS = f"{LINEAR} --data.num_workers=0"
DOWNLOADED = f"{LINEAR} --data.val_size=5"
# Networks of their own: the checkpoint would take longer than the training.
_UNSAVED = f"{_FEW} --trainer.enable_checkpointing=false"
OWN = f"{_UNSAVED} --data.val_size=5"
LARGE = OWN.replace("=32", "=64")  # AlexNet and SqueezeNet need 63 pixels

# A run that fails in its second epoch, once.
INTERRUPTED = f"{SHAPES} --model.model=failing.Failing --max_epochs=2"
INTERRUPTED += " --trainer.limit_train_batches=2 --resume.every_n_train_steps=1"

RESULT = r"(?m)^test_accuracy +[01]\.\d{4} \("
_FOLDER = {"FOLDER": "photos"}
_SHARED = {"/shared/data": "shared"}
_FREE_PORT = {" --port 5001": ""}  # MLFLOW_PORT has the port
# The environment: test_serving_environment.py.
_SERVED = {**_FREE_PORT, "--env-manager uv": "--env-manager local"}
_PORT = {"127.0.0.1:5001": "127.0.0.1:PORT"}
_INSTALLED = Elsewhere(".ci/run::documented develop")
_TESTS = NotHere("runs the tests, of which this is one")
_CI = NotHere("takes minutes and gigabytes: a clean checkout and its own environment")
_ROOT = NotHere("changes the machine, as root")
_CONDA = NotHere("needs conda")
_SYSTEMD = NotHere("needs systemd; tests/real/service/test_units.py checks the units")
_HOURS = NotHere("takes an hour or more; tests/benchmarks runs it in a short form")
_LAUNCHED = Elsewhere(
    "tests/cli/test_launching.py::test_launch_is_one_run_of_the_processes_asked_for"
)
_CLUSTER = "tests/slurm/test_cli.py"
_PREPARED = r"(?m)^images +train"
_CHAMPION = "models:/alexnet@champion"

README = {
    "python3 -m venv .venv && . .venv/bin/activate && pip install uv": _INSTALLED,
    "uv pip install --compile-bytecode -r requirements.txt -e .": NotHere("downloads 3 GB"),
    "uv pip install --compile-bytecode -r requirements.txt "
    "-r requirements-dev.txt -e .": _INSTALLED,
    ". .venv/bin/activate && pytest -n auto --dist loadgroup": Elsewhere(
        ".ci/run::documented test"
    ),
    "mlflow run . --env-manager local -P devices=2 -P config=configs/synthetic.yaml": Run(
        SYNTHETIC, printed=RESULT
    ),
    "mlflow run . --env-manager local -P devices=2": Run(DOWNLOADED, printed=RESULT, slow=True),
    # The command above has two processes.
    "mlflow run . --env-manager local -P devices=2 -P config=configs/synthetic.yaml "
    "-P max_epochs=2": Run(SYNTHETIC, {" -P devices=2": ""}, printed=RESULT),
    # Its helper processes, which this project does not need, would take a minute to start.
    "mlflow ui": Serve(
        "/health",
        {"mlflow ui": "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_WORKERS=1 mlflow ui"},
    ),
    "pyclassify fit --print_config > config.yaml": Run(),
    "pyclassify train --config config.yaml": Run(
        DOWNLOADED, after="pyclassify fit --print_config > config.yaml", printed=RESULT
    ),
    "pyclassify train --config config.yaml --devices 2": Run(
        DOWNLOADED,
        after="pyclassify fit --print_config > config.yaml",
        printed=RESULT,
        slow=True,
    ),
    "pyclassify test --config config.yaml --ckpt_path RUN_ID": Run(
        DOWNLOADED, run="pyclassify train --config config.yaml", printed=RESULT
    ),
}
TRAINING = {
    "mlflow run . --env-manager local -P config=configs/alexnet-cifar10.yaml -P max_epochs=5": Run(
        DOWNLOADED, printed=RESULT, slow=True
    ),
    "pyclassify train --config configs/alexnet-cifar10.yaml --max_epochs 5": Run(
        DOWNLOADED, printed=RESULT
    ),
    "pyclassify train --model.model torchvision.models.resnet18 --data MNISTDataModule": Run(
        OWN, printed="test_accuracy"
    ),
    "pyclassify train --data TorchvisionDataModule --data.name CIFAR100": Run(
        DOWNLOADED, printed=RESULT
    ),
    "pyclassify train --data ImageFolderDataModule --data_path ~/photos": Run(
        PHOTOS, {"~/photos": "photos"}, printed=RESULT
    ),
    "pyclassify train --optimizer SGD --optimizer.lr 0.01 --lr_scheduler CosineAnnealingLR "
    "--lr_scheduler.T_max 10": Run(DOWNLOADED, printed=RESULT),
    "pyclassify train --model my.module.LightningModule --data my.data.LightningDataModule": Run(
        "--max_epochs=1 --resume.max_checkpoints=0 --trainer.logger.system_metrics=false",
        printed="its_own_loss",
    ),
    "pyclassify train --model.model torchvision.models.squeezenet1_1 "
    "--model.model.dropout 0.2": Run(LARGE, printed="test_accuracy"),
    # The file of weights is where torchvision saves its download.
    "pyclassify train --model.model torchvision.models.resnet18 --model.model.weights DEFAULT": Run(
        OWN, printed="test_accuracy"
    ),
    # timm is a module of the folder, with a function of the same parameters.
    "pyclassify train --model.model timm.create_model --model.model.model_name convnext_atto": Run(
        OWN, printed="test_accuracy"
    ),
    "mlflow run . --env-manager local -P seeds=5": Run(
        f"{DOWNLOADED} --seeds=2", printed="test_accuracy", slow=True
    ),
    "mlflow run . --env-manager local -P config=configs/finetune-alexnet.yaml "
    "-P weights=alexnet-owt-7be5be79.pth": Run(LARGE, printed="test_accuracy", slow=True),
    "pyclassify train --model.model torchvision.models.resnet18 --weights resnet18.pth "
    "--freeze '[conv1, bn1, layer1]'": Run(OWN, printed="test_accuracy"),
    "mlflow run . --env-manager local -e prepare -P data_path=/shared/data": Run(
        "--data.val_size=5", _SHARED, printed=_PREPARED
    ),
    "mlflow run . --env-manager local -P data_path=/shared/data": Run(
        DOWNLOADED,
        _SHARED,
        after="mlflow run . --env-manager local -e prepare -P data_path=/shared/data",
        printed=RESULT,
        slow=True,
    ),
}
_FOLDERS = "-P data=ImageFolderDataModule -P data_path=FOLDER -P data.cache=true"
DATA = {
    "pyclassify prepare --data ImageFolderDataModule --data_path photos": Run(printed=_PREPARED),
    "pyclassify train --data ImageFolderDataModule --data_path photos": Run(PHOTOS, printed=RESULT),
    f"mlflow run . --env-manager local -P config=configs/alexnet-cifar10-best.yaml {_FOLDERS}": Run(
        PHOTOS, _FOLDER, printed=RESULT, slow=True
    ),
    f"mlflow run . --env-manager local -P config=configs/alexnet-bn-cifar10.yaml {_FOLDERS}": Run(
        f"{_UNSAVED} --data.num_workers=0", _FOLDER, printed="test_accuracy", slow=True
    ),
    "mlflow run . --env-manager local -P config=configs/image-folder.yaml -P data_path=FOLDER "
    "-P max_epochs=3": Run(PHOTOS, _FOLDER, printed=RESULT, slow=True),
}
RUNS = {
    "pyclassify compare RUN_ID RUN_ID": Run(printed="test_accuracy"),
    "pyclassify compare --experiment Default": Run(
        replaced={"Default": "tested"}, printed="test_accuracy"
    ),
    **{
        f"pyclassify train --config configs/{recipe}-cifar10.yaml --seeds 5": Run(
            added, {"--seeds 5": "--seeds 2"}, printed="test_accuracy", slow=True
        )
        for recipe, added in (("alexnet", DOWNLOADED), ("alexnet-bn", OWN))
    },
    "pyclassify rerun RUN_ID --max_epochs 20": Run(
        replaced={"20": "2"}, printed="overridden options: --max_epochs 2", slow=True
    ),
    "pyclassify rerun RUN_ID": Run(printed="bitwise identical"),
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1": Elsewhere(
        "tests/real/service/test_runs.py::"
        "test_alone_the_runs_of_a_folder_are_shown_without_any_of_it"
    ),
    "pyclassify resume RUN_ID": Run(prepared="interrupt_run", printed=RESULT),
    "pyclassify resume RUN_ID --max_epochs 20": Run(
        replaced={"20": "2"}, prepared="interrupt_run", printed=RESULT, slow=True
    ),
    "mlflow run . --run-id RUN_ID": Run(
        f"--config=configs/synthetic.yaml {INTERRUPTED}",
        {"mlflow run .": "mlflow run . --env-manager local"},  # by default it is conda
        prepared="interrupt_run",
        printed="Restored all states from the checkpoint at .*/resume/step=00000002.ckpt",
        slow=True,
    ),
    "pyclassify clear --dry-run": Run(printed="(?m)^would remove "),
    "pyclassify clear --older 30d": Run(printed="(?m)^removed "),
    "pyclassify sync": Run(prepared="spool_run", printed="uploaded 3 records"),
    "pyclassify sync --follow WORK_DIR": Run(
        replaced={"WORK_DIR": "."},
        prepared="spool_run",
        printed="uploaded 3 records",
        code=1,
        interrupted=True,
    ),
    "pyclassify train --config configs/synthetic.yaml": Run(SYNTHETIC, printed=RESULT),
}
_REQUEST = 'echo "{\\"inputs\\": [\\"$(base64 < photo.jpg | tr -d \'\\n\')\\"]}"'
SERVING = {
    # Another name: the versions of alexnet are those that other commands suppose.
    "pyclassify train --register alexnet": Run(
        DOWNLOADED, {"alexnet": "trained"}, printed="(?m)^model +trained version 1 is champion"
    ),
    "pyclassify register RUN_ID alexnet": Run(
        replaced={"alexnet": "chosen"}, printed="chosen version 1 is champion"
    ),
    "pyclassify register RUN_ID alexnet --min-accuracy 0.6 --alpha 0.01": Run(
        replaced={"alexnet": "bounded"}, printed="bounded version 1"
    ),
    "pyclassify rerun RUN_ID --register alexnet": Run(
        replaced={"alexnet": "repeated"}, printed="bitwise identical", slow=True
    ),
    f"mlflow models serve -m {_CHAMPION} --env-manager uv --port 5001": Elsewhere(
        "tests/real/test_serving_environment.py::"
        "test_model_is_served_in_an_environment_of_its_own_requirements"
    ),
    "mlflow models serve -m models:/alexnet/3 --env-manager local --port 5001": Serve(
        "/ping", _FREE_PORT
    ),
    "mlflow models serve -m runs:/RUN_ID/model --env-manager local --port 5001": Serve(
        "/ping", _FREE_PORT, slow=True
    ),
    f"{_REQUEST} | curl -s http://127.0.0.1:5001/invocations "
    "-H 'Content-Type: application/json' -d @-": Run(
        replaced=_PORT, prepared="serve", printed='"probabilities"'
    ),
    f"{_REQUEST} > request.json": Run(),
    f"mlflow models predict -m {_CHAMPION} -i request.json -t json --env-manager local": Run(
        after=f"{_REQUEST} > request.json", printed='"probabilities"'
    ),
    f"OMP_NUM_THREADS=1 mlflow models serve -m {_CHAMPION} --env-manager uv --port 5001 "
    "--workers 2": Serve("/ping", _SERVED, slow=True),
    f"mlflow artifacts download -u {_CHAMPION} -d alexnet": Run(printed="alexnet"),
    "docker build -t alexnet --build-arg PYTHON=$(sed -n 's/^python: //p' "
    "alexnet/python_env.yaml) -f deploy/Dockerfile alexnet": Elsewhere(
        "tests/real/test_dockerfile.py::test_documented_build_takes_python_of_the_model"
    ),
    "docker run --rm -p 5001:5000 alexnet": NotHere("needs a docker daemon"),
    "pyclassify promote alexnet 4": Run(code=1, printed="alexnet"),  # it is the champion's network
    'pyclassify promote alexnet 4 --force --reason "half the size"': Run(
        after="pyclassify promote alexnet 4", printed="champion"
    ),
    "pyclassify rollback alexnet": Run(
        after='pyclassify promote alexnet 4 --force --reason "half the size"', printed="champion"
    ),
    f"pyclassify follow {_CHAMPION} served --once": Run(printed="served/current"),
    "UVICORN_TIMEOUT_WORKER_HEALTHCHECK=120 mlflow models serve -m served/current "
    "--env-manager uv --port 5001 --workers 2": Elsewhere(
        "tests/registry/test_follow.py::"
        "test_server_loads_a_new_version_under_load_without_a_failed_request"
    ),
    f"pyclassify follow {_CHAMPION} served": Run(
        printed="served/current", code=1, interrupted=True
    ),
    "pyclassify predict --data=ImageFolderDataModule --data_path=photos "
    f"--ckpt_path={_CHAMPION}": Run(printed="predictions"),
    "pyclassify predict --data=ImageFolderDataModule --data_path=photos --ckpt_path=RUN_ID "
    "--output=labels.csv": Run(printed="labels.csv"),
}
_SUBMISSION = ". --backend-config slurm/ulysses.json -P devices=2"
_RECONCILE = "tests/slurm/test_reconcile.py"
SLURM = {
    "mlflow run . --backend slurm --backend-config slurm/ulysses.json -P devices=2": Elsewhere(
        "tests/real/cluster/test_ddp.py"
    ),
    "mlflow run . --backend slurm --backend-config "
    '\'{"partition": "gpu", "gpu_type": "a100"}\' -P devices=2': Elsewhere(
        "tests/real/cluster/test_gpu_types.py"
    ),
    "pyclassify slurm status RUN_ID": Elsewhere(f"{_CLUSTER}::test_logs_and_status_of_a_run"),
    "pyclassify slurm logs -f RUN_ID": Elsewhere(f"{_CLUSTER}::test_logs_and_status_of_a_run"),
    "pyclassify slurm cancel RUN_ID": Elsewhere(
        f"{_CLUSTER}::test_status_of_a_waiting_job_has_the_reason_and_cancel_ends_it"
    ),
    "pyclassify slurm resume RUN_ID": Elsewhere("tests/real/cluster/test_requeue.py"),
    "pyclassify slurm reconcile --dry-run": Elsewhere(_RECONCILE),
    "pyclassify slurm reconcile": Elsewhere(_RECONCILE),
    f"pyclassify slurm render {_SUBMISSION}": Run(printed="(?m)^#SBATCH --"),
    f"pyclassify slurm check {_SUBMISSION}": Elsewhere(
        f"{_CLUSTER}::test_check_prints_when_the_job_would_start_and_makes_nothing"
    ),
    "pyclassify slurm clear": Elsewhere(
        f"{_CLUSTER}::test_clear_prints_the_folders_that_it_removes"
    ),
    "pyclassify slurm clear --days 1 -n": Elsewhere(
        f"{_CLUSTER}::test_clear_prints_the_folders_that_it_removes"
    ),
    "conda create -n pyclassify python=3.11": _CONDA,
    "conda activate pyclassify": _CONDA,
    "pip install -r requirements.txt -e .": _CONDA,
    "python -m pyclassify train --devices 2": _LAUNCHED,
    "torchrun --nproc-per-node=2 -m pyclassify train --devices 2": _LAUNCHED,
    "srun python -m pyclassify train --devices 4 --num_nodes 2": Elsewhere(
        "tests/real/cluster/test_launching.py"
    ),
}
SERVICE = {
    "apt-get install nginx postgresql python3-venv": _ROOT,
    "adduser --system --group --home /var/lib/mlflow mlflow": _ROOT,
    "python3 -m venv /opt/mlflow": _ROOT,
    "/opt/mlflow/bin/pip install 'mlflow>=3.17,<4' boto3 flask-wtf psycopg2-binary": _ROOT,
    "install -D --mode=600 deploy/service.env /etc/mlflow/service.env": _ROOT,
    "install -D --mode=644 deploy/auth.ini /etc/mlflow/auth.ini": _ROOT,
    "set -a && . /etc/mlflow/service.env && set +a && PATH=/opt/mlflow/bin:$PATH": NotHere(
        "needs the files of the commands above it; tests/support/service.py reads service.env"
    ),
    "install --mode=644 deploy/mlflow.service /etc/systemd/system/ && "
    "systemctl enable --now mlflow": _SYSTEMD,
    "install --mode=644 deploy/nginx.conf /etc/nginx/conf.d/mlflow.conf": _ROOT,
    "systemctl reload nginx": _SYSTEMD,
    "mkdir -p ~/.config/systemd/user && cp deploy/pyclassify-* ~/.config/systemd/user/": _SYSTEMD,
    "systemctl --user enable --now pyclassify-sync.service pyclassify-reconcile.timer": _SYSTEMD,
    "loginctl enable-linger": _SYSTEMD,
    "setpriv --reuid=mlflow --regid=mlflow --init-groups bash": NotHere(
        "an interactive shell of a user that only the server's machine has"
    ),
}
CONTRIBUTING = {
    "ruff check . && ruff format . && lint-imports && mypy": Elsewhere(".ci/run::lint-imports"),
    "sphinx-build -W -b html docs docs/_build": Elsewhere(".ci/run::sphinx-build"),
    "sphinx-build -b linkcheck docs docs/_build/links": NotHere("asks other sites for their pages"),
    "pytest tests/test_model.py": _TESTS,
    'pytest -n auto --dist loadgroup -m "not slurm and not service and not browser and '
    'not environment"': _TESTS,
    "pytest -n auto --dist loadgroup": Elsewhere(".ci/run::documented test"),
    "pytest -n auto --dist loadgroup -m slow": Elsewhere(".ci/run::loadgroup -m slow"),
    ".ci/run": _CI,
    ".ci/pin": NotHere("downloads the metadata of all packages"),
    "coverage erase && coverage run -m pytest -n auto --dist loadgroup": _TESTS,
    "coverage combine -q && coverage report": _TESTS,
    "PYCLASSIFY_SCREENSHOTS=shots pytest tests/real/test_browser.py": _TESTS,
    "python -m benchmarks.train": _HOURS,
    "python -m benchmarks.data": _HOURS,
    "python -m benchmarks.accuracy FOLDER": _HOURS,
    "python -m benchmarks.ablation RECIPE FOLDER": _HOURS,
    "python -m benchmarks.curves RUN_ID …": NotHere("needs runs of several epochs"),
    "python -m benchmarks.pictures --data FOLDER": _HOURS,
    "python -m benchmarks.pictures --data FOLDER --only run": _HOURS,
    "python -m benchmarks.pictures --runs RUN_ID RUN_ID": NotHere("needs runs of several epochs"),
    "python -m benchmarks.startup": _HOURS,
    "python -m benchmarks.tracking": _HOURS,
    "python -m benchmarks.serve": _HOURS,
    "python -m benchmarks.submit": _HOURS,
    "python -m benchmarks.service": _HOURS,
    "python -m benchmarks.ablation alexnet-bn-cifar10.yaml FOLDER --images 3000 "
    "--validation-ratio 0.34 --epochs 3 -- --batch_size 128 --optimizer.lr 0.15": _HOURS,
    "python -m benchmarks.train --batch 1024 --processes 1 --steps 100 --precision bf16-mixed "
    "--compile": NotHere("needs a GPU"),
    "python -m benchmarks.fault_injection --faults 20 --seed 1 --epochs 100": _HOURS,
}
COMMANDS = {
    **README,
    **TRAINING,
    **DATA,
    **RUNS,
    **SERVING,
    **SLURM,
    **SERVICE,
    **CONTRIBUTING,
}
# Blocks of JSON that are no backend config, by their first words, and why.
JSON_OUTPUT = {
    '{"predictions": ': "a response of the served model",
    '{"error_code": ': "a response of the served model",
}
