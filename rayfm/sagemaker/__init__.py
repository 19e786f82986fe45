"""The API of SageMaker's Python SDK for factorization machines, on Ray.

A script for ``sagemaker.FactorizationMachines`` changes its import and keeps the rest:

    from rayfm.sagemaker import FactorizationMachines  # was: from sagemaker import FactorizationMachines
    from rayfm import sagemaker                        # was: import sagemaker

Where the SDK's behaviour is a trap, the docstrings say what is done instead. The names are imported when they are
first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from rayfm.errors import JobFailedError

UnexpectedStatusException = JobFailedError
"""SageMaker's name of `rayfm.errors.JobFailedError`."""

_HOMES = {
    "BytesDeserializer": "rayfm.sagemaker.serializers",
    "FactorizationMachines": "rayfm.sagemaker.estimator",
    "FactorizationMachinesModel": "rayfm.sagemaker.model",
    "FactorizationMachinesPredictor": "rayfm.sagemaker.predictor",
    "FileSystemInput": "rayfm.sagemaker.inputs",
    "FileSystemRecordSet": "rayfm.sagemaker.records",
    "IdentitySerializer": "rayfm.sagemaker.serializers",
    "JSONDeserializer": "rayfm.sagemaker.serializers",
    "JSONLinesDeserializer": "rayfm.sagemaker.serializers",
    "JSONLinesSerializer": "rayfm.sagemaker.serializers",
    "JSONSerializer": "rayfm.sagemaker.serializers",
    "RecordDeserializer": "rayfm.sagemaker.serializers",
    "RecordSerializer": "rayfm.sagemaker.serializers",
    "RecordSet": "rayfm.sagemaker.records",
    "ShuffleConfig": "rayfm.sagemaker.inputs",
    "SimpleBaseDeserializer": "rayfm.sagemaker.serializers",
    "SimpleBaseSerializer": "rayfm.sagemaker.serializers",
    "TrainingInput": "rayfm.sagemaker.inputs",
    "TrainingJobAnalytics": "rayfm.sagemaker.analytics",
    "Transformer": "rayfm.sagemaker.transformer",
    "s3_input": "rayfm.sagemaker.inputs",
}

_MODULES = ("analytics", "deserializers", "inputs", "predictor", "serializers", "transformer")
"""Modules that ``import sagemaker`` brings along, by the names of the SDK."""

__all__ = sorted([*_HOMES, "UnexpectedStatusException"])

if TYPE_CHECKING:
    from rayfm.sagemaker.analytics import TrainingJobAnalytics as TrainingJobAnalytics
    from rayfm.sagemaker.estimator import FactorizationMachines as FactorizationMachines
    from rayfm.sagemaker.inputs import FileSystemInput as FileSystemInput
    from rayfm.sagemaker.inputs import ShuffleConfig as ShuffleConfig
    from rayfm.sagemaker.inputs import TrainingInput as TrainingInput
    from rayfm.sagemaker.inputs import s3_input as s3_input
    from rayfm.sagemaker.model import FactorizationMachinesModel as FactorizationMachinesModel
    from rayfm.sagemaker.predictor import FactorizationMachinesPredictor as FactorizationMachinesPredictor
    from rayfm.sagemaker.records import FileSystemRecordSet as FileSystemRecordSet
    from rayfm.sagemaker.records import RecordSet as RecordSet
    from rayfm.sagemaker.serializers import BytesDeserializer as BytesDeserializer
    from rayfm.sagemaker.serializers import IdentitySerializer as IdentitySerializer
    from rayfm.sagemaker.serializers import JSONDeserializer as JSONDeserializer
    from rayfm.sagemaker.serializers import JSONLinesDeserializer as JSONLinesDeserializer
    from rayfm.sagemaker.serializers import JSONLinesSerializer as JSONLinesSerializer
    from rayfm.sagemaker.serializers import JSONSerializer as JSONSerializer
    from rayfm.sagemaker.serializers import RecordDeserializer as RecordDeserializer
    from rayfm.sagemaker.serializers import RecordSerializer as RecordSerializer
    from rayfm.sagemaker.serializers import SimpleBaseDeserializer as SimpleBaseDeserializer
    from rayfm.sagemaker.serializers import SimpleBaseSerializer as SimpleBaseSerializer
    from rayfm.sagemaker.transformer import Transformer as Transformer


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'rayfm.sagemaker' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
