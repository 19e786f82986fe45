"""A replica's answers, without Ray around it."""

import asyncio
import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from starlette.requests import Request

from rayfm.errors import EndpointError
from rayfm.formats import recordio
from rayfm.formats.record_pb2 import Record
from rayfm.formats.recordio_frames import read_frames
from rayfm.model import FactorizationMachine
from rayfm.serving import app, keys
from rayfm.serving.app import EndpointReplica
from rayfm.serving.settings import Limits, Settings

GOLDEN = Path(__file__).parents[1] / "golden"
TASKS = ("regressor", "binary_classifier")
INFERENCE = {task: json.loads((GOLDEN / f"inference/{task}.json").read_text()) for task in TASKS}
JSON, JSON_LINES, RECORDIO = "application/json", "application/jsonlines", "application/x-recordio-protobuf"
SDK = {
    case["case"]: case
    for case in json.loads((GOLDEN / "http/sdk2_predictor_serializers.json").read_text())["cases"]
    if "body_hex" in case
}

MODEL = FactorizationMachine(0.5, np.ones(3, np.float32), np.zeros((3, 2), np.float32))
"""Scores 0.5 + x0 + x1 + x2."""
ROW = b'{"instances": [{"features": [1.0, 0.0, 2.0]}]}'


def replica_of(model, path, *, at_root=False, **settings):
    model.save(path)
    replica = EndpointReplica("fm-ep", "/endpoints/fm-ep" if at_root else "")
    asyncio.run(replica.reconfigure(Settings(str(path), "r1", **settings).as_dict()))
    return replica


@pytest.fixture
def replica(tmp_path):
    """An endpoint whose score is 0.5 + x0 + x1 + x2."""
    model = FactorizationMachine(
        0.5, np.ones(3, np.float32), np.zeros((3, 2), np.float32), metrics={"validation:rmse": float("nan")}
    )
    return replica_of(model, tmp_path / "model.safetensors", limits=Limits(max_body_bytes=1000))


def request_to(replica, path="/invocations", body=ROW, *, method="POST", parts=None, **headers):
    """A request to the replica as Serve makes it; a header may have a list of values."""
    prefix = "" if replica._own_path else "/endpoints/fm-ep"
    lines = [(name.replace("_", "-").lower().encode(), values) for name, values in headers.items()]
    scope = {
        "type": "http",
        "method": method,
        "path": prefix + path,
        "root_path": prefix,
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
        if part is None:  # the rest is long in coming
            await asyncio.sleep(60)
        return {"type": "http.request", "body": part, "more_body": bool(pending)}

    return Request(scope, receive)


def ask(replica, *arguments, **options):
    """Send a request to the replica."""
    return asyncio.run(replica(request_to(replica, *arguments, **options)))


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


def test_replica__a_large_request_is_scored_like_a_small_one(tmp_path):
    replica = replica_of(MODEL, tmp_path / "model.safetensors")
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
        ("GET", "/x", 404),
    ],
)
def test_replica__refuses_other_methods_and_paths(replica, method, path, status):
    response = ask(replica, path, method=method)
    assert response.status_code == status
    assert response.headers["x-amzn-ErrorType"] == "UnknownOperationException"


def test_replica__its_own_failure_is_a_model_error_that_tells_nothing(replica, monkeypatch):
    monkeypatch.setattr(app.instances, "write", None)
    assert original(ask(replica, content_type=JSON)) == (500, "the server failed; its log says why.")


def test_replica__a_model_that_cannot_be_loaded_leaves_the_old_one(replica, tmp_path):
    with pytest.raises(OSError, match="there is no model"):
        asyncio.run(replica.reconfigure({"model_uri": str(tmp_path / "other.safetensors"), "revision": "r2"}))
    assert json.loads(ask(replica, "", method="GET").body)["revision"] == "r1"


def test_replica__health_is_a_scored_row(replica, monkeypatch):
    replica.check_health()
    monkeypatch.setattr(FactorizationMachine, "raw_scores_unchecked", lambda self, batch: np.array([np.nan]))
    with pytest.raises(RuntimeError, match="not finite"):
        replica.check_health()


def test_replica__has_no_health_before_a_model():
    with pytest.raises(RuntimeError, match="no model yet"):
        EndpointReplica("fm-ep").check_health()


