"""The predictor against a small HTTP server that answers as it is told to."""

import functools
import http.server
import io
import json
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from rayfm.errors import DataError, EndpointError
from rayfm.formats import recordio
from rayfm.formats.record_pb2 import Record
from rayfm.sagemaker import runtime
from rayfm.sagemaker.predictor import FactorizationMachinesPredictor
from rayfm.sagemaker.serializers import (
    BytesDeserializer,
    IdentitySerializer,
    JSONDeserializer,
    JSONLinesDeserializer,
    JSONLinesSerializer,
    JSONSerializer,
    RecordSerializer,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "http"
SDK_CASES = {
    case["case"]: case for case in json.loads((GOLDEN / "sdk2_predictor_serializers.json").read_text())["cases"]
}
PREDICT = {case["step"]: case for case in json.loads((GOLDEN / "sdk_predict.json").read_text())["predict"]}
JSON = {"Content-Type": "application/json"}
ROW = np.array([1, 0, 2], "f4")


class Server(http.server.ThreadingHTTPServer):
    """Keeps what it is asked; answers with `answer(path, headers, body)`: status, headers, body."""

    daemon_threads = True
    request_queue_size = 32  # many threads connect at once

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests = []
        self.connections = set()
        self.answer = lambda path, headers, body: (200, JSON, b'{"predictions": []}')


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet, or the client's delayed acknowledgement costs 40 ms

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.connections.add(self.client_address)
        self.server.requests.append((self.path, self.headers, body))
        status, headers, content = self.server.answer(self.path, self.headers, body)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def connect(server):
    """Make a predictor of the server; all are closed in the end."""
    made = []

    def connect(*arguments, **keywords):
        made.append(FactorizationMachinesPredictor(*(arguments or ("fm-ep",)), endpoint_url=server.url, **keywords))
        return made[-1]

    yield connect
    for predictor in made:
        predictor.close()


@pytest.fixture(autouse=True)
def no_backoff(monkeypatch):
    monkeypatch.setattr(runtime, "_BACKOFF_S", 0)


def scores_of(path, headers, body):
    """Answer each Record with the sum of its features, as an endpoint does: in Records."""
    batches = [chunk.batch for chunk in recordio.read(io.BytesIO(body))]
    file = io.BytesIO()
    for batch in batches:
        for total in np.asarray(batch.to_scipy().sum(axis=1)).ravel().tolist():
            record = Record()
            record.label["score"].float32_tensor.values.append(total)
            recordio.write_frame(file, record.SerializeToString())
    return 200, {"Content-Type": "application/x-recordio-protobuf"}, file.getvalue()


def scores(records):
    return [record.label["score"].float32_tensor.values[0] for record in records]


def test_predict__sends_and_reads_records(server, connect):
    server.answer = scores_of
    rows = np.arange(12, dtype="f4").reshape(4, 3)
    expected = rows.sum(axis=1).tolist()
    predictor = connect()
    for data in (rows, sparse.csr_matrix(rows), rows.tolist(), pd.DataFrame(rows), rows.astype("f8")):
        assert scores(predictor.predict(data)) == expected
    assert scores(predictor.predict(rows[1])) == expected[1:2]
    assert len(server.connections) == 1  # kept open


@pytest.mark.parametrize(
    ("step", "data"),
    [
        ("predict_2d", np.arange(8, dtype="f4").reshape(2, 4)),
        ("predict_1d", np.arange(4, dtype="f4")),
        ("predict_float64", np.arange(4, dtype="f8")),
    ],
)
def test_predict__sends_what_the_sdk_sends(step, data, server, connect):
    golden = PREDICT[step]
    server.answer = lambda *request: (
        200,
        {"Content-Type": golden["headers"]["Accept"]},
        bytes.fromhex(golden["answer_hex"]),
    )
    answer = connect().predict(data)
    assert scores(answer) == [0.25, 1.25][: len(answer)]
    [(path, headers, body)] = server.requests
    assert (path, body.hex()) == ("/endpoints/fm-ep/invocations", golden["body_hex"])
    assert {name: headers[name] for name in golden["headers"]} == golden["headers"]


@pytest.mark.parametrize(
    ("case", "predictor", "call"),
    [
        (
            "json/json dict",
            {"serializer": JSONSerializer(), "deserializer": JSONDeserializer()},
            {"data": {"instances": [{"features": [1.0, 0.0, 2.0]}]}},
        ),
        (
            "jsonlines list",
            {"serializer": JSONLinesSerializer(), "deserializer": JSONLinesDeserializer()},
            {"data": [{"features": [1.0, 0.0, 2.0]}] * 2},
        ),
        (
            "identity bytes sparse recordio + json accept",
            {"serializer": IdentitySerializer("application/x-recordio-protobuf"), "deserializer": JSONDeserializer()},
            {"data": b"\n#\xd7\xce"},
        ),
        (
            "csv",
            {"serializer": IdentitySerializer("text/csv"), "deserializer": JSONDeserializer()},
            {"data": "1.0,0.0,2.0"},
        ),
        (
            "multi accept",
            {
                "serializer": JSONSerializer(),
                "deserializer": JSONDeserializer(("application/json", "application/jsonlines")),
            },
            {"data": {"instances": []}},
        ),
        (
            "initial_args override content type",
            {"serializer": RecordSerializer(), "deserializer": JSONDeserializer()},
            {"data": ROW, "initial_args": {"ContentType": "application/json", "Accept": "application/jsonlines"}},
        ),
        (
            "target_variant/inference_id",
            {"serializer": JSONSerializer(), "deserializer": JSONDeserializer()},
            {
                "data": {"instances": []},
                "target_variant": "v1",
                "inference_id": "i1",
                "custom_attributes": "c=1",
            },
        ),
    ],
)
def test_predict__sends_the_headers_and_bytes_of_the_sdk(case, predictor, call, server, connect):
    connect(**predictor).predict(**call)
    golden = SDK_CASES[case]
    [(path, headers, body)] = server.requests
    assert (path, body.hex()) == (golden["path"], golden["body_hex"])
    assert {name: headers[name] for name in golden["headers"]} == golden["headers"]


def test_predict__sends_every_argument_in_its_header(server, connect):
    connect(deserializer=JSONDeserializer(), component_name="part").predict(
        ROW, {"EndpointName": "other!", "SessionId": "s"}, "m.tar.gz", "v1", "id", "a=b"
    )
    [(path, headers, _)] = server.requests
    assert path == "/endpoints/other%21/invocations"
    sent = {name: value for name, value in headers.items() if name.startswith("X-Amzn")}
    prefix = "X-Amzn-SageMaker"
    assert sent == {
        f"{prefix}-Session-Id": "s",
        f"{prefix}-Target-Model": "m.tar.gz",
        f"{prefix}-Target-Variant": "v1",
        f"{prefix}-Inference-Id": "id",
        f"{prefix}-Custom-Attributes": "a=b",
        f"{prefix}-Inference-Component": "part",
    }


def test_predict__names_the_nearest_argument_for_an_unknown_one(connect):
    with pytest.raises(TypeError, match=r"got 'ContenType'\. Did you mean ContentType\?"):
        connect().predict(ROW, {"ContenType": "application/json"})


@pytest.mark.parametrize("value", ["é→", "a\nb", 7])
def test_predict__names_the_argument_that_no_header_can_hold(value, server, connect):
    with pytest.raises(DataError, match=r"CustomAttributes must be printable ASCII text, got .* Encode it"):
        connect().predict(ROW, custom_attributes=value)
    assert not server.requests


def test_predict__keeps_a_connection_for_each_of_many_threads(server, connect):
    threads = 12  # requests keeps 10 by itself
    together = threading.Barrier(threads)

    def answer(*request):
        together.wait(20)
        return scores_of(*request)

    server.answer = answer
    predictor = connect()
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(2):
            assert [scores(found) for found in pool.map(predictor.predict, [ROW] * threads)] == [[3.0]] * threads
    assert len(server.connections) == threads


def test_predictor__takes_functions_as_version_1_of_the_sdk_did(server, connect):
    predictor = connect()
    predictor.content_type = "application/json"
    predictor.accept = "application/json"
    predictor.serializer = lambda data: json.dumps({"instances": [{"features": row} for row in data.tolist()]})
    predictor.deserializer = lambda stream, content_type: (json.load(stream), content_type)
    assert predictor.predict(ROW[np.newaxis]) == ({"predictions": []}, "application/json")
    [(_, headers, body)] = server.requests
    assert body == b'{"instances": [{"features": [1.0, 0.0, 2.0]}]}'
    assert (headers["Content-Type"], headers["Accept"]) == ("application/json", "application/json")


def test_predictor__has_the_attributes_of_both_versions():
    predictor = FactorizationMachinesPredictor(endpoint="old", endpoint_url="http://host:1/")
    assert (predictor.endpoint, predictor.endpoint_name, predictor.endpoint_url) == ("old", "old", "http://host:1")
    assert predictor.content_type == "application/x-recordio-protobuf"
    assert predictor.accept == ("application/x-recordio-protobuf",)
    assert repr(predictor) == "FactorizationMachinesPredictor('old', endpoint_url='http://host:1')"
    assert predictor.delete_model() is None
    session = object()
    assert FactorizationMachinesPredictor("new", session).sagemaker_session is session


@pytest.mark.parametrize("names", [{}, {"endpoint_name": ""}, {"endpoint_name": "a", "endpoint": "b"}])
def test_predictor__needs_one_name(names):
    with pytest.raises(TypeError, match=r"endpoint_name must be one name, got (none|a and b)"):
        FactorizationMachinesPredictor(**names)


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.coo_array, pd.DataFrame, np.ndarray.tolist])
def test_predict__divides_a_matrix_that_is_too_long_and_joins_the_answers(make, server, connect):
    server.answer = scores_of
    rows = np.arange(1000 * 10, dtype="f4").reshape(1000, 10) % 97
    answer = connect(max_payload_bytes=8192).predict(make(rows))
    assert scores(answer) == rows.sum(axis=1).tolist()
    sizes = [len(body) for _, _, body in server.requests]
    assert max(sizes) <= 8192
    assert len(sizes) <= 1.5 * sum(sizes) / 8192


