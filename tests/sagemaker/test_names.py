"""What `rayfm.sagemaker` offers, and what importing it costs."""

import json
import subprocess
import sys

import rayfm.errors
import rayfm.sagemaker

PUBLIC = [
    "BytesDeserializer", "FactorizationMachines", "FactorizationMachinesModel", "FactorizationMachinesPredictor",
    "FileSystemInput", "FileSystemRecordSet", "IdentitySerializer", "JSONDeserializer", "JSONLinesDeserializer",
    "JSONLinesSerializer", "JSONSerializer", "RecordDeserializer", "RecordSerializer", "RecordSet", "ShuffleConfig",
    "SimpleBaseDeserializer", "SimpleBaseSerializer", "TrainingInput", "TrainingJobAnalytics", "Transformer",
    "UnexpectedStatusException", "s3_input",
]  # fmt: skip


def test_all__is_exactly_the_public_list():
    assert rayfm.sagemaker.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(rayfm.sagemaker))


def test_all__every_name_can_be_imported():
    aliases = ["UnexpectedStatusException", "s3_input"]
    for name in PUBLIC:
        assert name in aliases or getattr(rayfm.sagemaker, name).__name__ == name
    assert rayfm.sagemaker.s3_input is rayfm.sagemaker.TrainingInput
    assert rayfm.sagemaker.UnexpectedStatusException is rayfm.errors.JobFailedError
    assert not hasattr(rayfm.sagemaker, "Factorisation")


def test_modules__that_import_sagemaker_brings_along_are_there():
    code = (
        "from rayfm import sagemaker; modules = (sagemaker.analytics, sagemaker.deserializers, sagemaker.inputs, "
        "sagemaker.predictor, sagemaker.serializers, sagemaker.transformer); "
        "print(sagemaker.deserializers.JSONDeserializer is sagemaker.JSONDeserializer, hasattr(sagemaker, 'session'))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "True False\n"


def test_estimator__is_constructed_without_ray():
    code = "import sys, json, rayfm; rayfm.FactorizationMachines(epochs=1); print(json.dumps(list(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"ray", "numba", "pandas"} & set(json.loads(found.stdout))
