"""The predictors of SageMaker's SDK, of both its versions, get the scores of the model from real endpoints."""

import json

import numpy as np
import pytest

from rayfm.model import FactorizationMachine
from rayfm.serving import endpoint

RNG = np.random.default_rng(12)
ROWS = RNG.normal(size=(5, 6)).astype("f4") * (RNG.random((5, 6)) < 0.6)
LINEAR, FACTORS = RNG.normal(size=6).astype("f4"), RNG.normal(size=(6, 3)).astype("f4")
MODELS = {
    "fm-regressor": FactorizationMachine(0.25, LINEAR, FACTORS),
    "fm-classifier": FactorizationMachine(0.25, LINEAR, FACTORS, "binary_classifier"),
}

BOTH_VERSIONS = """
import io, json, sys
from unittest import mock
import boto3, numpy, sagemaker, scipy.sparse
from sagemaker.amazon.common import write_spmatrix_to_sparse_tensor
from sagemaker.amazon.factorization_machines import FactorizationMachinesPredictor

RECORDIO = "application/x-recordio-protobuf"
url, rows, endpoints = sys.argv[1], numpy.array(json.loads(sys.argv[2]), "f4"), sys.argv[3:]
instances = [{"features": row} for row in rows.tolist()]
sparse_records = io.BytesIO()
write_spmatrix_to_sparse_tensor(sparse_records, scipy.sparse.csr_matrix(rows))

runtime = boto3.client("sagemaker-runtime", endpoint_url=url)
session = sagemaker.Session(sagemaker_client=mock.MagicMock(), sagemaker_runtime_client=runtime)

def requests(name, of, to_json, of_json):
    fm = FactorizationMachinesPredictor(name, session)
    return {
        "records": (fm, rows),
        "records of float64": (fm, rows.astype("f8")),
        "records, answered in JSON": (of(name, session, fm.serializer, of_json), rows),
        "JSON": (of(name, session, to_json, of_json), {"instances": instances}),
        "JSON, a bare list": (of(name, session, to_json, of_json), rows),
        "JSON, answered in records": (of(name, session, to_json, fm.deserializer), {"instances": instances}),
    }

def outcome(predictor, data):
    try:
        answer = predictor.predict(data)
    except runtime.exceptions.ModelError as error:
        return error.response["OriginalStatusCode"]
    if isinstance(answer, dict):
        return answer["predictions"]
    if isinstance(answer[0], dict):
        return answer
    return [{name: value.float32_tensor.values[0] for name, value in record.label.items()} for record in answer]

def show(all_requests):
    print(json.dumps({name: {kind: outcome(*one) for kind, one in all_requests(name).items()} for name in endpoints}))
"""

VERSION_1 = """
from sagemaker.amazon.common import record_deserializer
from sagemaker.predictor import RealTimePredictor, csv_serializer, json_deserializer, json_serializer

def all_requests(name):
    of_sparse = RealTimePredictor(name, session, None, record_deserializer(), content_type=RECORDIO)
    return {
        **requests(name, RealTimePredictor, json_serializer, json_deserializer),
        "sparse records": (of_sparse, sparse_records.getvalue()),
        "CSV": (RealTimePredictor(name, session, csv_serializer, json_deserializer), rows),
    }

show(all_requests)
"""

VERSION_2 = """
from sagemaker.amazon.common import RecordDeserializer, RecordSerializer
from sagemaker.deserializers import JSONDeserializer, JSONLinesDeserializer
from sagemaker.predictor import Predictor
from sagemaker.serializers import CSVSerializer, IdentitySerializer, JSONLinesSerializer, JSONSerializer

class InstancesSerializer(JSONSerializer):
    def serialize(self, data):
        return json.dumps({"instances": [{"features": row} for row in data.tolist()]})

def all_requests(name):
    def by(serializer, deserializer):
        return Predictor(name, session, serializer, deserializer)

    return {
        **requests(name, Predictor, JSONSerializer(), JSONDeserializer()),
        "records of any predictor": (by(RecordSerializer(), RecordDeserializer()), rows),
        "sparse records": (by(IdentitySerializer(RECORDIO), RecordDeserializer()), sparse_records.getvalue()),
        "JSON by a class of one's own": (by(InstancesSerializer(), JSONDeserializer()), rows),
        "JSON Lines": (by(JSONLinesSerializer(), JSONLinesDeserializer()), instances),
        "CSV": (by(CSVSerializer(), JSONDeserializer()), rows),
    }

show(all_requests)
"""

SDKS = {"run_with_sagemaker_1": VERSION_1, "run_with_sagemaker": VERSION_2}


@pytest.fixture(scope="module")
def url(serve_url, tmp_path_factory):
    """Where there is an endpoint of each model."""
    for name, model in MODELS.items():
        path = tmp_path_factory.mktemp("m") / "model.safetensors"
        model.save(path)
        endpoint.deploy(str(path), name)
    return serve_url


@pytest.fixture(scope="module", params=SDKS)
def outcomes(request, url):
    """What each request of each endpoint comes to, by a version of the SDK."""
    run = request.getfixturevalue(request.param)
    return json.loads(run(BOTH_VERSIONS + SDKS[request.param], url, json.dumps(ROWS.tolist()), *MODELS))


@pytest.mark.parametrize("name", MODELS)
def test_sdks_predictors__get_the_scores_of_the_model_but_not_for_csv(name, outcomes):
    model = MODELS[name]
    scores = model.predict(ROWS)
    columns = {"score": scores, **({"predicted_label": model.labels_of(scores)} if model.is_classifier else {})}
    predictions = [
        {column: pytest.approx(values[row], rel=1e-6) for column, values in columns.items()} for row in range(len(ROWS))
    ]
    assert outcomes[name] == {**dict.fromkeys(outcomes[name], predictions), "CSV": 415}
