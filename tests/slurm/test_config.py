"""The backend's configuration: the values it accepts, and the errors for others."""

import json
from pathlib import Path

import pytest

from pyclassify.slurm import config, plan
from pyclassify.slurm.states import PENDING_ADVICE, STATES
from pyclassify.utils.options import UsageError

SHIPPED = sorted(Path("slurm").glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_are_valid(path):
    assert config.parse_config(json.loads(path.read_text())).job_name == "pyclassify"


def test_keys_that_mlflow_adds_are_ignored():
    added = {"ENV_MANAGER": "local", "SYNCHRONOUS": False, "DOCKER_ARGS": {}, "STORAGE_DIR": None}

    read = config.parse_config({**added, "build_image": False, "docker_auth": None, "mem": "8G"})

    assert read == config.Config(mem="8G")


@pytest.mark.parametrize(
    ("given", "keys"),
    [
        ({"gres": "gpu:a100:2"}, '"gpu_type": "a100" and "gpu_option": "gres"'),
        ({"gres": "gpu:2"}, '"gpu_option": "gres"'),
        ({"gpus_per_node": "a100:2"}, '"gpu_type": "a100"'),
        ({"gpus": "a100:2"}, '"gpu_type": "a100"'),
        ({"gpu_type": "gpu:a100:2"}, '"gpu_type": "a100"'),
        ({"gpu_type": "a100:2"}, '"gpu_type": "a100"'),
    ],
)
def test_gpus_in_the_form_of_sbatch_are_refused_with_the_keys(given, keys):
    with pytest.raises(
        ValueError, match=rf"the number of GPUs follows from -P devices; give {keys}"
    ):
        config.parse_config(given)


@pytest.mark.parametrize(
    "gpu_type", ["a100", "nvidia_h100_80gb_hbm3_1g.10gb", "1g.5gb", "A100-SXM4"]
)
def test_gpu_type_of_any_name_of_slurm_is_accepted(gpu_type):
    assert config.parse_config({"gpu_type": gpu_type}).gpu_type == gpu_type
    assert config.parse_config({"gpu_type": 3090}).gpu_type == "3090"


def test_gpu_type_without_gpus_is_refused():
    with pytest.raises(ValueError, match=r"^gpu_type is 'a100' and gpus is 0 .*remove one"):
        config.parse_config({"gpu_type": "a100", "gpus": 0})


def test_unknown_key_error_has_the_nearest_and_the_valid_keys():
    # the form of this message
    form = (
        r"^unknown key 'partion' in the backend config. Did you mean 'partition'\? Valid keys: ac"
    )
    with pytest.raises(UsageError, match=form):
        config.parse_config({"partion": "gpu"})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("time", "10 minutes", "minutes, minutes:seconds, hours:minutes:seconds, days-hours"),
        ("time", "1:90:00", "minutes"),
        ("mem", "64 gigabytes", 'megabytes, .*"64G"'),
        ("nodes", 0, "an integer from 1"),
        ("nodes", True, "an integer from 1"),
        ("gpus", -1, "an integer from 0"),
        ("job_name", "two\nlines", "one line of text"),
        ("job_name", "a/b", "one line .*slashes"),
        ("output", "%x/out", "a file name .*folder"),
        ("partition", "", "one line of text"),
        ("output", "a\\b.out", "a file name without backslashes"),
        ("signal", "soon", "a signal .*seconds"),
        ("exclusive", "yes", 'true, false, "user" or "mcs"'),
        ("mail_type", "SOMETIMES", "one or more of NONE, BEGIN, END"),
        ("modules", "cuda", "a list .*one line"),
        ("setup", ["one\ntwo"], "a list .*one line"),
        ("wait", "no", "true or false"),
        ("requeue_seconds", 0, "an integer from 1 to 65535"),
        ("requeue_attempts", 0, "an integer from 1"),
        ("gpu_type", "tesla:v100", "the name of one type"),
        ("gpu_type", "", "the name of one type"),
        ("gpu_option", "--gres", '"gpus-per-node" .* or "gres"'),
        ("tracking", "offline", '"direct" or "spool"'),
    ],
)
def test_invalid_value_error_has_the_expected_values(key, value, expected):
    # the form of this message
    form = rf"^invalid {key} in the backend config: .* \((.*; )?expected {expected}"
    with pytest.raises(UsageError, match=form):
        config.parse_config({key: value})


