"""Where a job's logs go: SLURM makes no folder, and ends a job whose log it can't open."""

import pytest

from pyclassify.slurm import config, plan, submit
from tests.support.slurm_jobs import write_project


def test_log_folders_are_made(tmp_path):
    read = config.parse_config(
        {"output": "logs/out/%j.out", "error": str(tmp_path / "else/%j.err")}
    )
    submit.make_log_folders(tmp_path / "run", read)
    assert (tmp_path / "run/logs/out").is_dir()
    assert (tmp_path / "else").is_dir()


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "job.sh").touch()
    read = config.parse_config({"output": "job.sh/%j.out"})
    with pytest.raises(OSError, match=r'job\.sh.*"output"'):
        submit.make_log_folders(tmp_path, read)


def test_name_of_a_project_makes_a_file_name(tmp_path):
    project = write_project(tmp_path, "")
    text = (project / "MLproject").read_text()
    (project / "MLproject").write_text(text.replace("foreign", '"mine/and\\nyours"'))

    planned = plan.make_plan(str(project), "main", {}, None, {"environment": "none"})

    assert planned.job_name == "mine-and-yours"
    assert "#SBATCH --job-name=mine-and-yours\n" in planned.render_script("RUN_ID", "1")
