import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from rayfm.errors import DataError, EndpointError
from rayfm.formats import recordio
from rayfm.formats.record_pb2 import Record
from rayfm.sagemaker.serializers import (
    BytesDeserializer,
    IdentitySerializer,
    JSONDeserializer,
    JSONLinesDeserializer,
    JSONLinesSerializer,
    JSONSerializer,
    RecordDeserializer,
    RecordSerializer,
)

GOLDEN = Path(__file__).parents[1] / "golden"
REQUESTS = json.loads((GOLDEN / "inference" / "regressor.json").read_text())["requests"]
PREDICT = {case["step"]: case for case in json.loads((GOLDEN / "http" / "sdk_predict.json").read_text())["predict"]}
ROWS = np.array([[1, 0, 0, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0.5], [0] * 7, [0, 0, 2, 0, 0, -1, 0]], "f4")
ROW = [1.0, 0.0, 2.0]


def body_of(name):
    return bytes.fromhex(REQUESTS[name]["body_hex"])


def test_record_serializer__makes_the_sdks_bytes():
    serialize = RecordSerializer().serialize
    assert serialize(ROWS) == body_of("recordio_dense")
    assert serialize(sparse.csr_matrix(ROWS)) == body_of("recordio_sparse")
    assert serialize(np.arange(8, dtype="f4").reshape(2, 4)).hex() == PREDICT["predict_2d"]["body_hex"]
    assert serialize(np.arange(4, dtype="f4")).hex() == PREDICT["predict_1d"]["body_hex"]
    assert serialize(np.arange(4, dtype="f8")).hex() == PREDICT["predict_float64"]["body_hex"]


@pytest.mark.parametrize("make", [sparse.coo_matrix, sparse.csc_array, sparse.lil_matrix, sparse.dok_array])
def test_record_serializer__sends_any_sparse_format_sparse(make):
    assert RecordSerializer().serialize(make(ROWS)) == body_of("recordio_sparse")


def test_record_serializer__sends_lists_as_float32():
    expected = RecordSerializer().serialize(np.array([ROW], "f4"))
    for given in (ROW, tuple(ROW), [ROW], [tuple(ROW)], [np.array(ROW)], [1, 0, 2], [[1, 0, 2]]):
        assert RecordSerializer().serialize(given) == expected


def test_record_serializer__takes_frames_and_sparse_vectors():
    assert RecordSerializer().serialize(pd.DataFrame(ROWS)) == body_of("recordio_dense")
    vector = sparse.coo_array(np.array(ROW, "f4"))
    assert RecordSerializer().serialize(vector) == RecordSerializer().serialize(sparse.csr_array([ROW], dtype="f4"))


@pytest.mark.parametrize("rank", [0, 3, 4])
def test_record_serializer__refuses_other_ranks_in_the_words_of_the_sdk(rank):
    with pytest.raises(ValueError) as caught:
        RecordSerializer().serialize(np.zeros((1,) * rank))
    assert str(caught.value) == f"Expected a 1D or 2D array, but got a {rank}D array instead."


def test_json_serializer__makes_the_documented_layout():
    serialize = JSONSerializer().serialize
    assert serialize(ROWS).encode() == body_of("json_dense_features")
    assert serialize(ROWS.tolist()).encode() == body_of("json_dense_features")
    assert serialize(pd.DataFrame(ROWS)).encode() == body_of("json_dense_features")
    assert serialize(sparse.csr_matrix(ROWS)).encode() == body_of("json_sparse")
    assert serialize(ROW) == '{"instances": [{"features": [1.0, 0.0, 2.0]}]}'


def test_json_serializer__passes_on_what_is_in_a_layout_already():
    serialize = JSONSerializer().serialize
    instance = {"features": ROW}
    assert json.loads(serialize({"instances": [instance]})) == {"instances": [instance]}
    assert json.loads(serialize([instance, instance])) == {"instances": [instance, instance]}
    assert json.loads(serialize({"features": np.array(ROW), "n": np.int64(3)})) == {"features": ROW, "n": 3}
    assert json.loads(serialize([])) == {"instances": []}
    for ready in ('{"a": 1}', b'{"a": 1}'):
        assert serialize(ready) is ready
    assert serialize(io.StringIO("text")) == "text"


