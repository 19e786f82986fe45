"""Record sets, serializers and predictors of rayfm and of SageMaker's SDK can stand in for each other."""

import functools
import http.server
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

import rayfm
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import write_frame
from rayfm.sagemaker.records import write_record_set
from rayfm.sagemaker.serializers import RecordSerializer

RECORDIO = "application/x-recordio-protobuf"
ROOT = Path(rayfm.__file__).parents[1]

RECORD_SET = """
import json, sys
import numpy, sagemaker

bucket, rows, shards = sys.argv[1:]
stored = numpy.load(rows)
estimator = sagemaker.FactorizationMachines(
    "arn:aws:iam::123456789012:role/r", int(shards), "ml.c4.xlarge", num_factors=2, predictor_type="regressor",
    sagemaker_session=sagemaker.Session(default_bucket=bucket),
    data_location=f"s3://{bucket}/sdk/", output_path=f"s3://{bucket}/out/",
)
records = estimator.record_set(stored["rows"], stored["labels"], channel="test")
channel = records.data_channel()["test"].config
print(json.dumps({"fields": vars(records), "repr": repr(records), "config": channel}))
"""

READ_MANIFEST = """
import io, json, sys
import boto3
from sagemaker.amazon.common import read_records

def fetch(uri):
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()

first, *names = json.loads(fetch(sys.argv[1]))
rows = []
for name in names:
    for record in read_records(io.BytesIO(fetch(first["prefix"] + name))):
        tensor = record.features["values"].float32_tensor
        label = record.label["values"].float32_tensor.values
        rows.append([list(tensor.keys), list(tensor.values), list(tensor.shape), list(label)])
print(json.dumps(rows))
"""

SDK_PREDICTOR = """
import sys, types
import boto3, numpy
from sagemaker.predictor import Predictor
from rayfm.sagemaker.serializers import RecordDeserializer, RecordSerializer

client = boto3.client("sagemaker-runtime", endpoint_url=sys.argv[1])
session = types.SimpleNamespace(sagemaker_runtime_client=client)
predictor = Predictor("fm-ep", session, serializer=RecordSerializer(), deserializer=RecordDeserializer())
records = predictor.predict(numpy.array([[1, 2], [3, 4]], "f4"))
print([record.label["score"].float32_tensor.values[0] for record in records])
"""

OUR_PREDICTOR = """
import sys
import numpy
from sagemaker.amazon.common import RecordDeserializer, RecordSerializer
from sagemaker.deserializers import BytesDeserializer
from sagemaker.serializers import JSONSerializer
from rayfm.sagemaker import FactorizationMachinesPredictor

predictor = FactorizationMachinesPredictor(
    "fm-ep", serializer=RecordSerializer(), deserializer=RecordDeserializer(), endpoint_url=sys.argv[1]
)
records = predictor.predict(numpy.array([[1, 2], [3, 4]], "f4"))
predictor.serializer, predictor.deserializer = JSONSerializer(), BytesDeserializer()
predictor.predict({"instances": numpy.array([[1.0]])})
print([record.label["score"].float32_tensor.values[0] for record in records])
"""


@pytest.fixture
def rows():
    rng = np.random.default_rng(6)
    return (rng.normal(size=(7, 5)) * (rng.random((7, 5)) < 0.6)).astype(np.float32)


@pytest.fixture
def labels():
    return np.arange(7) % 2


@pytest.mark.parametrize("shards", [1, 3])
def test_record_set__is_the_sdks_object_for_object(shards, rows, labels, bucket, run_with_sagemaker, tmp_path):
    np.savez(tmp_path / "rows.npz", rows=rows, labels=labels)
    theirs = json.loads(run_with_sagemaker(RECORD_SET, bucket.name, tmp_path / "rows.npz", shards))
    ours = write_record_set(rows, labels, location=f"s3://{bucket.name}/rayfm", num_shards=shards, channel="test")

    batch = rayfm.read(theirs["fields"]["s3_data"])
    np.testing.assert_array_equal(batch.to_scipy().toarray(), rows)
    np.testing.assert_array_equal(batch.labels, labels)

    folders = [theirs["fields"]["s3_data"].rpartition("/")[0], ours.s3_data.rpartition("/")[0]]
    assert [folder.rpartition("/")[2].startswith("FactorizationMachines-20") for folder in folders] == [True, True]
    their_folder, our_folder = (folder.removeprefix(f"s3://{bucket.name}/") for folder in folders)
    objects = {item.key: item.get()["Body"].read() for item in bucket.objects.all()}
    for key in [key for key in objects if key.startswith(their_folder)]:
        expected = objects[key].replace(their_folder.encode(), our_folder.encode())
        assert objects.pop(key.replace(their_folder, our_folder)) == expected
        del objects[key]
    assert [key for key in objects if not key.endswith("/")] == []

    moved = theirs["repr"].replace(their_folder, our_folder).partition(", ")[2]
    assert repr(ours).partition(", ")[2] == moved
    config = json.dumps(ours.data_channel()["test"].config, sort_keys=True)
    assert config == json.dumps(theirs["config"], sort_keys=True).replace(their_folder, our_folder)


def test_sdk__reads_a_sparse_record_set_of_rayfm(rows, bucket, run_with_sagemaker):
    matrix = sparse.csr_matrix(rows)
    record_set = write_record_set(matrix, np.arange(7, dtype="f4"), location=f"s3://{bucket.name}/rayfm", num_shards=2)
    read = json.loads(run_with_sagemaker(READ_MANIFEST, record_set.s3_data))
    assert [row[0] for row in read] == [row.indices.tolist() for row in matrix]
    assert [np.float32(row[1]).tolist() for row in read] == [row.data.tolist() for row in matrix]
    assert [row[2:] for row in read] == [[[5], [label]] for label in range(7)]


class Scorer(http.server.BaseHTTPRequestHandler):
    """Answers every request with two scores in Records, and keeps what it was asked."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.headers["Content-Type"], self.headers["Accept"], body))
        self.send_response(200)
        self.send_header("Content-Type", RECORDIO)
        self.end_headers()
        for score in (0.5, 1.5):
            record = Record()
            record.label["score"].float32_tensor.values.append(score)
            write_frame(self.wfile, record.SerializeToString())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scorer) as server:
        server.asked = []
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


SENT = (RECORDIO, RECORDIO, RecordSerializer().serialize(np.array([[1, 2], [3, 4]], "f4")))


def test_sdks_predictor__takes_serializers_of_rayfm(server, s3_endpoint, run_with_sagemaker):
    url = f"http://127.0.0.1:{server.server_port}"
    assert run_with_sagemaker(SDK_PREDICTOR, url, python_path=ROOT) == "[0.5, 1.5]"
    assert server.asked == [SENT]


def test_predictor_of_rayfm__takes_serializers_of_the_sdk(server, run_with_sagemaker):
    url = f"http://127.0.0.1:{server.server_port}"
    assert run_with_sagemaker(OUR_PREDICTOR, url, python_path=ROOT) == "[0.5, 1.5]"
    assert server.asked == [SENT, ("application/json", "*/*", b'{"instances": [[1.0]]}')]