@pytest.mark.parametrize(
    ("given", "first"),
    [
        ({"nodes": 0, "partition": ""}, "invalid nodes "),
        ({"partition": "", "nodes": 0}, "invalid partition "),
        ({"partion": "gpu", "nodes": 0}, "unknown key 'partion' "),
        ({"nodes": 0, "partion": "gpu"}, "invalid nodes "),
    ],
)
def test_error_of_several_wrong_keys_is_of_the_first_as_given(given, first):
    with pytest.raises(ValueError, match=f"^{first}"):
        config.parse_config(given)


@pytest.mark.parametrize(
    "time",
    [
        *(30, "30", "30:00", "02:00:00", "1-12", "1-12:30", "1-12:30:00", "120:00"),
        *("UNLIMITED", "unlimited", "INFINITE", "Infinite", "-1", -1, 0, "0"),
    ],
)
def test_time_in_each_format_of_sbatch_is_accepted(time):
    assert config.parse_config({"time": time}).time == str(time)


@pytest.mark.parametrize(
    ("exports", "why"),
    [
        ({"API_TOKEN": "abcdef"}, "API_TOKEN looks like a credential"),
        ({"DB": "postgresql://me:pass@host/db"}, "DB looks like a credential"),
        ({"OPTIONS": "--token=abcdef"}, "OPTIONS looks like a credential"),
        ({"a b": "1"}, "'a b' is not the name of a variable"),
        ({"MLFLOW_RUN_ID": "1"}, "the backend sets MLFLOW_RUN_ID"),
        ({"PYCLASSIFY_SPOOL": "/tmp"}, "the backend sets PYCLASSIFY_SPOOL"),
    ],
)
def test_exports_of_credential_or_backend_variable_is_refused(exports, why):
    form = f"invalid exports in the backend config .{why}.*; expected .*null"
    with pytest.raises(ValueError, match=form) as info:
        config.parse_config({"exports": exports})
    assert "pass@" not in str(info.value)
    assert "abcdef" not in str(info.value)


def test_exported_credential_must_be_set_where_the_job_is_submitted(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ValueError, match=r"exports\.HF_TOKEN is null\b.* not set.*\bexport\b"):
        config.parse_config({"exports": {"HF_TOKEN": None}})

    monkeypatch.setenv("HF_TOKEN", "secret")
    assert config.parse_config({"exports": {"HF_TOKEN": None}}).exports == (("HF_TOKEN", None),)


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("--time=5", 'give the key "time"'),
        ("--array=0-3", "a run is one job"),
        ("--gpus-per-task=1", "it hides the other tasks' GPUs"),
        ("licenses=a", "long names, one per entry"),
        ("-a0-3", "by their long names"),
        ("-D/tmp", "by their long names"),
        ("--comment a", "by their long names"),
        ("--arra=0-3", "it is short for --array; a run is one job"),
        ("--part=gpu", 'it is short for --partition; give the key "partition"'),
        ("--gres=tmpfs:1g,gpu:2", 'follows from -P devices; give "gpu_option": "gres"$'),
        ("--gres=gpu:a100:2", 'give "gpu_type": "a100" and "gpu_option": "gres"$'),
        ("--gres=gpu:3090:2", 'give "gpu_type": "3090" and "gpu_option": "gres"$'),
        ("--gpus-per-node=a100:2", 'follows from -P devices; give "gpu_type": "a100"$'),
        ("--gpus=nvidia_h100_80gb_hbm3_1g.10gb:2", '"gpu_type": "nvidia_h100_80gb_hbm3_1g.10gb"$'),
        ("--gpus-per-node=2", "follows from -P devices$"),
        ("--gpus=2", 'give the key "gpus"'),
        ("--no-requeue", 'give the key "requeue"'),
    ],
)
def test_sbatch_args_with_option_of_a_key_or_the_backend_is_refused(argument, why):
    with pytest.raises(ValueError, match=f"invalid sbatch_args .*{why}"):
        config.parse_config({"sbatch_args": [argument]})