def test_predict__divides_sparse_rows_of_very_different_lengths(server, connect):
    server.answer = scores_of
    rows = sparse.random_array((300, 500), density=0.02, format="lil", rng=np.random.default_rng(3), dtype=np.float32)
    rows[100:110] = 1.0
    rows = rows.tocsr()
    answer = connect(max_payload_bytes=5000).predict(rows)
    np.testing.assert_allclose(scores(answer), rows.sum(axis=1), rtol=1e-6)
    sizes = [len(body) for _, _, body in server.requests]
    assert max(sizes) <= 5000
    assert len(sizes) < 3 * sum(sizes) / 5000  # long rows in the middle make requests short only there


def test_predict__sends_a_single_row_that_is_too_long_all_the_same(server, connect):
    server.answer = scores_of
    assert scores(connect(max_payload_bytes=100).predict(np.ones((2, 100), "f4"))) == [100, 100]
    assert [len(body) > 100 for _, _, body in server.requests] == [True, True]


def test_predict__joins_predictions_and_lines(server, connect):
    def answer(path, headers, body):
        instances = json.loads(body)["instances"] if b"instances" in body else body.splitlines()
        found = [{"score": 0.5}] * len(instances)
        if headers["Accept"] == "application/json":
            return 200, JSON, json.dumps({"predictions": found}).encode()
        return 200, {"Content-Type": "application/jsonlines"}, "\n".join(map(json.dumps, found)).encode()

    server.answer = answer
    rows = np.ones((50, 20))
    predictor = connect(serializer=JSONSerializer(), deserializer=JSONDeserializer(), max_payload_bytes=1000)
    assert predictor.predict(rows) == {"predictions": [{"score": 0.5}] * 50}
    count = len(server.requests)
    assert count > 1
    predictor.serializer, predictor.deserializer = JSONLinesSerializer(), JSONLinesDeserializer()
    assert predictor.predict([{"features": [1.0] * 20}] * 50) == [{"score": 0.5}] * 50
    assert len(server.requests) > count + 1


