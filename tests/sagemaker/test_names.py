"""What `rayfm.sagemaker` offers, and what importing it costs."""

import json
import subprocess
import sys

import rayfm.errors
import rayfm.sagemaker

PUBLIC = [
    "BytesDeserializer", "FactorizationMachines", "FactorizationMachinesModel", "FactorizationMachinesPredictor",
    "FileSystemRecordSet", "IdentitySerializer", "JSONDeserializer", "JSONLinesDeserializer", "JSONLinesSerializer",
    "JSONSerializer", "RecordDeserializer", "RecordSerializer", "RecordSet", "SimpleBaseDeserializer",
    "SimpleBaseSerializer", "TrainingInput", "TrainingJobAnalytics", "Transformer", "UnexpectedStatusException",
]  # fmt: skip


def test_all__is_exactly_the_public_list():
    assert rayfm.sagemaker.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(rayfm.sagemaker))


def test_all__every_name_can_be_imported():
    for name in PUBLIC[:-1]:
        assert getattr(rayfm.sagemaker, name).__name__ == name
    assert rayfm.sagemaker.UnexpectedStatusException is rayfm.errors.JobFailedError
    assert not hasattr(rayfm.sagemaker, "Factorisation")


def test_estimator__is_constructed_without_ray():
    code = "import sys, json, rayfm; rayfm.FactorizationMachines(epochs=1); print(json.dumps(list(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"ray", "numba", "pandas"} & set(json.loads(found.stdout))