KEY, OTHER_KEY = "0123456789abcdef", "a-key-nobody-gave-out"
SIGNED = "AWS4-HMAC-SHA256 Credential={}/20261122/us-east-1/sagemaker/aws4_request, SignedHeaders=host, Signature=00"


@pytest.fixture
def locked(tmp_path):
    """An endpoint that asks for one of two keys."""
    return replica_of(MODEL, tmp_path / "model.safetensors", key_digests=keys.digests(["fedcba9876543210", KEY]))


@pytest.mark.parametrize(
    "headers",
    [{"x_api_key": KEY}, {"authorization": f"Bearer {KEY}"}, {"authorization": SIGNED.format(KEY)}],
)
def test_replica__answers_whoever_shows_a_key(locked, headers):
    assert ask(locked, content_type=JSON, **headers).status_code == 200
    assert ask(locked, "", method="GET", **headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "MissingAuthenticationTokenException"),
        ({"authorization": "Basic " + KEY}, 401, "MissingAuthenticationTokenException"),
        ({"x_api_key": OTHER_KEY}, 403, "AccessDeniedException"),
        ({"x_api_key": ""}, 403, "AccessDeniedException"),
        ({"authorization": SIGNED.format(OTHER_KEY)}, 403, "AccessDeniedException"),
        ({"x_api_key": keys.digests([KEY])[0]}, 403, "AccessDeniedException"),
    ],
)
def test_replica__refuses_whoever_shows_none(locked, headers, status, code):
    for path, method in (("/invocations", "POST"), ("", "GET"), ("/openapi.json", "GET")):
        response = ask(locked, path, method=method, **headers)
        assert (response.status_code, response.headers["x-amzn-ErrorType"]) == (status, code)
        assert (response.headers.get("www-authenticate") == "Bearer") == (status == 401)


def test_replica__health_needs_no_key(locked):
    response = ask(locked, "/ping", method="GET")
    assert (response.status_code, response.body) == (200, b"")
    assert response.headers["x-rayfm-revision"] == "r1"


@pytest.mark.parametrize(
    ("limits", "problem"),
    [({"max_rows": 2}, "at most 2 rows, got 3"), ({"max_nonzeros": 5}, "at most 5 nonzeros, got 6")],
)
@pytest.mark.parametrize("media_type", [JSON_LINES, RECORDIO])
def test_replica__refuses_more_rows_or_nonzeros_than_the_limit(tmp_path, limits, problem, media_type):
    replica = replica_of(MODEL, tmp_path / "model.safetensors", limits=Limits(**limits))
    file = io.BytesIO()
    recordio.write_numpy_to_dense_tensor(file, np.array([[1, 0, 2]] * 3, np.float32))
    body = file.getvalue() if media_type == RECORDIO else b'{"features": [1, 0, 2]}\n' * 3
    response = ask(replica, body=body, content_type=media_type)
    assert response.status_code == 413
    assert problem in json.loads(response.body)["Message"]


def test_replica__a_body_that_does_not_arrive_in_time_is_408(tmp_path):
    replica = replica_of(MODEL, tmp_path / "model.safetensors", limits=Limits(timeout_s=0.05))
    response = ask(replica, parts=[ROW[:10], None], content_type=JSON)
    assert response.status_code == 408
    assert json.loads(response.body) == {"Message": "the request must arrive within 0.05 s."}


def test_replica__rows_that_take_too_long_are_a_server_error_of_the_model(tmp_path, monkeypatch):
    replica = replica_of(MODEL, tmp_path / "model.safetensors", limits=Limits(timeout_s=0.05, max_pending=1))
    release = threading.Event()
    monkeypatch.setattr(app, "invoke", lambda *request: release.wait(30))
    body = ROW.ljust(app._INLINE_BYTES + 1)

    async def three():
        first = await replica(request_to(replica, body=body, content_type=JSON))
        second = await replica(request_to(replica, body=body, content_type=JSON))  # the thread is still at the first
        release.set()
        monkeypatch.undo()
        while replica._pending:
            await asyncio.sleep(0.01)
        return first, second, await replica(request_to(replica, body=body, content_type=JSON))

    late, refused, answered_ = asyncio.run(three())
    assert original(late) == (0, "Your invocation timed out while waiting for a response from container.")
    assert "Received server error (0) from primary" in json.loads(late.body)["Message"]
    assert (refused.status_code, refused.headers["x-amzn-ErrorType"]) == (503, "ServiceUnavailable")
    assert refused.headers["retry-after"] == "1"
    assert answered_.status_code == 200