def test_json_lines_serializer__writes_an_instance_a_line():
    serialize = JSONLinesSerializer().serialize
    dense = json.loads(body_of("json_dense_features"))["instances"]
    assert [json.loads(line) for line in serialize(ROWS).split("\n")] == dense
    thin = json.loads(body_of("json_sparse"))["instances"]
    assert [json.loads(line) for line in serialize(sparse.csr_matrix(ROWS)).split("\n")] == thin
    assert serialize(iter(dense)) == serialize(dense) == serialize(ROWS)
    assert serialize({"features": ROW}) == '{"features": [1.0, 0.0, 2.0]}'
    assert serialize("as it is\n") == "as it is\n"


def test_json_lines_serializer__makes_the_sdks_bytes_of_instances():
    cases = json.loads((GOLDEN / "http" / "sdk2_predictor_serializers.json").read_text())["cases"]
    [expected] = [case["body_text"] for case in cases if case["case"] == "jsonlines list"]
    assert JSONLinesSerializer().serialize([{"features": ROW}] * 2) == expected


@pytest.mark.parametrize("serializer", [JSONSerializer(), JSONLinesSerializer()])
def test_json_serializers__refuse_numbers_that_json_lacks(serializer):
    with pytest.raises(DataError, match="JSON cannot hold NaN or infinite values"):
        serializer.serialize(np.array([np.nan]))
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        serializer.serialize({"features": object()})


def test_serializers__have_the_sdks_attributes():
    assert RecordSerializer().CONTENT_TYPE == "application/x-recordio-protobuf"
    assert JSONSerializer().CONTENT_TYPE == "application/json"
    assert JSONLinesSerializer().CONTENT_TYPE == "application/jsonlines"
    assert IdentitySerializer().CONTENT_TYPE == "application/octet-stream"
    assert IdentitySerializer("text/csv").content_type == IdentitySerializer("text/csv").CONTENT_TYPE == "text/csv"
    assert RecordDeserializer().ACCEPT == ("application/x-recordio-protobuf",)
    assert JSONDeserializer().ACCEPT == ("application/json",)
    assert JSONLinesDeserializer().ACCEPT == ("application/jsonlines",)
    assert BytesDeserializer().ACCEPT == ("*/*",)
    assert JSONDeserializer(("application/json", "text/json")).ACCEPT == ("application/json", "text/json")
    with pytest.raises(TypeError, match="content_type must be a str"):
        JSONSerializer(content_type=3)


def test_record_deserializer__returns_records_and_closes_the_stream():
    stream = io.BytesIO(bytes.fromhex(PREDICT["predict_2d"]["answer_hex"]))
    records = RecordDeserializer().deserialize(stream, "application/x-recordio-protobuf")
    assert [record.label["score"].float32_tensor.values[0] for record in records] == [0.25, 1.25]
    assert records[0].label["predicted_label"].float32_tensor.values == [0.0]
    assert all(isinstance(record, Record) for record in records)
    assert stream.closed
    assert RecordDeserializer().deserialize(io.BytesIO(), "") == []


def framed(payload):
    file = io.BytesIO()
    recordio.write_frame(file, payload)
    return file.getvalue()


@pytest.mark.parametrize("answer", [b'{"predictions": []}', b"abc", framed(b"\xff\xff"), framed(b"1234")[:-2]])
def test_record_deserializer__says_what_came_instead_of_records(answer):
    with pytest.raises(EndpointError) as caught:
        RecordDeserializer().deserialize(io.BytesIO(answer), "application/json")
    assert str(caught.value).startswith(f"the answer must be RecordIO-protobuf, got application/json: {answer!r}.")


def test_json_deserializers__read_answers():
    stream = io.BytesIO(b'{"predictions": [{"score": 0.5}]}')
    assert JSONDeserializer().deserialize(stream, "application/json") == {"predictions": [{"score": 0.5}]}
    assert stream.closed
    lines = b'{"score": 0.5}\n{"score": 1.5}\n'
    assert JSONLinesDeserializer().deserialize(io.BytesIO(lines), "") == [{"score": 0.5}, {"score": 1.5}]
    assert BytesDeserializer().deserialize(io.BytesIO(lines), "") == lines


@pytest.mark.parametrize("deserializer", [JSONDeserializer(), JSONLinesDeserializer()])
@pytest.mark.parametrize("answer", [b"{", b"\xff\xfe", b"x" * 1000])
def test_json_deserializers__show_the_start_of_what_is_no_json(deserializer, answer):
    with pytest.raises(EndpointError, match="the answer must be JSON") as caught:
        deserializer.deserialize(io.BytesIO(answer), "text/plain")
    assert len(str(caught.value)) < 400
