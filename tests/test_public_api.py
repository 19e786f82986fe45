"""What `import rayfm` gives, and what it costs."""

import json
import subprocess
import sys

import rayfm

HEAVY = ("ray", "numba", "pyarrow", "scipy", "pandas", "click", "rich", "google.protobuf")

PUBLIC = [
    "DataError", "DivergenceError", "EndpointError", "FactorizationMachine", "FactorizationMachines",
    "FactorizationMachinesModel", "FactorizationMachinesPredictor", "HyperparameterError", "Hyperparameters",
    "JobFailedError", "ModelFileError", "ParquetColumns", "RayfmError", "ReadOptions", "RecordSet", "ResourceError",
    "SparseBatch", "StorageError", "TrainingResult", "Transformer", "WorkerError", "check", "deploy", "evaluate",
    "predict", "read", "train", "transform",
]  # fmt: skip


def test_all__is_exactly_the_public_list():
    assert rayfm.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(rayfm))


def test_all__every_name_can_be_imported():
    for name in PUBLIC:
        assert getattr(rayfm, name).__name__ == name


def test_unknown_name__is_an_attribute_error():
    assert not hasattr(rayfm, "Factorisation")


def test_import__loads_nothing_heavy():
    code = f"import sys, json, rayfm; print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []
