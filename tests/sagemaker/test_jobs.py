"""A training job in SageMaker's words, from written directories and from real runs."""

import logging
import time
from datetime import UTC, datetime

import numpy as np
import pytest

from rayfm.errors import DataError, JobFailedError, StoppedError, WorkerError
from rayfm.sagemaker.analytics import METRIC_DEFINITIONS
from rayfm.sagemaker.jobs import LatestTrainingJob, failure_reason
from rayfm.training.jobs import TrainingJob
from tests.events import job_event, run, write_job

GOLDEN_KEYS = {
    "TrainingJobName", "TrainingJobStatus", "SecondaryStatus", "ModelArtifacts", "AlgorithmSpecification", "RoleArn",
    "InputDataConfig", "OutputDataConfig", "ResourceConfig", "StoppingCondition", "HyperParameters", "CreationTime",
    "TrainingStartTime", "TrainingEndTime", "LastModifiedTime", "TrainingTimeInSeconds", "BillableTimeInSeconds",
    "SecondaryStatusTransitions", "FinalMetricDataList",
}  # fmt: skip
"""Those of a description that SageMaker's SDK was once given; its ARN has no meaning here."""

DETAILS = {
    "role": "arn:aws:iam::111122223333:role/SM", "train_instance_type": "ml.c5.xlarge", "train_volume_size": 30,
    "input_mode": "File", "hyperparameters": {"num_factors": "2", "bias_lr": "1e-06"},
}  # fmt: skip


def at(seconds):
    return datetime.fromtimestamp(seconds, UTC)


def described(tmp_path, **job):
    return LatestTrainingJob(TrainingJob(write_job(tmp_path, **job))).describe()


def test_describe__has_the_shape_of_sagemakers_answer(tmp_path):
    description = described(tmp_path, details=DETAILS, archive=True, max_run_s=86400)
    assert set(description) == GOLDEN_KEYS
    assert description["TrainingJobName"] == "first"
    assert description["TrainingJobStatus"] == description["SecondaryStatus"] == "Completed"
    assert description["ModelArtifacts"] == {"S3ModelArtifacts": f"{tmp_path}/first/output/model.tar.gz"}
    assert description["HyperParameters"] == DETAILS["hyperparameters"]
    assert description["RoleArn"] == DETAILS["role"]
    assert description["OutputDataConfig"] == {"S3OutputPath": str(tmp_path), "KmsKeyId": ""}
    assert description["ResourceConfig"] == {
        "InstanceCount": 2, "InstanceType": "ml.c5.xlarge", "VolumeSizeInGB": 30,
    }  # fmt: skip
    assert description["StoppingCondition"] == {"MaxRuntimeInSeconds": 86400}
    source = {"S3DataSource": {"S3DataType": "ManifestFile", "S3Uri": "s3://bucket/train.manifest"}}
    assert description["InputDataConfig"] == [{"ChannelName": "train", "DataSource": source}]


def test_describe__names_the_metrics_of_the_task(tmp_path):
    algorithm = described(tmp_path)["AlgorithmSpecification"]
    assert algorithm["TrainingInputMode"] == "File"
    assert {"Name": "test:rmse", "Regex": r"#quality_metric: host=\S+, test rmse <loss>=(\S+)"} in algorithm[
        "MetricDefinitions"
    ]
    assert len(algorithm["MetricDefinitions"]) < len(METRIC_DEFINITIONS)


def test_describe__counts_the_time_from_the_first_byte_of_data(tmp_path):
    description = described(tmp_path)
    assert description["CreationTime"] == at(1000.0)
    assert description["TrainingStartTime"] == at(1000.2)
    assert description["TrainingEndTime"] == description["LastModifiedTime"] == at(1013.0)
    assert description["TrainingTimeInSeconds"] == description["BillableTimeInSeconds"] == 13


def test_describe__lists_the_transitions_without_gaps(tmp_path):
    transitions = described(tmp_path)["SecondaryStatusTransitions"]
    names = ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert [each["Status"] for each in transitions] == names
    assert [each["EndTime"] for each in transitions[:-1]] == [each["StartTime"] for each in transitions[1:]]
    assert transitions[-1]["EndTime"] == transitions[-1]["StartTime"] == at(1013.0)
    assert transitions[1]["StatusMessage"] == "Downloading input data"