def test_sbatch_args_with_other_options_is_accepted():
    given = ["--licenses=matlab:1", "--gres=tmpfs:1g", "--spread-job", "--mem-per-cpu=1G"]
    assert config.parse_config({"sbatch_args": given}).sbatch_args == tuple(given)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (
            {"signal": "TERM@60"},
            r"^signal is 'TERM@60' and requeue is true\b.*\"requeue_seconds\"",
        ),
        ({"time": 2}, r"^time is '2'.*\b120 seconds.*\"time\""),
        ({"time": "1:00:00", "requeue_seconds": 3600}, r"\b3600 seconds.*\"time\""),
        ({"requeue": False, "requeue_seconds": 60}, '^requeue_seconds is 60 .*"requeue": true too'),
        ({"requeue": False, "requeue_attempts": 3}, '^requeue_attempts is 3 .*"requeue": true too'),
    ],
)
def test_requeue_with_conflicting_key_is_refused(given, error):
    with pytest.raises(ValueError, match=error):
        config.parse_config({"requeue": True, **given})


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        *(("30", 1800), ("30:15", 1815), ("02:00:00", 7200), ("1-12", 129_600)),
        *(("1-12:30", 131_400), ("1-12:30:05", 131_405), ("0", 0)),
        *(("UNLIMITED", 0), ("infinite", 0), ("-1", 0)),
    ],
)
def test_parse_seconds_of_each_format_of_sbatch(time, seconds):
    assert config._parse_seconds(time) == seconds


def test_work_dir_expands_variables_of_the_submitting_shell(monkeypatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    monkeypatch.delenv("NOWHERE", raising=False)

    assert plan.resolve_work_dir(config.parse_config({"work_dir": "$SCRATCH/a"})) == Path(
        "/scratch/me/a"
    )
    with pytest.raises(ValueError, match=r"^work_dir is '\$NOWHERE/a'.*export"):
        plan.resolve_work_dir(config.parse_config({"work_dir": "$NOWHERE/a"}))


def test_container_with_environment_is_refused():
    with pytest.raises(ValueError, match=r"container is 'a.sif' and environment is 'b'"):
        config.parse_config({"container": "a.sif", "environment": "b"})


def format_key_table():
    """The keys as the Markdown table of docs/slurm-keys.md."""
    rows = ["| key | meaning | unit | values | sbatch option |", "|---|---|---|---|---|"]
    for key, field in config.Config.model_fields.items():
        extra = field.json_schema_extra
        default = f" (default: `{field.default}`)" if isinstance(field.default, str) else ""
        option = f"`--{key.replace('_', '-')}`" if extra.get("sbatch") else ""
        meaning = f"{field.description}{default}"
        cells = (f"`{key}`", meaning, extra["unit"], config.describe_values(key), option)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def test_documentation_has_the_keys():
    table = format_key_table()
    assert table in Path("docs/slurm-keys.md").read_text(), f"the table is now\n\n{table}"


def test_documentation_has_the_reasons_of_jobs_that_wait():
    text = Path("docs/slurm-keys.md").read_text()
    cells = {reason: advice.partition("; ") for reason, advice in PENDING_ADVICE.items()}
    rows = [f"| `{reason}` | {why} | {remedy} |" for reason, (why, _, remedy) in cells.items()]
    table = "\n".join(rows)
    assert table in text, f"the table is now\n\n{table}"


def test_documentation_has_the_states():
    text = Path("docs/slurm-keys.md").read_text()
    states = [f"| `{name}` | {each.status} | {each.reason} |" for name, each in STATES.items()]
    assert "\n".join(states) in text