def test_replica__refuses_requests_above_the_limit_of_pending_ones(tmp_path):
    replica = replica_of(MODEL, tmp_path / "model.safetensors", limits=Limits(max_pending=2))

    async def four():
        slow = [asyncio.create_task(replica(request_to(replica, parts=[ROW[:5], None]))) for _ in range(2)]
        await asyncio.sleep(0.05)
        refused = await replica(request_to(replica, content_type=JSON))
        for task in slow:
            task.cancel()  # as Serve does when the client has gone
        await asyncio.gather(*slow, return_exceptions=True)
        return refused, await replica(request_to(replica, content_type=JSON))

    refused, answered_ = asyncio.run(four())
    assert (refused.status_code, answered_.status_code) == (503, 200)


def test_replica__before_a_model_is_not_ready():
    response = ask(EndpointReplica("fm-ep"))
    assert (response.status_code, response.headers["x-amzn-ErrorType"]) == (429, "ModelNotReadyException")


@pytest.fixture
def container(tmp_path):
    """An endpoint at the root of the server."""
    return replica_of(MODEL, tmp_path / "model.safetensors", at_root=True, limits=Limits(max_body_bytes=9 * 2**20))


def test_replica__at_the_root_is_a_container(container):
    assert answered(ask(container, content_type=JSON).body, JSON) == [(3.5, None)]
    assert ask(container, "/ping", method="GET").body == b""
    assert json.loads(ask(container, "/execution-parameters", method="GET").body) == {
        "MaxConcurrentTransforms": app.THREADS,
        "BatchStrategy": "MULTI_RECORD",
        "MaxPayloadInMB": 9,
    }


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"content_type": "text/csv"}, 415), ({"accept": "text/csv"}, 406), ({"content_type": RECORDIO}, 400)],
)
def test_replica__at_the_root_answers_failures_as_a_container(container, headers, status):
    response = ask(container, **headers)
    assert response.status_code == status
    assert list(json.loads(response.body)) == ["Message"]


def test_replica__at_the_root_is_an_endpoint_by_its_name(container):
    assert ask(container, "/endpoints/fm-ep/invocations", content_type=JSON).status_code == 200
    assert original(ask(container, "/endpoints/fm-ep/invocations", content_type="text/csv"))[0] == 415
    assert json.loads(ask(container, "/endpoints/fm-ep", method="GET").body)["endpoint_name"] == "fm-ep"


@pytest.mark.parametrize("path", ["/endpoints/other/invocations", "/endpoints/fm-ep2/invocations", "/endpoints/a"])
def test_replica__at_the_root_knows_no_other_endpoint(container, path):
    response = ask(container, path)
    assert (response.status_code, response.headers["x-amzn-ErrorType"]) == (400, "ValidationError")
    name = path.split("/")[2]
    assert json.loads(response.body) == {"Message": f"Endpoint {name} of account 000000000000 not found."}


def test_replica__describes_its_interface(container, locked):
    description = json.loads(ask(container, "/openapi.json", method="GET").body)
    assert {"/invocations", "/ping", "/endpoints/fm-ep/invocations", "/endpoints/fm-ep"} <= set(description["paths"])
    assert description["components"]["schemas"]["Facts"]["properties"]["feature_dim"] == {"const": 3}
    assert "security" not in description
    description = json.loads(ask(locked, "/openapi.json", method="GET", x_api_key=KEY).body)
    assert description["security"] == [{"api_key": []}, {"bearer": []}]
    assert "/invocations" not in description["paths"]


@pytest.mark.parametrize("name", ["max_body_bytes", "max_rows", "max_nonzeros", "max_pending", "timeout_s"])
def test_limits__must_be_positive(name):
    with pytest.raises(EndpointError, match=f"{name} must be > 0, got 0"):
        Limits(**{name: 0})


def test_limits__end_before_the_proxy_gives_up():
    with pytest.raises(EndpointError, match="timeout_s must be <= 100, got 300"):
        Limits(timeout_s=300)


def test_settings__survive_as_plain_data():
    settings = Settings("m", "r", Limits(max_rows=3), ("ab",), False)
    assert Settings.of(json.loads(json.dumps(settings.as_dict()))) == settings