def test_describe__has_the_last_value_of_each_metric(tmp_path):
    final = {each["MetricName"]: each for each in described(tmp_path, events=run(trained=3))["FinalMetricDataList"]}
    assert final["train:progress"]["Value"] == 15.0
    assert final["test:rmse"] == {"MetricName": "test:rmse", "Value": 1.0002629948968227, "Timestamp": at(1012.0)}
    assert {"train:rmse", "train:rmse:epoch", "train:throughput"} < set(final)


def test_describe__of_a_job_that_runs_leaves_out_what_is_not_known(tmp_path):
    events = list(run())[:5]
    description = described(tmp_path, events=events, alive=time.time())
    assert (description["TrainingJobStatus"], description["SecondaryStatus"]) == ("InProgress", "Training")
    assert not {"TrainingEndTime", "TrainingTimeInSeconds", "FailureReason", "RoleArn"} & set(description)
    assert "EndTime" not in description["SecondaryStatusTransitions"][-1]
    assert description["ResourceConfig"] == {"InstanceCount": 2, "InstanceType": "local"}
    assert description["HyperParameters"]["scale_rates"] == "True"
    assert description["ModelArtifacts"] == {"S3ModelArtifacts": f"{tmp_path}/first/model.safetensors"}
    stopping = described(tmp_path, name="second", events=events, alive=time.time(), status="Stopping")
    assert stopping["SecondaryStatus"] == "Stopping"


def test_describe__of_a_job_that_died_without_a_word(tmp_path):
    description = described(tmp_path, events=list(run())[:5])
    assert description["SecondaryStatusTransitions"][-1]["Status"] == description["SecondaryStatus"] == "Failed"
    assert description["FailureReason"].startswith("AlgorithmError: no process keeps first alive any more")
    assert description["TrainingEndTime"] == at(1013.0)  # when it was last known to live


@pytest.mark.parametrize(
    ("output_path", "expected"),
    [("s3://bucket/out", "s3://bucket/out"), ("s3://bucket/out?region=a", "s3://bucket/out?region=a"), ("/", "/")],
)
def test_describe__knows_the_output_path(tmp_path, output_path, expected):
    from rayfm.sagemaker.jobs import _output_path
    from rayfm.storage import join
    from rayfm.training.job import JobDirectory

    assert _output_path(TrainingJob(JobDirectory(join(output_path, "first")))) == expected


@pytest.mark.parametrize(
    ("error", "prefix"),
    [("DataError", "ClientError: "), ("HyperparameterError", "ClientError: "), ("StorageError", "ClientError: "),
     ("DivergenceError", "ClientError: "), ("ResourceError", "ClientError: "), ("WorkerError", "AlgorithmError: "),
     (None, "AlgorithmError: ")],
)  # fmt: skip
def test_failure_reason__tells_whose_fault_it_was(error, prefix):
    assert failure_reason({"error": error, "reason": "boom"}) == f"{prefix}boom"


def test_failure_reason__has_at_most_1024_characters():
    assert len(failure_reason({"error": "WorkerError", "reason": "x" * 2000})) == 1024
    assert len(failure_reason({"error": "WorkerError", "reason": "x" * 1008})) == 1024
    assert failure_reason({"error": "WorkerError", "reason": "x" * 1009}).endswith("x…")


def test_wait__of_a_failed_job_raises_with_its_reason(tmp_path, capsys):
    end = {"status": "Failed", "reason": "rows.txt:3: bad.", "error": "DataError"}
    job = LatestTrainingJob(TrainingJob(write_job(tmp_path, events=run(end=end))))
    with pytest.raises(JobFailedError) as raised:
        job.wait(logs=False)
    assert str(raised.value) == "Error for Training job first: Failed. Reason: ClientError: rows.txt:3: bad."
    assert raised.value.actual_status == "Failed"
    assert capsys.readouterr().out.splitlines()[-1] == "1970-01-01 00:16:53 Failed - Training job failed"