def test_predict__stops_after_one_request_when_answers_cannot_be_joined(server, connect):
    predictor = connect(deserializer=BytesDeserializer(), max_payload_bytes=1000)
    with pytest.raises(EndpointError, match=r"answers cannot be joined: bytes\. Send fewer rows"):
        predictor.predict(np.ones((50, 20), "f4"))
    assert len(server.requests) == 1


@pytest.mark.parametrize("deserializer", [None, JSONDeserializer()])
def test_predict__needs_a_prediction_for_each_row_of_a_part(deserializer, server, connect):
    def answer(*request):
        if deserializer:
            return 200, JSON, b'{"predictions": [{"score": 1.0}]}'
        _, headers, content = scores_of(*request)
        return 200, headers, content + content

    server.answer = answer
    with pytest.raises(
        EndpointError, match=r"a prediction for each row, got (1 for \d+|(\d+) for \d+) rows of a request"
    ):
        connect(deserializer=deserializer, max_payload_bytes=1000).predict(np.ones((50, 20), "f4"))
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("data", "serialize", "most"),
    [
        (sparse.csr_matrix((400_000, 10), dtype="f4"), lambda part: b"x" * 24 * part.shape[0], 400_000),
        ([{"features": [1.0] * 100}] * 400_000, lambda part: b"x" * 400 * len(part), 20_000),
    ],
    ids=["empty rows", "dicts"],
)
def test_predict__never_serializes_far_more_than_a_request_holds(data, serialize, most, connect):
    seen = []

    def serializer(part):
        seen.append(len(part) if isinstance(part, list) else part.shape[0])
        return serialize(part)

    list(connect(serializer=serializer)._bodies(data))
    assert max(seen) < most


MODEL_ERROR = {"OriginalStatusCode": 400, "Message": "Received client error (400) from primary"}


