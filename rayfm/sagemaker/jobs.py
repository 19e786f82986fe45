"""A training job in SageMaker's words: its description, and what an estimator calls its latest training job."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rayfm.errors import JobFailedError, RayfmError, StoppedError
from rayfm.sagemaker.analytics import Point, metric_definitions, points_of
from rayfm.sagemaker.status_log import MESSAGES, Lifecycle, StatusLog, Transition, final_status

if TYPE_CHECKING:
    from rayfm.training.jobs import TrainingJob

LONGEST_REASON = 1024
USERS_FAULTS = (
    "DataError",
    "DivergenceError",
    "HyperparameterError",
    "ModelFileError",
    "ResourceError",
    "StorageError",
)
"""Errors that another input or setting cures: those that SageMaker reports as ``ClientError``."""

logger = logging.getLogger(__name__)


class LatestTrainingJob:
    """The job that an estimator has started last, or is attached to.

    Parameters
    ----------
    job
        The job.
    """

    def __init__(self, job: TrainingJob) -> None:
        self.job = job

    def __repr__(self) -> str:
        return f"<rayfm.sagemaker.LatestTrainingJob {self.name}>"

    @property
    def name(self) -> str:
        """The job's name."""
        return self.job.name

    @property
    def job_name(self) -> str:
        """The job's name."""
        return self.job.name

    def wait(self, logs: bool | str | Iterable[str] = True) -> None:
        """Wait for the job, printing its secondary statuses as `StatusLog` does.

        A job that was stopped from elsewhere is no error; a warning is logged. An interrupt stops a job that this
        process has started (the SDK's goes on, and costs), and ends the waiting for another's.

        Parameters
        ----------
        logs
            Whether to print the training's log as well: True, False, or one of the SDK's words All, Training, Rules
            and None, or a list of them.

        Raises
        ------
        JobFailedError
            If the job failed; ``__cause__`` is the run's own error where it is known.
        StoppedError
            If it was stopped by an interrupt here.
        """
        try:
            self.job.wait(StatusLog(logs=logs))
        except RayfmError as error:
            if isinstance(error.__context__, KeyboardInterrupt):
                raise
            described = self.job.describe()
            if described["status"] == "Failed":
                raise JobFailedError(self.name, "Failed", failure_reason(described)) from error
            if described["status"] != "Stopped" or not isinstance(error, StoppedError | JobFailedError):
                raise
            logger.warning("Job ended with status 'Stopped' rather than 'Completed': %s", described.get("reason"))

    def describe(self) -> dict[str, Any]:
        """Return what SageMaker's DescribeTrainingJob would, as far as it has a meaning here."""
        return describe_training_job(self.job.describe(), self.job)

    def stop(self) -> None:
        """Stop the job and wait until it has stopped; nothing happens when it has ended."""
        self.job.stop()


