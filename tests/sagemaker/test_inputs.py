"""Inputs against the arguments and configurations of the real SDK."""

import inspect
import logging

import pytest

from rayfm.errors import DataError
from rayfm.sagemaker import FileSystemInput, ShuffleConfig, TrainingInput, s3_input

RECORDIO = "application/x-recordio-protobuf"

SDK_ARGUMENTS = {
    "s3_data": inspect.Parameter.empty, "distribution": None, "compression": None, "content_type": None,
    "record_wrapping": None, "s3_data_type": "S3Prefix", "instance_groups": None, "input_mode": None,
    "attribute_names": None, "target_attribute_name": None, "shuffle_config": None, "hub_access_config": None,
    "model_access_config": None,
}  # fmt: skip
"""Of sagemaker.inputs.TrainingInput in version 2.257, with their defaults, in order."""

EVERY_ARGUMENT = (
    "s3://b/k", "ShardedByS3Key", "Gzip", RECORDIO, "RecordIO", "S3Prefix", ["g"], "Pipe", ["a"], "y",
    ShuffleConfig(3), {"HubContentArn": "h"}, {"AcceptEula": True},
)  # fmt: skip

SDK_CONFIG = {
    "DataSource": {
        "S3DataSource": {
            "S3DataType": "S3Prefix",
            "S3Uri": "s3://b/k",
            "S3DataDistributionType": "ShardedByS3Key",
            "InstanceGroupNames": ["g"],
            "AttributeNames": ["a"],
            "HubAccessConfig": {"HubContentArn": "h"},
            "ModelAccessConfig": {"AcceptEula": True},
        }
    },
    "CompressionType": "Gzip",
    "ContentType": RECORDIO,
    "RecordWrapperType": "RecordIO",
    "InputMode": "Pipe",
    "TargetAttributeName": "y",
    "ShuffleConfig": {"Seed": 3},
}
"""What the SDK's class makes of these."""


def test_training_input__has_the_sdks_arguments_in_the_sdks_order():
    parameters = inspect.signature(TrainingInput).parameters
    assert list(parameters) == list(SDK_ARGUMENTS)
    assert {name: parameter.default for name, parameter in parameters.items()} == SDK_ARGUMENTS


def test_training_input__keeps_every_argument_in_its_configuration():
    given = TrainingInput(*EVERY_ARGUMENT)
    assert given.config == SDK_CONFIG
    assert TrainingInput.from_config(SDK_CONFIG) == given


def test_training_input__is_replicated_unless_told_otherwise():
    def distribution(*given, **named):
        return (
            TrainingInput("s3://b/k", *given, **named)
            .config["DataSource"]["S3DataSource"]
            .get("S3DataDistributionType")
        )

    assert distribution() == distribution(None) == distribution(distribution=None) == "FullyReplicated"
    assert distribution("ShardedByS3Key") == "ShardedByS3Key"
    assert distribution(target_attribute_name="y") is None  # as the SDK does


def test_training_input__warns_of_shuffling_that_does_not_happen(caplog):
    with caplog.at_level(logging.WARNING):
        s3_input("s3://b/a/", compression="Gzip", input_mode="Pipe")
        s3_input("s3://b/k/", shuffle_config=ShuffleConfig(3))
    assert [record.getMessage() for record in caplog.records] == [
        "shuffle_config has no effect at s3://b/k/: set the hyperparameter shuffle."
    ]


@pytest.mark.parametrize(
    ("content_type", "file_format"),
    [
        (None, None),
        (RECORDIO, "recordio"),
        ("application/x-recordio-protobuf; charset=utf-8", "recordio"),
        ("Text/LibSVM", "libsvm"),
        ("application/x-parquet", "parquet"),
    ],
)
def test_content_type__names_a_format(content_type, file_format):
    assert TrainingInput("s3://b/k", content_type=content_type).format == file_format
    assert FileSystemInput("fs-1", "EFS", "/d", "ro", content_type).format == file_format


def test_content_type__must_name_a_format_if_any():
    for make in (lambda: TrainingInput("k", None, None, "text/csv"), lambda: FileSystemInput(*FOLDER, "text/csv")):
        with pytest.raises(DataError, match=f"content_type must be one of {RECORDIO}, .*, got 'text/csv'"):
            make()


FOLDER = ("fs-1", "FSxLustre", "/data", "rw")


def test_file_system_input__has_the_sdks_configuration():
    given = FileSystemInput(*FOLDER, RECORDIO)
    assert given.config == {
        "DataSource": {
            "FileSystemDataSource": {
                "FileSystemId": "fs-1",
                "FileSystemType": "FSxLustre",
                "DirectoryPath": "/data",
                "FileSystemAccessMode": "rw",
            }
        },
        "ContentType": RECORDIO,
    }
    assert FileSystemInput.from_config(given.config) == given
    assert "ContentType" not in FileSystemInput(*FOLDER).config