def test_wait__of_a_stopped_job_is_a_warning(tmp_path, caplog, capsys):
    end = {"status": "Stopped", "reason": "the job was stopped.", "error": "StoppedError"}
    with caplog.at_level(logging.WARNING):
        LatestTrainingJob(
            TrainingJob(write_job(tmp_path, events=[job_event(), {**end, "event": "end", "time": 1001.0}]))
        ).wait()
    assert caplog.messages == ["Job ended with status 'Stopped' rather than 'Completed': the job was stopped."]


def test_wait__lets_errors_of_the_waiting_through(tmp_path, monkeypatch, capsys):
    job = TrainingJob(write_job(tmp_path, events=list(run())[:5]))

    def lost(watcher):
        raise WorkerError("the cluster cannot be reached.")

    monkeypatch.setattr(job, "wait", lost)
    monkeypatch.setattr(job, "describe", job.directory.read_status)
    with pytest.raises(WorkerError, match="cannot be reached"):
        LatestTrainingJob(job).wait()


@pytest.fixture
def start(ray_cluster, no_leftovers, tmp_path):
    """A function that submits a tiny job below `tmp_path`."""
    from rayfm.training.driver import submit

    started = []

    def start(labels=None, **settings):
        features = np.eye(20, dtype=np.float32)
        task = {"num_factors": 1, "predictor_type": "regressor", "mini_batch_size": 5, "seed": 1}
        task |= settings.pop("hyperparameters", {})
        labels = np.arange(20.0) if labels is None else labels
        started.append(
            submit(
                features, labels=labels, hyperparameters=task, output_path=str(tmp_path), job_name="real", **settings
            )
        )
        return LatestTrainingJob(started[-1])

    yield start
    for job in started:
        job.dismiss()


def test_run__waits_prints_and_describes(start, capsys, tmp_path):
    job = start(archive=False, details={"role": "me"})
    assert job.name == job.job_name == "real"
    job.wait()
    lines = capsys.readouterr().out.splitlines()
    description = job.describe()
    for transition in description["SecondaryStatusTransitions"]:
        text = f"{transition['StartTime']:%Y-%m-%d %H:%M:%S} {transition['Status']} - {transition['StatusMessage']}"
        assert lines.count(text) == 1
    assert lines[-2] == f"Training seconds: {description['TrainingTimeInSeconds']}"
    assert description["SecondaryStatus"] == "Completed"
    assert description["RoleArn"] == "me"
    assert TrainingJob.attach("real", output_path=str(tmp_path)).describe()["status"] == "Completed"


def test_run__that_fails_raises_the_same_error_in_every_process(start, capsys, tmp_path):
    job = start(labels=np.full(20, np.nan))
    with pytest.raises(JobFailedError, match="Reason: ClientError: ") as raised:
        job.wait()
    assert isinstance(raised.value.__cause__, DataError)
    elsewhere = LatestTrainingJob(TrainingJob.attach(str(tmp_path / "real")))
    with pytest.raises(JobFailedError) as again:
        elsewhere.wait(logs="None")
    assert str(again.value) == str(raised.value)
    assert elsewhere.describe()["FailureReason"] == raised.value.reason


def test_run__is_stopped_by_a_limit_of_time(start, capsys):
    job = start(hyperparameters={"epochs": 1_000_000}, max_run_s=0.5)
    job.wait(logs=False)
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith(" MaxRuntimeExceeded - Training job runtime exceeded MaxRuntimeInSeconds provided")
    )
    description = job.describe()
    assert (description["TrainingJobStatus"], description["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")


def test_run__interrupted_while_waited_for_is_stopped_and_not_taken_for_done(start, monkeypatch):
    class Impatient:
        def __init__(self, logs):
            pass

        def __call__(self, event):
            if event["event"] == "epoch":
                raise KeyboardInterrupt

    monkeypatch.setattr("rayfm.sagemaker.jobs.StatusLog", Impatient)
    job = start(hyperparameters={"epochs": 1_000_000})
    with pytest.raises(StoppedError, match="interrupted"):
        job.wait()
    assert job.describe()["TrainingJobStatus"] == "Stopped"


def test_run__is_stopped(start, capsys):
    job = start(hyperparameters={"epochs": 1_000_000})
    job.stop()
    assert job.describe()["TrainingJobStatus"] == "Stopped"
    job.wait()
