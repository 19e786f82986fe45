"""A replica's answers, without Ray around it."""

import asyncio
import io
import json
from pathlib import Path

import numpy as np
import pytest
from starlette.requests import Request

from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import read_frames
from rayfm.model import FactorizationMachine
from rayfm.serving import app
from rayfm.serving.app import EndpointReplica

GOLDEN = Path(__file__).parents[1] / "golden"
TASKS = ("regressor", "binary_classifier")
INFERENCE = {task: json.loads((GOLDEN / f"inference/{task}.json").read_text()) for task in TASKS}
JSON, JSON_LINES, RECORDIO = "application/json", "application/jsonlines", "application/x-recordio-protobuf"
SDK = {
    case["case"]: case
    for case in json.loads((GOLDEN / "http/sdk2_predictor_serializers.json").read_text())["cases"]
    if "body_hex" in case
}

ROW = b'{"instances": [{"features": [1.0, 0.0, 2.0]}]}'


def replica_of(model, path, **options):
    model.save(path)
    replica = EndpointReplica("fm-ep", **options)
    replica.reconfigure({"model_uri": str(path), "revision": "r1"})
    return replica


@pytest.fixture
def replica(tmp_path):
    """An endpoint whose score is 0.5 + x0 + x1 + x2."""
    model = FactorizationMachine(
        0.5, np.ones(3, np.float32), np.zeros((3, 2), np.float32), metrics={"validation:rmse": float("nan")}
    )
    return replica_of(model, tmp_path / "model.safetensors", max_body_bytes=1000)


def ask(replica, path="/invocations", body=ROW, *, method="POST", parts=None, **headers):
    """Send a request to the replica as Serve does; a header may have a list of values."""
    lines = [(name.replace("_", "-").lower().encode(), values) for name, values in headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": f"/endpoints/fm-ep{path}",
        "root_path": "/endpoints/fm-ep",
        "query_string": b"",
        "headers": [
            (name, value.encode())
            for name, values in lines
            for value in (values if isinstance(values, list) else [values])
        ],
    }
    pending = list(parts or [body])

    async def receive():
        if not pending:
            return {"type": "http.disconnect"}
        part = pending.pop(0)
        return {"type": "http.request", "body": part, "more_body": part is None or bool(pending)}

    return asyncio.run(replica(Request(scope, receive)))


def answered(content, media_type):
    """The (score, predicted label) of each row."""
    if media_type == RECORDIO:
        records = (Record.FromString(payload) for _, payload in read_frames(io.BytesIO(content)))
        values = [{name: value.float32_tensor.values[0] for name, value in record.label.items()} for record in records]
    elif media_type == JSON:
        values = json.loads(content)["predictions"]
    else:
        values = [json.loads(line) for line in content.splitlines()]
    return [(value["score"], value.get("predicted_label")) for value in values]


def original(response):
    """Status and message that a container would have answered with."""
    assert response.status_code == 424
    assert response.headers["x-amzn-ErrorType"] == "ModelError"
    assert response.headers["content-type"] == JSON
    document = json.loads(response.body)
    assert document["OriginalMessage"] in document["Message"]
    return document["OriginalStatusCode"], document["OriginalMessage"]


@pytest.mark.parametrize("accept", [JSON, JSON_LINES, RECORDIO])
@pytest.mark.parametrize(("task", "name"), [(task, name) for task in TASKS for name in INFERENCE[task]["requests"]])
def test_replica__answers_golden_requests_with_golden_scores(tmp_path, task, name, accept):
    golden = np.load(GOLDEN / f"model/{task}_sparse_expected.npz")
    model = FactorizationMachine(float(golden["w0_weight"][0]), golden["w1_weight"][:, 0], golden["v"], task)
    request = INFERENCE[task]["requests"][name]
    response = ask(
        replica_of(model, tmp_path / "model.safetensors"),
        body=bytes.fromhex(request["body_hex"]),
        content_type=request["content_type"],
        accept=accept,
    )
    assert response.status_code == 200
    assert response.headers["content-type"] == accept
    scores, labels = zip(*answered(response.body, accept), strict=True)
    np.testing.assert_allclose(scores, golden["score"], rtol=1e-6)
    assert list(labels) == (golden["predicted_label"].tolist() if task == "binary_classifier" else [None] * 4)


