"""What a job of Ray's makes of the names and the paths of training jobs."""

import json
import re

import pytest

from rayfm.errors import StorageError
from rayfm.sagemaker import FactorizationMachines
from rayfm.training import submission


@pytest.fixture
def submit(monkeypatch):
    """A function that makes this process the entrypoint of a job of Ray's."""
    monkeypatch.setattr(submission, "_named", set())

    def submit(submission_id):
        config = {"runtime_env": {}, "metadata": {"job_submission_id": submission_id, "job_name": submission_id}}
        monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))

    return submit


def test_name__is_the_submission_id_for_the_first_job_of_a_process(submit):
    submit("nightly-7")
    assert submission.name_of_new_job() == "nightly-7"
    assert re.fullmatch(r"nightly-7-\d{4}(-\d\d){5}-\d{3}", submission.name_of_new_job())


@pytest.mark.parametrize("submission_id", ["raysubmit_wY2bD7vzJvQ8YkXq", None, ""])
def test_name__is_made_from_the_time_where_the_user_chose_no_submission_id(submit, caplog, submission_id):
    submit(submission_id)
    assert submission.name_of_new_job().startswith("factorization-machines-2")
    assert not caplog.records or submission_id == ""


@pytest.mark.parametrize("variable", ["", "no JSON", "[]", '{"metadata": null}'])
def test_submission_id__outside_of_jobs_is_none(monkeypatch, variable):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", variable)
    assert submission.submission_id() is None


def test_name__that_cannot_be_a_directory_is_warned_of(submit, caplog):
    submit("../nightly")
    assert submission.name_of_new_job().startswith("factorization-machines-2")
    assert caplog.messages == [
        "the training job is named after the time: a submission id must have 1 to 63 letters, digits and inner hyphens "
        "to be its name, got ../nightly."
    ]


def test_estimator__has_the_submission_id_unless_it_has_a_base_name(submit):
    submit("nightly-8")
    task = {"num_factors": 2, "predictor_type": "regressor"}
    plain = FactorizationMachines("role", 1, "local", **task)
    based = FactorizationMachines("role", 1, "local", base_job_name="clicks", **task)
    assert based._name_of_new_job().startswith("clicks-2")
    assert plain._name_of_new_job() == "nightly-8"


def test_output_path__in_the_folder_that_ray_removes_is_refused(submit, tmp_path, monkeypatch):
    folder = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    submission.check_output_path("rayfm-output")
    submit("nightly")
    with pytest.raises(StorageError, match="output_path must outlive the job, got rayfm-output in the folder"):
        submission.check_output_path("rayfm-output")
    for path in (str(tmp_path), "s3://bucket/runtime_resources/working_dir_files/"):
        submission.check_output_path(path)
