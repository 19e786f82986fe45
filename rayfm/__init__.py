"""rayfm: factorization machines on Ray, compatible with Amazon SageMaker's.

The public names are imported when they are first used: ``import rayfm`` starts no Ray and compiles nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "DataError": "rayfm.errors",
    "DivergenceError": "rayfm.errors",
    "EndpointError": "rayfm.errors",
    "FactorizationMachine": "rayfm.model",
    "FactorizationMachines": "rayfm.sagemaker.estimator",
    "FactorizationMachinesModel": "rayfm.sagemaker.model",
    "FactorizationMachinesPredictor": "rayfm.sagemaker.predictor",
    "HyperparameterError": "rayfm.errors",
    "Hyperparameters": "rayfm.hyperparameters",
    "JobFailedError": "rayfm.errors",
    "ModelFileError": "rayfm.errors",
    "ParquetColumns": "rayfm.formats.parquet_columns",
    "RayfmError": "rayfm.errors",
    "ReadOptions": "rayfm.reading",
    "RecordSet": "rayfm.sagemaker.records",
    "ResourceError": "rayfm.errors",
    "SparseBatch": "rayfm.batch",
    "StorageError": "rayfm.errors",
    "TrainingResult": "rayfm.training.job",
    "Transformer": "rayfm.sagemaker.transformer",
    "WorkerError": "rayfm.errors",
    "check": "rayfm.training.doctor",
    "deploy": "rayfm.serving.endpoint",
    "evaluate": "rayfm.training.scoring",
    "predict": "rayfm.training.scoring",
    "read": "rayfm.reading",
    "train": "rayfm.training.driver",
    "transform": "rayfm.training.transform",
}

__all__ = sorted(_HOMES)  # the table above, so that a name is written once

if TYPE_CHECKING:
    from rayfm.batch import SparseBatch as SparseBatch
    from rayfm.errors import DataError as DataError
    from rayfm.errors import DivergenceError as DivergenceError
    from rayfm.errors import EndpointError as EndpointError
    from rayfm.errors import HyperparameterError as HyperparameterError
    from rayfm.errors import JobFailedError as JobFailedError
    from rayfm.errors import ModelFileError as ModelFileError
    from rayfm.errors import RayfmError as RayfmError
    from rayfm.errors import ResourceError as ResourceError
    from rayfm.errors import StorageError as StorageError
    from rayfm.errors import WorkerError as WorkerError
    from rayfm.formats.parquet_columns import ParquetColumns as ParquetColumns
    from rayfm.hyperparameters import Hyperparameters as Hyperparameters
    from rayfm.model import FactorizationMachine as FactorizationMachine
    from rayfm.reading import ReadOptions as ReadOptions
    from rayfm.reading import read as read
    from rayfm.sagemaker.estimator import FactorizationMachines as FactorizationMachines
    from rayfm.sagemaker.model import FactorizationMachinesModel as FactorizationMachinesModel
    from rayfm.sagemaker.predictor import FactorizationMachinesPredictor as FactorizationMachinesPredictor
    from rayfm.sagemaker.records import RecordSet as RecordSet
    from rayfm.sagemaker.transformer import Transformer as Transformer
    from rayfm.serving.endpoint import deploy as deploy
    from rayfm.training.doctor import check as check
    from rayfm.training.driver import train as train
    from rayfm.training.job import TrainingResult as TrainingResult
    from rayfm.training.scoring import evaluate as evaluate
    from rayfm.training.scoring import predict as predict
    from rayfm.training.transform import transform as transform


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rayfm' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