@pytest.mark.parametrize(
    ("case", "scores"),
    [
        ("json/json dict", [3.5]),
        ("json/json ndarray (NOT the FM layout)", [3.5]),
        ("jsonlines list", [3.5, 3.5]),
        ("record/record 1d", [3.5]),
        ("multi accept", []),
    ],
)
def test_replica__answers_what_the_sdk_sends(replica, case, scores):
    headers = {name: value for name, value in SDK[case]["headers"].items() if name != "Content-Length"}
    response = ask(replica, body=bytes.fromhex(SDK[case]["body_hex"]), **headers)
    assert response.headers["content-type"] == headers["Accept"].split(",")[0]
    assert [score for score, _ in answered(response.body, response.headers["content-type"])] == scores


def test_replica__names_variant_and_request(replica):
    first, second = ask(replica, content_type=JSON), ask(replica, content_type=JSON)
    assert first.headers["x-amzn-invoked-production-variant"] == "AllTraffic"
    assert len({first.headers["x-amzn-requestid"], second.headers["x-amzn-requestid"]}) == 2


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({"content_type": "text/csv"}, 415, "Content-Type must be one of application/json"),
        ({"content_type": JSON, "accept": "text/csv"}, 406, "Accept must allow one of application/json"),
        ({"content_type": RECORDIO}, 400, "unable to evaluate payload provided: row 1: the frame at byte 0"),
        ({"content_type": JSON_LINES}, 400, "unable to evaluate payload provided: row 1: an instance must"),
        ({"content_encoding": "gzip"}, 415, "Content-Encoding must be identity, got gzip. Send the body uncompressed."),
    ],
)
def test_replica__what_cannot_be_answered_is_a_model_error(replica, headers, status, message):
    answered_status, answered_message = original(ask(replica, **headers))
    assert answered_status == status
    assert answered_message.startswith(message)


def test_replica__one_bad_instance_refuses_the_request(replica):
    body = b'{"instances": [{"features": [1, 2, 3]}, {"features": [1, 2]}]}'
    assert original(ask(replica, body=body, content_type=JSON)) == (
        400,
        "unable to evaluate payload provided: row 2: dense features must have 3 values, the model's width, got 2. "
        "Send all of them, or keys with the values.",
    )


@pytest.mark.parametrize("task", TASKS)
def test_replica__a_score_that_is_not_finite_is_refused(tmp_path, task):
    model = FactorizationMachine(0.5, np.ones(3, np.float32), np.ones((3, 2), np.float32), task)
    body = b'{"instances": [{"features": [1, 2, 3]}, {"features": [1e25, 1e25, 0]}]}'
    assert original(ask(replica_of(model, tmp_path / "model.safetensors"), body=body, content_type=JSON)) == (
        400,
        "unable to evaluate payload provided: row 2: the score is not finite. Scale the features.",
    )


def test_replica__a_raw_score_beyond_float32_saturates_a_probability(tmp_path):
    model = FactorizationMachine(0, np.ones(3, np.float32), np.zeros((3, 2), np.float32), "binary_classifier")
    body = b'{"instances": [{"features": [3e38, 3e38, 0]}, {"features": [-3e38, -3e38, 0]}]}'
    response = ask(replica_of(model, tmp_path / "model.safetensors"), body=body, content_type=JSON)
    assert answered(response.body, JSON) == [(1, 1), (0, 0)]


