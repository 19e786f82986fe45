"""Where the data of a channel lies, as the classes of SageMaker's SDK with these names say it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from rayfm.errors import DataError
from rayfm.storage.uris import OPTIONS

logger = logging.getLogger(__name__)

SHARDED, REPLICATED = "ShardedByS3Key", "FullyReplicated"
DISTRIBUTIONS = (SHARDED, REPLICATED)
MANIFEST, PREFIX = "ManifestFile", "S3Prefix"
DATA_TYPES = (MANIFEST, PREFIX)
FILE_SYSTEM_TYPES = ("FSxLustre", "EFS")
ACCESS_MODES = ("ro", "rw")

CONTENT_FORMATS = {
    "application/x-recordio-protobuf": "recordio",
    "application/x-parquet": "parquet",
    "text/libsvm": "libsvm",
    "text/x-libsvm": "libsvm",
}
"""Formats, by their names in `rayfm.ReadOptions`, by content type; SageMaker's algorithm trains on the first only."""

# Attributes of a TrainingInput by what CreateTrainingJob calls them, in a channel and in its source.
_OF_CHANNEL = {
    "compression": "CompressionType",
    "content_type": "ContentType",
    "record_wrapping": "RecordWrapperType",
    "input_mode": "InputMode",
    "target_attribute_name": "TargetAttributeName",
}
_OF_SOURCE = {
    "s3_data": "S3Uri",
    "s3_data_type": "S3DataType",
    "distribution": "S3DataDistributionType",
    "instance_groups": "InstanceGroupNames",
    "attribute_names": "AttributeNames",
    "hub_access_config": "HubAccessConfig",
    "model_access_config": "ModelAccessConfig",
}


@dataclass
class ShuffleConfig:
    """How SageMaker shuffles the objects of a channel; see `TrainingInput`."""

    seed: int