@pytest.mark.parametrize(
    ("status", "headers", "body", "code", "text", "attempts"),
    [
        (
            400,
            {"x-amzn-ErrorType": "ValidationError:http://x/"},
            b'{"message": "no fm"}',
            "ValidationError",
            "no fm",
            1,
        ),
        (
            424,
            {},
            json.dumps({"__type": "ModelError", **MODEL_ERROR}).encode(),
            "ModelError",
            MODEL_ERROR["Message"],
            1,
        ),
        (
            429,
            {"Retry-After": "60"},
            b'{"code": "ModelNotReadyException", "message": "x"}',
            "ModelNotReadyException",
            "x",
            1,
        ),
        (413, {}, b"Request Entity Too Large", "413", "Request Entity Too Large", 1),
        (404, {}, b"", "404", "Not Found", 1),
        (530, {}, b'{"__type": "InternalDependencyException", "message": "d"}', "InternalDependencyException", "d", 1),
        (500, {"x-amzn-ErrorType": "InternalFailure"}, b'{"Message": "oops"}', "InternalFailure", "oops", 3),
        (503, {"x-amzn-ErrorType": "ServiceUnavailable"}, b"{}", "ServiceUnavailable", "{}", 3),
        (502, {}, b"[]", "502", "[]", 3),
        (504, {}, b"<html>late</html>", "504", "<html>late</html>", 3),
    ],
)
def test_predict__raises_what_the_server_says_and_repeats_what_boto3_repeats(
    status, headers, body, code, text, attempts, server, connect
):
    server.answer = lambda *request: (status, headers, body)
    with pytest.raises(EndpointError) as caught:
        connect().predict(ROW)
    assert (caught.value.status, caught.value.code) == (status, code)
    kind = code if code == str(status) else f"{status} {code}"
    assert str(caught.value) == f"{server.url}/endpoints/fm-ep/invocations answered {kind}: {text}"
    assert len(server.requests) == attempts


def test_predict__succeeds_when_a_failure_passes(server, connect):
    def answer(*request):
        return (503, {}, b"") if len(server.requests) < 3 else scores_of(*request)

    server.answer = answer
    assert scores(connect().predict(ROW)) == [3.0]
    assert len(server.requests) == 3


def test_predict__says_where_nobody_listens_and_what_to_do():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # but does not listen
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        predictor = FactorizationMachinesPredictor("fm-ep", endpoint_url=url)
        with pytest.raises(EndpointError) as caught:
            predictor.predict(ROW)
    assert str(caught.value) == (
        f"no server answers at {url}/endpoints/fm-ep/invocations: Connection refused. "
        "Start an endpoint with deploy(), or correct endpoint_url or RAYFM_ENDPOINT_URL."
    )
    assert caught.value.status is None


def test_predict__asks_a_server_that_is_too_slow_only_once(server, connect, monkeypatch):
    monkeypatch.setattr(runtime, "READ_TIMEOUT_S", 0.05)
    over = threading.Event()
    server.answer = lambda *request: over.wait(20) and scores_of(*request)
    with pytest.raises(EndpointError, match=r"no answer from http.* within 0\.05 s"):
        connect().predict(ROW)
    over.set()
    assert len(server.requests) == 1


def test_predict__explains_a_url_that_is_none():
    with pytest.raises(EndpointError, match=r"host/endpoints/fm-ep/invocations cannot be requested: "):
        FactorizationMachinesPredictor("fm-ep", endpoint_url="host").predict(ROW)


def test_predict__does_not_ask_a_proxy_for_this_machine(server, connect, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    server.answer = scores_of
    assert scores(connect().predict(ROW)) == [3.0]


def test_predict__gives_the_deserializer_a_type_when_the_server_sends_none(server, connect):
    server.answer = lambda *request: (200, {}, b"x")
    assert connect(deserializer=lambda stream, content_type: content_type).predict(ROW) == "application/octet-stream"


def test_predict__refuses_a_serializer_that_returns_no_body(connect):
    with pytest.raises(TypeError, match="a serializer must return bytes, str or a file, got ndarray"):
        connect(serializer=IdentitySerializer()).predict(ROW)


def test_predictor__is_used_again_after_it_was_closed(server, connect):
    server.answer = scores_of
    with connect() as predictor:
        predictor.predict(ROW)
    assert scores(predictor.predict(ROW)) == [3.0]


def test_predictor__needs_no_ray():
    script = (
        "import sys; from rayfm.sagemaker import FactorizationMachinesPredictor; "
        "assert FactorizationMachinesPredictor('ep').endpoint_url; assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_predictor__looks_where_the_environment_says(server, monkeypatch):
    monkeypatch.setenv("RAYFM_ENDPOINT_URL", server.url)
    server.answer = scores_of
    with FactorizationMachinesPredictor("fm-ep") as predictor:
        assert scores(predictor.predict(ROW)) == [3.0]