def test_replica__a_label_is_that_of_the_score_which_is_answered(tmp_path):
    model = FactorizationMachine(-1e-9, np.ones(3, np.float32), np.zeros((3, 2), np.float32), "binary_classifier")
    body = b'{"instances": [{"features": [0, 0, 0]}, {"features": [-0.01, 0, 0]}]}'
    response = ask(replica_of(model, tmp_path / "model.safetensors"), body=body, content_type=JSON)
    (tie, predicted), (below, other) = answered(response.body, JSON)
    assert (tie, predicted) == (0.5, 1.0)  # 0.5 as float32, though the raw score is below 0
    assert (below < 0.5, other) == (True, 0.0)


def test_replica__takes_the_accept_of_all_its_lines(replica):
    response = ask(replica, content_type=JSON, accept=["text/csv", JSON_LINES])
    assert (response.status_code, response.headers["content-type"]) == (200, JSON_LINES)


def test_replica__a_large_request_is_scored_like_a_small_one(replica):
    replica.max_body_bytes = 2**20
    body = b"\n".join([b'{"features": [1, 0, %d]}' % row for row in range(5000)])
    assert len(body) > app._INLINE_BYTES
    response = ask(replica, body=body, content_type=JSON_LINES)
    assert [score for score, _ in answered(response.body, JSON_LINES)] == [1.5 + row for row in range(5000)]


def test_replica__joins_a_body_that_comes_in_parts(replica):
    response = ask(replica, parts=[ROW[:10], b"", ROW[10:]], content_type=JSON)
    assert answered(response.body, JSON) == [(3.5, None)]


@pytest.mark.parametrize("headers", [{}, {"content_length": "1001"}, {"content_length": "many"}])
def test_replica__refuses_a_body_above_the_limit(replica, headers):
    response = ask(replica, parts=[b" " * 500, b" " * 501], **headers)
    assert response.status_code == 413
    assert "x-amzn-errortype" not in response.headers
    assert json.loads(response.body) == {"Message": "the request must have at most 1000 bytes."}


def test_replica__takes_a_body_of_the_limit(replica):
    assert ask(replica, body=ROW.ljust(1000), content_type=JSON).status_code == 200


def test_replica__describes_its_model(replica):
    facts = json.loads(ask(replica, "", method="GET").body)
    assert facts["feature_dim"] == 3
    assert facts["num_factors"] == 2
    assert facts["predictor_type"] == "regressor"
    assert facts["revision"] == "r1"
    assert facts["metrics"] == {"validation:rmse": None}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/invocations", 405),
        ("POST", "", 405),
        ("POST", "/async-invocations", 404),
        ("POST", "/endpoints/fm-ep/invocations", 404),
        ("GET", "/x", 404),
    ],
)
def test_replica__refuses_other_methods_and_paths(replica, method, path, status):
    response = ask(replica, path, method=method)
    assert response.status_code == status
    assert response.headers["x-amzn-ErrorType"] == "UnknownOperationException"


def test_replica__its_own_failure_is_a_model_error_that_tells_nothing(replica, monkeypatch):
    monkeypatch.setattr(app, "score", None)
    assert original(ask(replica, content_type=JSON)) == (500, "the server failed; its log says why.")


def test_replica__a_model_that_cannot_be_loaded_leaves_the_old_one(replica, tmp_path):
    with pytest.raises(OSError, match="there is no model"):
        replica.reconfigure({"model_uri": str(tmp_path / "other.safetensors"), "revision": "r2"})
    assert json.loads(ask(replica, "", method="GET").body)["revision"] == "r1"


def test_replica__health_is_a_scored_row(replica, monkeypatch):
    replica.check_health()
    monkeypatch.setattr(FactorizationMachine, "raw_scores_unchecked", lambda self, batch: np.array([np.nan]))
    with pytest.raises(RuntimeError, match="not finite"):
        replica.check_health()


def test_replica__has_no_health_before_a_model():
    with pytest.raises(RuntimeError, match="no model yet"):
        EndpointReplica("fm-ep").check_health()