@dataclass
class TrainingInput:
    """Data in a storage, as SageMaker's `TrainingInput` (`s3_input` before version 2) describes it.

    Attributes
    ----------
    s3_data
        URI of a manifest, a folder, a file or the beginning of names; any storage, not only S3.
    distribution
        ``FullyReplicated``, unless given, or ``ShardedByS3Key``. Kept: see `RecordSet`.
    content_type
        Format of the files, by one of the words of `CONTENT_FORMATS`, such as ``application/x-recordio-protobuf``: it
        goes before the estimator's `read_options`. Left out, each file tells its format.
    s3_data_type
        ``S3Prefix`` or ``ManifestFile``.
    compression, record_wrapping, input_mode
        Kept; no effect here: each file tells how it is compressed and framed, and is read in pieces.
    instance_groups, attribute_names, target_attribute_name, hub_access_config, model_access_config
        Kept; no effect here: they belong to other algorithms and services of SageMaker.
    shuffle_config
        Kept; no effect here, which a warning says: the hyperparameter `shuffle` changes the order of rows.
    """

    s3_data: str
    distribution: str | None = None
    compression: str | None = None
    content_type: str | None = None
    record_wrapping: str | None = None
    s3_data_type: str = PREFIX
    instance_groups: list[str] | None = None
    input_mode: str | None = None
    attribute_names: list[str] | None = None
    target_attribute_name: str | None = None
    shuffle_config: ShuffleConfig | None = None
    hub_access_config: dict[str, Any] | None = None
    model_access_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not (self.distribution or self.target_attribute_name):  # the SDK's condition
            self.distribution = REPLICATED
        if self.distribution is not None:
            check_choice("distribution", self.distribution, DISTRIBUTIONS)
        check_choice("s3_data_type", self.s3_data_type, DATA_TYPES)
        format_of(self.content_type)  # checks it
        if self.shuffle_config is not None:
            logger.warning("shuffle_config has no effect at %s: set the hyperparameter shuffle.", self.s3_data)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the input whose `config` this is.

        >>> TrainingInput.from_config(TrainingInput("s3://bucket/train/", "ShardedByS3Key").config).distribution
        'ShardedByS3Key'
        """
        source = config["DataSource"]["S3DataSource"]
        given = {name: config[theirs] for name, theirs in _OF_CHANNEL.items() if theirs in config}
        given |= {name: source[theirs] for name, theirs in _OF_SOURCE.items() if theirs in source}
        if "ShuffleConfig" in config:
            given["shuffle_config"] = ShuffleConfig(config["ShuffleConfig"]["Seed"])
        return cls(**given)

    @property
    def config(self) -> dict[str, Any]:
        """The channel as CreateTrainingJob describes it."""
        source, channel = (
            {theirs: getattr(self, name) for name, theirs in names.items() if getattr(self, name) is not None}
            for names in (_OF_SOURCE, _OF_CHANNEL)
        )
        shuffle = {"ShuffleConfig": {"Seed": self.shuffle_config.seed}} if self.shuffle_config else {}
        return {"DataSource": {"S3DataSource": source}, **channel, **shuffle}

    @property
    def format(self) -> str | None:
        """The format that `content_type` names; None leaves it to each file."""
        return format_of(self.content_type)

    @property
    def sources(self) -> list[str]:
        """The URIs to train on."""
        if self.s3_data_type == MANIFEST and not OPTIONS.sub("", self.s3_data).endswith(".manifest"):
            raise DataError(f"a manifest must be named *.manifest, got {self.s3_data}.", "Copy it to such a name.")
        return [self.s3_data]


@dataclass
class FileSystemInput:
    """A folder of a file system that every machine of the cluster has mounted.

    Attributes
    ----------
    file_system_id, file_system_type, file_system_access_mode
        Kept, after the checks of the SDK (``EFS`` or ``FSxLustre``; ``ro`` or ``rw``). Nothing is mounted here.
    directory_path
        The folder that is read, as this machine and the workers see it: an absolute path, not one that begins at the
        mount point.
    content_type
        As in `TrainingInput`.
    """

    file_system_id: str
    file_system_type: str
    directory_path: str
    file_system_access_mode: str = "ro"
    content_type: str | None = None

    def __post_init__(self) -> None:
        for what, value, allowed in (
            ("type", self.file_system_type, FILE_SYSTEM_TYPES),
            ("access mode", self.file_system_access_mode, ACCESS_MODES),
        ):
            if value not in allowed:
                raise DataError(f"Unrecognized file system {what}: {value}. Valid values: {', '.join(allowed)}.")
        format_of(self.content_type)  # checks it

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Return the input whose `config` this is."""
        source = config["DataSource"]["FileSystemDataSource"]
        place = (source["FileSystemId"], source["FileSystemType"], source["DirectoryPath"])
        return cls(*place, source["FileSystemAccessMode"], config.get("ContentType"))

    @property
    def config(self) -> dict[str, Any]:
        """The channel as CreateTrainingJob describes it."""
        source = {
            "FileSystemId": self.file_system_id,
            "FileSystemType": self.file_system_type,
            "DirectoryPath": self.directory_path,
            "FileSystemAccessMode": self.file_system_access_mode,
        }
        content = {} if self.content_type is None else {"ContentType": self.content_type}
        return {"DataSource": {"FileSystemDataSource": source}, **content}

    @property
    def format(self) -> str | None:
        """The format that `content_type` names; None leaves it to each file."""
        return format_of(self.content_type)

    @property
    def sources(self) -> list[str]:
        """The URIs to train on."""
        return [self.directory_path]


s3_input = TrainingInput
"""Its name in version 1 of the SDK."""


def format_of(content_type: str | None) -> str | None:
    """Return the format that a content type names; None, which leaves it to each file, for none.

    >>> format_of("application/x-recordio-protobuf; charset=utf-8")
    'recordio'

    Raises
    ------
    DataError
        If it names none.
    """
    if not content_type:
        return None
    name = content_type.partition(";")[0].strip().lower()
    if name not in CONTENT_FORMATS:
        raise DataError(f"content_type must be one of {', '.join(CONTENT_FORMATS)}, got {content_type!r}.")
    return CONTENT_FORMATS[name]


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise a DataError if `value` is not one of those allowed."""
    if value not in allowed:
        raise DataError(f"{name} must be {' or '.join(allowed)}, got {value!r}.")