def describe_training_job(described: Mapping[str, Any], job: TrainingJob) -> dict[str, Any]:
    """Return the description of a job in the shape of SageMaker's DescribeTrainingJob.

    There is no ``TrainingJobArn``: no job at AWS exists that it could name. ``HyperParameters`` has what the estimator
    was given, or every value of a job that no estimator started. ``S3Uri`` of data that came from memory says so in
    words. A limit of time is only there where one was set. What is not known is left out.

    Parameters
    ----------
    described
        What job.json says of the job.
    job
        The job, for its directory and its events.
    """
    events = job.directory.read_events()
    lifecycle = _lifecycle(described, events)
    details = described.get("details") or {}
    hyperparameters = details.get("hyperparameters") or described["hyperparameters"]
    description = {
        "TrainingJobName": job.name,
        "ModelArtifacts": {"S3ModelArtifacts": artifact_uri(described, job)},
        "TrainingJobStatus": described["status"],
        "SecondaryStatus": _secondary_status(described, lifecycle),
        "FailureReason": failure_reason(described) if described["status"] == "Failed" else None,
        "HyperParameters": {name: str(value) for name, value in hyperparameters.items()},
        "AlgorithmSpecification": {
            "TrainingImage": details.get("train_image"),
            "TrainingInputMode": details.get("input_mode") or "File",
            "MetricDefinitions": metric_definitions(described["hyperparameters"]["predictor_type"]),
        },
        "RoleArn": details.get("role"),
        "InputDataConfig": [_channel(name, uri) for name, uri in described["channels"].items()],
        "OutputDataConfig": {"S3OutputPath": _output_path(job), "KmsKeyId": details.get("output_kms_key") or ""},
        "ResourceConfig": {
            "InstanceCount": described["train_instance_count"],
            "InstanceType": details.get("train_instance_type") or "local",
            "VolumeSizeInGB": details.get("train_volume_size"),
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": described.get("max_run_s")},
        **_times(described, lifecycle),
        "SecondaryStatusTransitions": _transitions(lifecycle),
        "FinalMetricDataList": _final_metrics(points_of(events)),
    }
    known: dict[str, Any] = _without_none(description)
    return known


def artifact_uri(described: Mapping[str, Any], job: TrainingJob) -> str:
    """Return the archive where the job writes one, as an estimator's do, else the model file."""
    return job.directory.archive_uri if described.get("archive") else job.directory.model_uri


def failure_reason(described: Mapping[str, Any]) -> str:
    """Return why a job failed as ``FailureReason`` says it, at most 1024 characters.

    >>> failure_reason({"error": "DataError", "reason": "train.txt:3: bad."})
    'ClientError: train.txt:3: bad.'
    """
    kind = "ClientError" if described.get("error") in USERS_FAULTS else "AlgorithmError"
    reason = f"{kind}: {described.get('reason') or 'no reason was written down.'}"
    return reason if len(reason) <= LONGEST_REASON else f"{reason[: LONGEST_REASON - 1]}…"


def _lifecycle(described: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> Lifecycle:
    """Tell the job's transitions; the last is job.json's when the run died before it could write an event."""
    lifecycle = Lifecycle(events)
    ended = described.get("ended")
    if described["status"] not in ("InProgress", "Stopping"):
        final = Transition(final_status(described), ended or described["alive"])
        if not lifecycle.transitions or lifecycle.transitions[-1].status != final.status:
            lifecycle.transitions.append(final)
    return lifecycle


def _secondary_status(described: Mapping[str, Any], lifecycle: Lifecycle) -> str:
    if described["status"] == "Stopping":
        return "Stopping"
    return lifecycle.transitions[-1].status if lifecycle.transitions else "Starting"


def _output_path(job: TrainingJob) -> str:
    """Return the folder of the job's directory."""
    head, _, options = job.directory.uri.rpartition(f"/{job.name}")
    return f"{head or '/'}{options}"


def _channel(name: str, uri: str) -> dict[str, Any]:
    kind = "ManifestFile" if uri.endswith(".manifest") else "S3Prefix"
    return {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": kind, "S3Uri": uri}}}


def _times(described: Mapping[str, Any], lifecycle: Lifecycle) -> dict[str, Any]:
    ended = described.get("ended")
    if ended is None and described["status"] not in ("InProgress", "Stopping"):
        ended = described["alive"]
    seconds = None if ended is None else lifecycle.training_seconds(ended)
    return {
        "CreationTime": _datetime(described["started"]),
        "TrainingStartTime": _datetime(lifecycle.began("Downloading")),
        "TrainingEndTime": _datetime(ended),
        "LastModifiedTime": _datetime(ended or described["alive"]),
        "TrainingTimeInSeconds": seconds,
        "BillableTimeInSeconds": seconds,
    }


def _transitions(lifecycle: Lifecycle) -> list[dict[str, Any]]:
    """Return the transitions; each ends when the next begins, the last only if it is final."""
    found = []
    for index, transition in enumerate(lifecycle.transitions):
        following = lifecycle.transitions[index + 1 : index + 2]
        final = transition.status in ("Completed", "Failed", "Stopped", "MaxRuntimeExceeded")
        ends = following[0].since if following else transition.since if final else None
        found.append(
            {
                "Status": transition.status,
                "StartTime": _datetime(transition.since),
                "EndTime": _datetime(ends),
                "StatusMessage": MESSAGES[transition.status],
            }
        )
    return found


def _final_metrics(points: Iterable[Point]) -> list[dict[str, Any]]:
    """Return the last value of each metric."""
    last = {point.name: point for point in points}
    return [{"MetricName": name, "Value": last[name].value, "Timestamp": _datetime(last[name].time)} for name in last]


def _datetime(time: float | None) -> datetime | None:
    return None if time is None else datetime.fromtimestamp(time, UTC)


def _without_none(value: Any) -> Any:
    """Leave out what is None, at any depth: SageMaker's answers have no nulls."""
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value
